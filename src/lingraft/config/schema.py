"""The study file as pydantic models: one field, one type, one docstring.

Unknown keys are refused. Checks that need more than one field are in `config.checks`, so that all
errors can be reported together. Defaults name their source.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from copy import copy
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from lingraft.text.language_tags import canonical_tag

TAG_PATTERN = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"


def _canonical_language(value: Any) -> Any:
    """Return the tag that a language is known by (PT, por, Portuguese: pt); what is unknown stays as it is."""
    if value is False:
        raise ValueError(
            "must be a language; YAML reads no as false: write Norwegian in quotation marks ('no')"
        )
    return (canonical_tag(value) or value) if isinstance(value, str) else value


LanguageTag = Annotated[
    str, BeforeValidator(_canonical_language, json_schema_input_type=str), Field(pattern=TAG_PATTERN)
]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]


def _quoted_norwegian(value: Any) -> Any:
    """Refuse what YAML makes of a bare `no` in place of a tag."""
    if value is False:
        raise ValueError(
            "must be an ability, language or task; YAML reads no as false: write Norwegian in quotation marks ('no')"
        )
    return value


LimitName = Annotated[str, BeforeValidator(_quoted_norwegian, json_schema_input_type=str)]
Limit = Annotated[float, Field(gt=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


class Section(BaseModel):
    """Base of every part of a study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_a_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which pydantic would take for 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):
            raise ValueError(
                f"must be a number; YAML reads yes and on as true, no and off as false (here {value})"
            )
        return value


_MANY = 10**9  # more than any phase has: what is larger is a slip of the pen


class Training(Section):
    """How a phase is trained. Every strategy and set can override single fields."""

    learning_rate: float = Field(2.0e-5, ge=1e-10, le=1)  # below, no float32 weight moves
    """Peak learning rate of AdamW (default: common for full fine-tuning of 7B models; small models want more)."""
    epochs: int = Field(1, ge=1, le=100)
    """Passes over the phase's examples."""
    tokens_per_batch: int = Field(4096, ge=16, le=_MANY)
    """Padded tokens per optimiser step: rows times the longest row of each of its micro-batches."""
    accumulation: int | None = Field(None, ge=1, le=1024)
    """Micro-batches per optimiser step; each holds tokens_per_batch / accumulation padded tokens. null: one, cut into
    pieces where it does not fit the memory; the rows of a step stay the same, so results differ by rounding alone."""
    max_length: int = Field(1024, ge=8, le=_MANY)
    """Longest example in tokens; what is cut off is counted and shown."""
    precision: Literal["auto", "bf16", "bf16_pure", "float32"] = "auto"
    """bf16: bf16 arithmetic on float32 weights; bf16_pure: bf16 weights with stochastic rounding; float32; auto: bf16
    where this machine computes it clearly faster, else float32."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw: float32 moments; adamw_8bit: moments of 8 bits (torchao) on bf16 weights, 6 bytes for a trained parameter
    in place of 18; takes precision bf16_pure, which auto then means."""
    warmup_share: float = Field(0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises to its peak; that of the first step is above 0."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """AdamW's decoupled weight decay (default: none, as in Alpaca's training)."""
    max_gradient_norm: float = Field(1.0, ge=1e-9, le=_MANY)
    """Gradients are scaled down to this norm; a large one leaves them as they are."""
    gradient_checkpointing: bool | None = None
    """Trade time for memory: recompute activations in the backward pass; null: where they would not fit."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the decoder layers (torch.compile); auto: where the phase is long enough to pay for it and the machine
    has a compiler. Results differ by rounding only."""
    save_every: int = Field(0, ge=0, le=_MANY)
    """Optimiser steps between resumable checkpoints inside a phase; 0: by time alone."""
    save_minutes: float = Field(10.0, ge=0, le=10_080)
    """Minutes between resumable checkpoints; 0: by steps alone. Both 0: nothing is saved before the phase is done."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers.Trainer: tensorboard, trackio, wandb, mlflow, ..."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimiser step, before any is cut into pieces."""
        return self.accumulation or 1

    @property
    def saves(self) -> bool:
        """Whether resumable checkpoints are written."""
        return bool(self.save_every or self.save_minutes)

    def compared(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """Return the options that a result depends on, as fingerprints and resumable checkpoints hold them.

        Args:
            without: Options that do not matter to who asks.
        """
        compared = self.model_dump(mode="json", exclude={*_UNCOMPARED, *without})
        chosen = {
            "accumulation": self.micro_batches,
            "gradient_checkpointing": bool(self.gradient_checkpointing),
        }
        compared |= {name: one for name, one in chosen.items() if name in compared}
        if self.optimizer == "adamw":  # as before there was another
            compared.pop("optimizer", None)
        return compared

    def conflict(self) -> str | None:
        """Return which options do not go together and what to write instead; None: all do."""
        if self.optimizer == "adamw_8bit" and self.precision in ("bf16", "float32"):
            return (
                f"optimizer adamw_8bit trains bf16 weights, and precision is {self.precision!r}; write precision: "
                "bf16_pure (or auto), or optimizer: adamw."
            )
        return None


_UNCOMPARED = {"compile", "save_every", "save_minutes", "report_to"}


def _or_absent(field: FieldInfo) -> tuple[Any, FieldInfo]:
    """Return a field's type and definition, where it may be null and is so by default."""
    own, kind = copy(field), cast(Any, field.annotation)
    own.annotation, own.default = kind | None, None
    return own.annotation, own


class TrainingOverrides(
    create_model(  # type: ignore[misc]  # a class that is made has no fields that mypy knows
        "OptionalTraining",
        __base__=Section,
        **{name: _or_absent(field) for name, field in Training.model_fields.items()},
    )
):
    """Fields of Training that a phase or a strategy sets otherwise; what is absent is inherited."""

    def apply_to(self, training: Training) -> Training:
        """Return `training` with the fields that are set here."""
        return training.model_copy(update=self.model_dump(exclude_none=True))


RowFormat = Literal[
    "alpaca", "messages", "prompt_completion", "sharegpt", "conversation", "openorca", "dolly", "aya", "flan",
    "self_instruct", "oasst",
]  # fmt: skip
RowField = Literal[
    "instruction", "input", "output", "response", "context", "instances",
    "prompt", "completion", "messages", "conversations", "conversation", "system", "tools",
    "system_prompt", "question", "inputs", "targets",
    "message_id", "parent_id", "message_tree_id", "role", "text", "rank",
    "id", "group", "language", "task_type",
]  # fmt: skip


class Filters(Section):
    """Which rows of a data set are left out or cleaned although they can be read; all of them are counted."""

    near_duplicates: float | None = Field(None, gt=0, le=1)
    """Leave out rows at least this like an earlier one (Jaccard; 0.8 is usual, 1: equal text only); null: none."""
    language: bool = False
    """Leave out rows whose text is in another language than they claim."""
    no_answer: bool = False
    """Leave out rows without an answer, which otherwise count as broken."""
    special_tokens: Literal["strip", "drop"] | None = None
    """`strip`: take special tokens that answers spell as text (`</s>`, `[INST]`, ...) out of them; `drop`: leave the
    rows out; null: keep both."""


class DataSource(Section):
    """One data set: where it lies, how it is read and how much of it is used."""

    source: Text
    """`worldbook:FAMILY/LANGUAGES`, a hub id, or local files: one (json, jsonl, csv, tsv, parquet, also .gz), a folder,
    a pattern (`data/*.jsonl`, `{a,b}.jsonl`), or one for each language (`data/{language}.jsonl`)."""
    limit: int | None = Field(None, ge=1)
    """Rows used of the whole set, taken from its languages equally; null: all."""
    format: RowFormat | None = None
    """Format of the rows; null: detected from the first row."""
    fields: dict[RowField, str] = Field(default_factory=dict)
    """Field paths, what a format reads -> where the rows have it: `{instruction: question, output: answers.0.text}`."""
    language: LanguageTag | None = None
    """Language of all rows, as a tag, a code or an English name; null: from `{language}` in the file's name, else the
    rows' `language` field, else a name that is a language (`es.jsonl`), else und."""
    config: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    filters: Filters = Filters()
    """Rows to leave out or to clean."""
    parallel: Literal["id", "rows"] | None = None
    """What makes rows of several languages one group: an equal `id`, or the same place in each language's order."""
    system: Literal["refuse", "fold"] = "refuse"
    """Where the model's chat template has no place for a system prompt: leave the row out, or put the prompt before the
    user's text."""
    # Public sets hold a few such rows (Alpaca 4 empty answers in its first 3,000); a wrong field breaks nearly all.
    max_broken_share: Share = 0.01
    """The run fails when a larger share of the rows is broken; up to it they are left out, counted and shown."""


class StrategySpec(Section):
    """One strategy as the study file names it; its own options are checked by its class."""

    kind: str
    """Registered name of the strategy."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The strategy's own options."""
    training: TrainingOverrides = TrainingOverrides()
    """Training options for cells with this strategy."""
    name: Name | None = None
    """Name in tables; needed where two cells would share one."""


class StrategyChoice(Section):
    """What the file lists under `strategies`: one strategy, or a composition applied in order.

    Written `plain`, `{lora: {rank: 16}}`, or a list of these for a composition. The reserved options
    `training` and `name` inside a strategy's options are lifted into the spec.
    """

    parts: tuple[StrategySpec, ...] = Field(min_length=1)
    """The composed strategies, in order."""

    @model_validator(mode="before")
    @classmethod
    def _from_file_form(cls, value: Any) -> Any:
        if isinstance(value, dict) and "parts" in value and len(value) == 1:
            return value
        entries = value if isinstance(value, (list, tuple)) else [value]
        return {"parts": [_spec_from_file_form(entry) for entry in entries]}

    @property
    def label(self) -> str:
        """The name in tables: the given one, else the strategies' names joined by `+`."""
        given = [part.name for part in self.parts if part.name is not None]
        return given[0] if given else "+".join(part.kind for part in self.parts)

    def with_option(self, place: int, option: str, value: Any) -> StrategyChoice:
        """Return the same choice with one option of the strategy at `place` set, named after its value."""
        part = self.parts[place]
        one = part.model_copy(
            update={"options": {**part.options, option: value}, "name": f"{self.label}-{value}"}
        )
        # The name of a part is the whole composition's, so no other part may keep one.
        others = [
            own.model_copy(update={"name": None}) if number != place else one
            for number, own in enumerate(self.parts)
        ]
        return self.model_copy(update={"parts": tuple(others)})

    @property
    def is_mixed(self) -> bool:
        """Whether this is the baseline of one phase over the union of all phases' data."""
        return any(part.kind == MIXED for part in self.parts)


MIXED = "mixed"
PLAIN = "plain"


def _spec_from_file_form(entry: Any) -> Any:
    if isinstance(entry, str):
        return {"kind": entry}
    if isinstance(entry, dict) and len(entry) == 1:
        ((kind, options),) = entry.items()
        options = {} if options is None else options
        if isinstance(kind, str) and isinstance(options, dict):
            own = {key: option for key, option in options.items() if key not in ("training", "name")}
            lifted = {key: options[key] for key in ("training", "name") if key in options}
            return {"kind": kind, "options": own, **lifted}
    raise ValueError(f"write a strategy as NAME or {{NAME: {{option: value}}}}, not {entry!r}")


# A data set that is written as its source alone where the rest is default.
_OptionalSource = Annotated[
    DataSource | None,
    BeforeValidator(
        lambda value: {"source": value} if isinstance(value, str) else value,
        json_schema_input_type=str | DataSource | None,
    ),
]


class PhaseData(DataSource):
    """A data set of a phase: a column of the grid, with strategies of its own."""

    english: _OptionalSource = None
    """English rows, this set's parallel or any others, from which english_replay and generative_replay draw by default:
    a source, or a data set of its own, such as the same file with the `fields` that hold English."""
    strategies: tuple[StrategyChoice, ...] = ()
    """Strategies for this set only, added to the phase's."""


class Phase(Section):
    """One phase: either trained on each of its data sets, or given as a checkpoint."""

    name: Name
    """Name of the phase, as `paths` and records use it."""
    data: dict[Name, PhaseData] = Field(default_factory=dict)
    """The phase's data sets by name; each is a column of the grid."""
    checkpoint: Text | None = None
    """A finished model that stands for this phase (first phase only): hub id, folder or embedded."""
    instructions: _OptionalSource = None
    """With a checkpoint: the data set that stands for its unknown instructions in DES; null: DES is null."""
    strategies: tuple[StrategyChoice, ...] = ()
    """Strategies applied on every data set of the phase; none given: plain, where no set has its own."""
    training: TrainingOverrides = TrainingOverrides()
    """Training options of this phase."""


class EvaluationTask(Section):
    """One task of the evaluation; written as its name alone where the rest is default."""

    task: Text
    """`worldbook` (both families), `worldbook:lookup`, `worldbook:counting`, `suite:NAME` (what a suite has for this
    ability), a task of lingraft's own, a harness task, or a YAML file."""
    name: Name | None = None
    """Name in tables and records; null: the task's own."""
    language: LanguageTag | None = None
    """BCP-47 tag; needed under language_ability for a task that is not worldbook's or a suite's."""
    data: Text | None = None
    """Local json or jsonl file that stands for a task's data set; its rows have that set's fields, or `fields` makes
    them."""
    fields: dict[str, Text] = Field(default_factory=dict)
    """Field expressions, name in the task's data -> Jinja over a row of `data`: `{number: (label + 1) | string}`."""
    rows: Text | None = None
    """Jinja expression over a row of `data` and `task`, the harness task's name: whether it is used; null: all are."""
    cluster: Text | None = None
    """Jinja expression over an item's fields, equal for items that share content; null: as the task says, or alone."""
    metric: str | None = None
    """The harness metric that is the task's score; null: its first one. Must lie in [0, 1]."""
    filter: Text | None = None
    """The harness filter that answers go through; null: the task's first one."""
    limit: int | None = Field(None, ge=1)
    """Items used (worldbook: per family and language; a group: per task of it); null: all, worldbook: 100."""
    without: tuple[Name, ...] = ()
    """Of `suite:NAME`: tasks of the suite that are left out."""
    sample: int | None = Field(None, ge=0)
    """Seed by which `limit` items are drawn, the same in sets of equal length; null: the first ones are used."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer generated; null: the task's own (worldbook: enough for its longest answer)."""

    @model_validator(mode="before")
    @classmethod
    def _from_file_form(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value


class JudgeChoice(Section):
    """The model that scores AlpacaEval's answers, behind an OpenAI-compatible endpoint.

    Its key is read from LINGRAFT_JUDGE_KEY, else from OPENAI_API_KEY.
    """

    url: Text
    """What stands before /chat/completions, such as https://api.openai.com/v1."""
    model: Text
    """The judge, as the endpoint names it."""
    both_orders: bool = True
    """Show each pair of outputs both ways; false: one way only, for half the cost."""
    logprobs: bool = True
    """Weigh verdicts by the probabilities of their letters, where the endpoint reports them."""
    max_tokens: int = Field(8, ge=1)
    """Tokens that the judge may write."""
    price_in: float | None = Field(None, ge=0)
    """Price of a million tokens read; with `price_out`."""
    price_out: float | None = Field(None, ge=0)
    """Price of a million tokens written; with `price_in`."""
    budget: float | None = Field(None, ge=0)
    """What the verdicts on one model may cost; needs the prices."""
    at_once: int = Field(4, ge=1)
    """Requests under way at a time."""
    timeout: float = Field(60.0, gt=0)
    """Seconds without a whole reply after which a request is lost."""
    attempts: int = Field(6, ge=1)
    """How often one request is sent at most."""

    @model_validator(mode="after")
    def _prices_go_together(self) -> JudgeChoice:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("`price_in` and `price_out` belong together: give both")
        if self.budget is not None and self.price_in is None:
            raise ValueError("`budget` needs `price_in` and `price_out`, the prices of a million tokens")
        return self


class ServerChoice(Section):
    """A server that generates in place of transformers, by OpenAI's completions: one that runs, or one to start."""

    server: Text | None = None
    """URL before /completions of a server that runs, such as http://localhost:8000/v1."""
    command: Text | None = None
    """Line that starts a server of a model, such as `vllm serve {model} --port {port}`; it is ended after each."""
    model: Text | None = None
    """The model's name at the server, where `{model}` is its folder; null: the one that it lists."""
    version: Text | None = None
    """Engine and version for records and fingerprints, such as `vllm 0.33.0`; null: as the server or program says."""
    likelihoods: Literal["auto", "server", "transformers"] = "auto"
    """What scores likelihood tasks; auto: a server that runs and offers `echo` with `logprobs`, else transformers."""
    at_once: int = Field(64, ge=1, le=1024)
    """Requests under way at a time."""
    timeout: float = Field(600.0, gt=0)
    """Seconds without a whole reply after which a request is lost."""
    attempts: int = Field(6, ge=1)
    """How often one request is sent at most."""
    start_timeout: float = Field(1800.0, gt=0)
    """Seconds within which a server that was started must answer."""

    @model_validator(mode="after")
    def _one_server(self) -> ServerChoice:
        if (self.server is None) == (self.command is None):
            raise ValueError(
                "give `server`, the URL of a server that runs, or `command`, the line that starts one"
            )
        for part in ("{model}", "{port}"):
            if self.command is not None and part not in self.command:
                raise ValueError(
                    f"`command` must hold {part}, such as: vllm serve {{model}} --port {{port}} (here {self.command!r})"
                )
        try:
            words = shlex.split(self.command or "x")
        except ValueError as error:
            raise ValueError(f"`command` cannot be split into words ({error}): {self.command!r}") from None
        if not words:
            raise ValueError("`command` is empty")
        return self


def _named_engine(value: Any) -> Any:
    """Refuse the name of an engine that is none, or that is none any more."""
    if not isinstance(value, str) or value in ("transformers", "generate"):
        return value
    if value == "vllm":
        raise ValueError(
            "vLLM runs as a server of its own now; write {command: 'vllm serve {model} --port {port}'}, or "
            "{server: URL} for one that you have started (--backend command='...', --backend server=URL)"
        )
    raise ValueError(
        "choose transformers, generate, {server: URL} or {command: LINE} (--backend server=URL, "
        "--backend command='...')"
    )


# `[...]`: parts of places that messages leave out.
Backend = Annotated[
    Annotated[Literal["transformers", "generate"], Tag("[name]")] | Annotated[ServerChoice, Tag("[section]")],
    Discriminator(lambda value: "[name]" if isinstance(value, str) else "[section]"),
    BeforeValidator(_named_engine),
]

# What of a judge does not change its verdicts.
UNCOMPARED_JUDGE_FIELDS = {"price_in", "price_out", "budget", "at_once", "timeout", "attempts"}


class Evaluation(Section):
    """What is evaluated after each phase."""

    task_ability: tuple[EvaluationTask, ...] = (EvaluationTask(task="worldbook"),)
    """English tasks; task ability is the mean over their scores."""
    language_ability: tuple[EvaluationTask, ...] = (EvaluationTask(task="worldbook"),)
    """Tasks in the study's languages; language ability is the mean over trained languages of the mean over tasks."""
    languages: tuple[LanguageTag, ...] = ()
    """BCP-47 tags that are evaluated besides those trained; each has a column, and they have a mean of their own."""
    data_dir: Text | None = None
    """Folder of local files that stand for the data sets of suites; what is missing there comes from the hub."""
    batch_size: int | None = Field(None, ge=1)
    """Most answers generated together; null: as many as `tokens_per_batch` allows."""
    tokens_per_batch: int = Field(32768, ge=1)
    """Tokens of a batch, padding and the longest allowed answers included: its keys and values fill the memory."""
    part: Literal["all", "selection", "report"] = "all"
    """Half of each task's items that is asked: what is chosen on `selection` is reported on `report`. Items of one
    cluster are in the same half, in every language; worldbook has splits of its own, and `all` is its report split."""
    part_seed: int = Field(0, ge=0)
    """Seed by which items are divided into halves; worldbook's splits do not depend on it."""
    repeats: int = Field(1, ge=1)
    """Times that generating tasks run, each in other batches (or by other draws): the noise floor of their scores."""
    backend: Backend = "transformers"
    """What generates answers: transformers (on a GPU by continuous batching), generate (never by that), or a server."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Weights and arithmetic of a model that is evaluated; auto: as in Training."""
    apply_chat_template: bool = True
    """Put harness prompts through the model's chat template."""
    judge: JudgeChoice | None = None
    """Who scores the answers of `alpaca_eval`; null: that task is refused."""

    @property
    def worldbook_split(self) -> str:
        """The split of worldbook that is asked."""
        return "selection" if self.part == "selection" else "report"

    @property
    def idle_fields(self) -> set[str]:
        """Fields that decide nothing as they are, which fingerprints leave out."""
        return {"part", "part_seed"} if self.part == "all" else set()


class PathStep(Section):
    """One phase of an explicitly listed path."""

    phase: Name
    """Name of the phase."""
    data: Name
    """Name of the phase's data set."""
    strategy: StrategyChoice = StrategyChoice(parts=(StrategySpec(kind=PLAIN),))
    """The strategy of this step."""


class PromptSource(Section):
    """Prompts that drift is measured on; written as the source alone where the rest is default."""

    source: Text
    """A .txt file of one prompt a line, an MT-Bench file, rows with `prompt` alone, or any data source."""
    language: LanguageTag | None = None
    """Language of all, as a tag, a code or an English name; null: as the rows say."""
    limit: int | None = Field(None, ge=1)
    """The first so many; null: all."""

    @model_validator(mode="before")
    @classmethod
    def _from_file_form(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Study(Section):
    """A grid of phases x strategies x seeds."""

    name: Name
    """Name of the run folder, and title of the report."""
    model: Text | None = None
    """The base: `embedded:NAME`, a hub id (`ID@REVISION`) or a folder. Null: the first phase is a checkpoint."""
    phases: tuple[Phase, ...] = Field(min_length=2)
    """The phases in order."""
    paths: tuple[tuple[PathStep, ...], ...] = ()
    """Cells listed one by one in place of the full product."""
    training: Training = Training()
    """Training options of every phase."""
    encoder: Text = "embedded"
    """Sentence encoder of DES."""
    held_out: int = Field(100, ge=0)
    """Groups per data set that are never trained on; their answers' loss is measured."""
    measures: tuple[Text, ...] = ("des", "mpd")
    """Measures taken: des, mpd (from Phase 1), mpd_pair (the paper's MPD of a data pair), drift (of hidden states)."""
    prompts: tuple[PromptSource, ...] = ()
    """Prompts that drift is measured on; none: the instructions of the held-out rows."""
    evaluate: Evaluation = Evaluation()
    """Tasks."""
    limits: dict[LimitName, Limit] = {}
    """What may be lost of a score in [0, 1], by ability, language or task: `{task_ability: 0.01, de: 0.02}`."""
    contamination: float | None = Field(0.05, ge=0, le=1)
    """Tasks of which a larger share of the items stands in the training rows are warned of; null: not looked for."""
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """Every phase is trained once per seed, a whole number from 0 to 2 ** 32 - 1."""
    keep: Literal["all", "final", "none"] = "final"
    """Checkpoints that stay on disk, with the states behind them: all, the cells' last ones (and Phase 1), or none."""
    trust_remote_code: bool = False
    """Run code that a model or a YAML task brings along. Leave it off unless you have read that code."""
