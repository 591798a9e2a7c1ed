"""What an evaluation asks and how, resolved before anything is asked: its manifest.

A stage's fingerprint is made of it, not of options as they were written: a default written out, another order or
another path to the same data is the same evaluation. Other sentence data of NLTK, another langdetect or another harness
make another one. Scores are paired only where the same was asked (`asked`).

Batch sizes are not in it, because they change scores by rounding alone (`repeats` measures that). Prices and budgets of
a judge are not either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.config.schema import UNCOMPARED_JUDGE_FIELDS, Evaluation
from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.chat_template import chat_template
from lingraft.data.worldbook import VERSION as WORLDBOOK_VERSION
from lingraft.errors import EvaluationError, in_one_line
from lingraft.evaluate.lm_eval_compat import quiet
from lingraft.evaluate.own_task import ROOM_OF_LONGEST
from lingraft.evaluate.task_records import DataRevision, EvaluationSettings, ScoreSettings, TaskSettings
from lingraft.evaluate.task_runs import (
    NEEDS_PUNKT,
    SEEDS,
    Run,
    asked_text,
    choices_of,
    code_of,
    expected_text,
    few_shot_of,
    item_and_cluster,
    punkt_data,
    reads_whole_documents,
    template_of,
)
from lingraft.models.server_engine import engine_of
from lingraft.records import fingerprint_of, hash_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # raised with every change of what stands in it
# Scores may change with these; the engines and the harness are named apart.
_LIBRARIES = (
    "lingraft",
    "torch",
    "transformers",
    "tokenizers",
    "sacrebleu",
    "rouge_score",
    "py3langid",
)
# IFEval's verifiers that ask langdetect which language an answer is in.
_ASKS_LANGDETECT = frozenset(
    {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}
)
NO_TEMPLATE = "none; control tokens are text"
HAS_TEMPLATE = "the model's"


@dataclass(frozen=True, slots=True)
class ManifestItem:
    """One item of a task.

    Attributes:
        item: Its name in predictions.
        cluster: What items that share content have in common.
        content: Fingerprint of its text, its expected answer, its choices, and of what else its score depends on: the
            document that a task's own scorer reads, and the data and versions that IFEval's verifiers use for it.
    """

    item: str
    cluster: str
    content: str


@dataclass(frozen=True, slots=True)
class TaskManifest:
    """One harness task of an evaluation.

    Attributes:
        key: Unique: ability, name, language and the harness's name of the task.
        label: Name and language, as tables have them; the tasks of a group share it.
        settings: How it is asked and scored.
        data: Revision of its data, for the record: what decides scores stands in the items.
        items: Those that are asked.
        left_out: Number of those that cannot be scored here.
    """

    key: str
    label: str
    settings: TaskSettings
    data: DataRevision
    items: tuple[ManifestItem, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """An evaluation, resolved.

    Attributes:
        how: What holds for every task.
        tasks: Sorted by key.
        libraries: Installed version by library.
        seeds: Of prompts, answers and langdetect.
        repeats: Times that generating tasks run.
        split: worldbook's.
        worldbook: Version of worldbook.
        punkt: Hash of NLTK's English sentence data; None: they are absent. In the fingerprint by way of the items that
            need them alone.
        langdetect: Version of langdetect; None: it is absent. In the fingerprint likewise.
        held_out: Fingerprint of the held-out examples whose loss is measured.
    """

    evaluation: EvaluationSettings
    tasks: tuple[TaskManifest, ...]
    libraries: tuple[tuple[str, str | None], ...]
    seeds: tuple[tuple[str, int], ...]
    repeats: int
    split: str
    worldbook: str
    punkt: str | None
    langdetect: str | None
    held_out: str

    @property
    def identity(self) -> dict[str, Any]:
        """All that the scores depend on beside the model, as JSON: what a stage's fingerprint is made of."""
        return {
            "format": FORMAT,
            "evaluation": asdict(self.evaluation),
            "tasks": {
                one.key: asdict(one.settings)
                | {
                    "items": len(one.items),
                    "content": fingerprint_of([asdict(item) for item in one.items]),
                    "left_out": one.left_out,
                }
                for one in self.tasks
            },
            "libraries": dict(self.libraries),
            "seeds": dict(self.seeds),
            "repeats": self.repeats,
            "split": self.split,
            "worldbook": self.worldbook,
            "held_out": self.held_out,
        }

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of `identity`."""
        return fingerprint_of(self.identity)

    @property
    def asked(self) -> dict[str, dict[str, str]]:
        """By key of the task and name of the item, the fingerprint of what is asked and how."""
        return {
            one.key: {
                item.item: fingerprint_of([asdict(self.evaluation), asdict(one.settings), item.content])
                for item in one.items
            }
            for one in self.tasks
        }

    def settings_of(self, label: str) -> ScoreSettings:
        """Return how a task, by name and language, is asked and scored."""
        parts = {one.key.rpartition("|")[2]: one.settings for one in self.tasks if one.label == label}
        return ScoreSettings(self.evaluation, parts)

    def to_json(self) -> dict[str, Any]:
        """Return the whole manifest as JSON."""
        return self.identity | {
            "punkt": self.punkt,
            "langdetect": self.langdetect,
            "tasks": {
                one.key: asdict(one.settings)
                | {
                    "data": asdict(one.data),
                    "left_out": one.left_out,
                    "items": [[item.item, item.cluster, item.content] for item in one.items],
                }
                for one in self.tasks
            },
        }


def manifest_of(
    runs: Sequence[Run],
    evaluation: Evaluation,
    *,
    precision: str,
    chat: str,
    held_out: Sequence[str] = (),
) -> Manifest:
    """Return the manifest of tasks as they will be run (`task_runs.build_runs`).

    Args:
        runs: The tasks.
        evaluation: Which engine, judge, part and number of repeats; what else it says stands in the runs.
        precision: Of the arithmetic, as it was resolved.
        chat: From `chat_identity`; where a stage's fingerprint holds the model itself, whether there is a template is
            enough (`HAS_TEMPLATE`).
        held_out: Identities of the held-out examples.

    Raises:
        EvaluationError: A task's templates or functions fail on an item.
    """
    backend = evaluation.backend
    engine = f"transformers {installed('transformers')}" if isinstance(backend, str) else engine_of(backend)
    judge = (
        ""
        if evaluation.judge is None
        else fingerprint_of(evaluation.judge.model_dump(mode="json", exclude=UNCOMPARED_JUDGE_FIELDS))
    )
    return Manifest(
        evaluation=EvaluationSettings(engine, str(installed("lm_eval")), precision, chat),
        tasks=tuple(_task(run, judge) for run in sorted(runs, key=lambda run: run.key)),
        libraries=tuple((name, installed(name)) for name in _LIBRARIES),
        seeds=tuple(SEEDS.items()),
        repeats=evaluation.repeats,
        split=evaluation.worldbook_split,
        worldbook=WORLDBOOK_VERSION,
        punkt=punkt_hash(),
        langdetect=installed("langdetect"),
        held_out=fingerprint_of(list(held_out)),
    )


def chat_identity(tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation) -> str:
    """Return the fingerprint of the chat template that prompts go through; NO_TEMPLATE: they go through none."""
    if not evaluation.apply_chat_template:
        return NO_TEMPLATE
    return fingerprint_of({"template": chat_template(tokenizer)[0], **CHAT_IDENTITY})


def installed(library: str) -> str | None:
    """Return the installed version of a library; None: it is absent."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def outside_of_the_file() -> dict[str, str | None]:
    """Return what may change an evaluation although its file, its data and the model stay as they are."""
    names = (*_LIBRARIES, "lm_eval", "langdetect")
    return {
        **{name: installed(name) for name in names},
        "punkt": punkt_hash(),
        "worldbook": WORLDBOOK_VERSION,
    }


def punkt_hash() -> str | None:
    """Return the hash of the English sentence data that NLTK finds; None: it finds none."""
    folder = punkt_data()
    if folder is None:
        return None
    return _hash_of_folder(folder) if folder.is_dir() else "packed"  # it may be read out of a zip file


@cache
def _hash_of_folder(folder: Path) -> str:
    return fingerprint_of(
        [[path.name, hash_file(path)] for path in sorted(folder.iterdir()) if path.is_file()]
    )


def _task(run: Run, judge: str) -> TaskManifest:
    from lm_eval.models.utils import normalize_gen_kwargs

    from lingraft.evaluate.in_memory import LONGEST_ANSWER

    task = run.task
    template = template_of(task)
    generation = template.pop("generation")  # resolved below: a default written out is the same
    few_shot = ""
    try:
        with quiet():  # some tasks (Global-MMLU) filter their documents only now, with a bar
            rows = task.eval_docs
            items = []
            for place, number in enumerate(run.documents):
                row = rows[number]
                item, cluster = item_and_cluster(run, number, row)
                items.append(ManifestItem(item, cluster, _content(run, row, place)))
            if task.config.num_fewshot:
                few_shot = fingerprint_of(_plain([few_shot_of(task), SEEDS["few_shot_examples"]]))
            settings = normalize_gen_kwargs(generation or {}, LONGEST_ANSWER) if run.generates else {}
    except EvaluationError:
        raise
    except Exception as error:  # a task's own templates and functions
        raise EvaluationError(
            f"the task {run.name}: its items cannot be read: {type(error).__name__}: {in_one_line(error)}"
        ) from error
    # The longest answer is a model's own (`answer_room`), and by this rule.
    if getattr(task, "references", ()):
        settings = {**settings, "room": ROOM_OF_LONGEST}
    if run.generates and not settings["do_sample"]:  # then nothing reads how it would be drawn
        settings = {key: value for key, value in settings.items() if key not in ("temperature", "top_p")}
    return TaskManifest(
        key=run.key,
        label=run.label,
        settings=TaskSettings(
            version=str(task.VERSION),
            metric=run.metric,
            filter=run.filter,
            kind=str(task.config.output_type),
            template=fingerprint_of(_plain(template)),
            generation=fingerprint_of(_plain(dict(settings))) if run.generates else "",
            few_shot=few_shot,
            code=fingerprint_of(_plain(code_of(run))),
            judge=judge if run.is_judged else "",
        ),
        data=run.data,
        items=tuple(items),
        left_out=len(run.left_out),
    )


def _content(run: Run, row: Mapping[str, Any], place: int) -> str:
    task, document = run.task, _plain(dict(row))
    try:
        parts: list[Any] = [asked_text(task, row), expected_text(task, row), choices_of(task, row)]
        parts.append([task.resolve_field(row, task.config.description), task.doc_to_prefix(row)])
    except (
        Exception
    ):  # a kind of task that has no such parts; the document and the template's source decide all
        parts = [document]
    if reads_whole_documents(run):
        parts.append(document)
    if task.config.num_fewshot:
        parts.append(["place", place])  # the harness draws examples item after item, from one generator
    instructions = set(row.get("instruction_id_list") or ())
    if instructions & NEEDS_PUNKT:
        parts.append(["punkt", punkt_hash()])
    if instructions & _ASKS_LANGDETECT:
        parts.append(["langdetect", installed("langdetect"), SEEDS["langdetect"]])
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, whatever a task keeps in it: dates and the like as text."""
    return json.loads(json.dumps(value, sort_keys=True, default=str, ensure_ascii=False))
