"""`lingraft.adapt`, `lingraft.rescue` and `lingraft.check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lingraft.adapt import check as checking
from lingraft.adapt import rescue as rescuing
from lingraft.adapt.adapt import Expected, run_adaptation
from lingraft.adapt.checked import Checked
from lingraft.adapt.delivery import Delivery
from lingraft.adapt.promise import EXIT_CODES
from lingraft.adapt.rescue import Rescued
from lingraft.adapt.result import Adapted
from lingraft.api.arguments import names_given, options_as_arguments
from lingraft.api.printed import Printed
from lingraft.config.adaptation import Adaptation, adaptation_of, load_adaptation, name_of_adapted
from lingraft.config.paths import path_of
from lingraft.config.schema import DataSource
from lingraft.errors import ConfigError, ModelError, did_you_mean
from lingraft.models.checkpoints import WEIGHT_TYPES
from lingraft.models.loaded import display_name, name_of
from lingraft.report.adaptation import adaptation_table
from lingraft.report.rescue import damage_table, repair_sentence
from lingraft.report.tables import Table
from lingraft.study.evaluation import EvaluationOptions
from lingraft.study.events import Watcher
from lingraft.train.processes import Processes

Called = ParamSpec("Called")
Found = TypeVar("Found")
Result = TypeVar("Result")
_YAML = (".yaml", ".yml")
_OF_EVALUATION = frozenset(one.name for one in fields(EvaluationOptions))


@dataclass(frozen=True, repr=False, kw_only=True)
class AdaptationResult(Printed, Adapted):
    """What `adapt` did; printed, the models between the start and the trained one, and the report on the one kept.

    Attributes:
        answer: `held`, `broken` or `undecided`.
        sentence: The same in words.
        folder: Where the model was written.
        walked: The models that were looked at, on the selection part.
        report: The model that is kept, on the report part, on which nothing was chosen: its losses and its gain.
        sent: What was converted or uploaded, one sentence each.
    """

    sent: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 held, 1 broken, 3 undecided: what `lingraft adapt` exits with."""
        return EXIT_CODES[self.answer]

    def tables(self) -> Sequence[tuple[str, Table]]:
        """Return the walk on the selection part, and the kept model on the report part."""
        return [("On the way, and the model that is kept", adaptation_table(self))]

    def lines(self) -> Sequence[str]:
        """Return the answer, and where the model is."""
        return [self.sentence, f"Model: {self.folder}", *self.sent]


@dataclass(frozen=True, repr=False, kw_only=True)
class RescueResult(Printed, Rescued):
    """What `rescue` did; printed, which parts carry the loss, and the models on the way back."""

    @property
    def exit_code(self) -> int:
        """0 held, 1 broken, 3 undecided: what `lingraft rescue` exits with."""
        return EXIT_CODES[self.adapted.answer]

    def tables(self) -> Sequence[tuple[str, Table]]:
        """Return what each part carries, the walk on the selection part, and the kept model on the report part."""
        found = self.adapted
        return [
            (f"What {found.trained} loses, and with a part of it given back", damage_table(self)),
            ("On the way, and the model that is kept", adaptation_table(found)),
        ]

    def lines(self) -> Sequence[str]:
        """Return the notes, what a repair did, the answer, and where the model is."""
        repaired = [] if self.repair is None else [repair_sentence(self.repair)]
        return [*self.notes, *repaired, self.adapted.sentence, f"Model: {self.adapted.folder}"]


def adapt(
    model: str | Path,
    data: str
    | Path
    | DataSource
    | Mapping[str, Any]
    | Sequence[str | Path | DataSource | Mapping[str, Any]] = (),
    languages: str | Sequence[str] = (),
    max_loss: float | None = None,
    *,
    output: str | Path | None = None,
    runs: str | Path = "runs",
    overwrite: bool = False,
    push: str | None = None,
    private: bool = False,
    gguf: str | None = None,
    processes: Processes | None = None,
    watcher: Watcher | None = None,
    on_expected: Callable[[Expected], None] = lambda _: None,
    **fields_of_adaptation: Any,
) -> AdaptationResult:
    """Teach a model languages, losing no more English than allowed, and write the new model, as `lingraft adapt` does.

    The same call goes on after an interruption.

    Args:
        model: A folder, hub id, `embedded:NAME`, or what an earlier `adapt` wrote; or a YAML file that says all.
        data: Rows to learn from: a file, pattern, folder or hub id, or the fields of a data set; one, or a list.
        languages: Their language, such as `"th"`; one for all, or one for each of `data`.
        max_loss: What may be lost, as a share of the model's own English score, in [0, 1); None: 0.01.
        output: Folder of the new model; None: `adapted/MODEL-LANGUAGES`.
        runs: Folder of all runs.
        overwrite: Replace a model that lingraft wrote into `output`; that of the same run is replaced anyway.
        push: Id on the hub to which the folder is uploaded.
        private: Make that repository a private one.
        gguf: Type of a GGUF file for llama.cpp beside it, such as `q8_0`.
        processes: How many processes train; None: this one.
        watcher: Receives what happens.
        on_expected: Called when everything is checked, before anything is trained; `lines` say what is expected. What
            it raises ends the call.
        **fields_of_adaptation: Further fields, as in the YAML file: `english_data`, `suite`, `tasks` (also as
            `[TAG=]NAME`), `data_dir`, `limit`, `strategy`, `training`, `budget`, `dtype`, `seed`, `trust_remote_code`
            and others.

    Returns:
        The answer (`held`, `broken` or `undecided`) with the models that were looked at; `result.folder` holds the
        model.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong, before anything is trained.
        DiskError: The disk is full; the same call goes on when it is not.
    """
    with options_as_arguments():
        name = str(model) if str(model).endswith(_YAML) else _named("model", model)
        if name.endswith(_YAML):
            given = {"data": data, "languages": languages, "max_loss": max_loss, **fields_of_adaptation}
            named = [key for key, value in given.items() if value or value == 0]
            if named:
                raise ConfigError(f"{name}: is a YAML file, so {', '.join(named)} stand in it.")
            adaptation = load_adaptation(Path(name))
        else:
            unknown = [key for key in fields_of_adaptation if key not in Adaptation.model_fields]
            if unknown:
                raise TypeError(f"adapt() got an unexpected keyword argument {unknown[0]!r}")
            sources = [data] if isinstance(data, (str, Path, DataSource, Mapping)) else data
            if not isinstance(sources, Sequence) or not sources:
                raise ConfigError(f"data {data!r:.80}: name the rows to learn from, such as 'rows.jsonl'.")
            adaptation = adaptation_of(
                name,
                [_source(one) for one in sources],
                names_given("languages", languages),
                max_loss=max_loss,
                **fields_of_adaptation,
            )
        folder = (
            Path("adapted") / name_of_adapted(adaptation) if output is None else path_of(output, "output")
        )
        delivery = Delivery(folder, overwrite=overwrite, repository=push, private=private, gguf=gguf)
        found = run_adaptation(
            adaptation,
            delivery,
            runs=path_of(runs, "runs"),
            watcher=watcher,
            processes=processes,
            on_expected=on_expected,
        )
        sent = tuple(delivery.send())
    return AdaptationResult(
        **{field.name: getattr(found, field.name) for field in fields(Adapted)}, sent=sent
    )


def _named(argument: str, model: object) -> str:
    """Return the name of a model, which has to lie on disk.

    Raises:
        ModelError: It is in memory, or no model at all.
    """
    name = name_of(model)
    if name is None:
        shown = "None" if model is None else display_name(model)
        raise ModelError(
            f"{argument}: {shown} is no folder, hub id or embedded:NAME. A model in memory: save it (save_pretrained) "
            "with its tokenizer, and name the folder."
        )
    return name


def _source(given: str | Path | DataSource | Mapping[str, Any]) -> str | dict[str, Any]:
    if isinstance(given, DataSource):
        return given.model_dump(mode="json", exclude_unset=True)
    return dict(given) if isinstance(given, Mapping) else str(given)


def _from_python(
    function: Callable[Called, Found], models: tuple[str, str], result: Callable[[Found], Result]
) -> Callable[Called, Result]:
    """Return a function that the command line shares as Python calls it.

    One text stands for a list of it, and errors call options as arguments.

    Args:
        function: The function.
        models: Its arguments that name models.
        result: Makes its result one that prints.
    """
    shape = signature(function)

    @wraps(function)
    def called(*arguments: Called.args, **options: Called.kwargs) -> Result:
        bound = shape.bind(*arguments, **options)
        given = bound.arguments
        for name in models:
            given[name] = _named(name, given[name])
        for name in {"languages", "tasks"} & given.keys():
            given[name] = names_given(name, given[name])
        for name in {"output", "runs", "folder"} & given.keys():
            given[name] = path_of(given[name], name)
        if given.get("max_loss") is None:  # the function's own, then
            given.pop("max_loss", None)
        if not isinstance(given.get("max_loss", 0), (int, float)):
            raise ConfigError(
                f"max_loss {given['max_loss']!r}: is a share of the score before, from 0 to below 1."
            )
        for name, least in {"steps": 1, "groups": 0, "seed": 0}.items():
            count = given.get(name, least)
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ConfigError(f"{name} {count!r}: must be a whole number from {least} on.")
        if given.get("dtype") not in (None, *WEIGHT_TYPES):
            raise ConfigError(f"dtype {given['dtype']!r}: {did_you_mean(str(given['dtype']), WEIGHT_TYPES)}")
        with options_as_arguments():
            EvaluationOptions(**{key: value for key, value in given.items() if key in _OF_EVALUATION})
            return result(function(*bound.args, **bound.kwargs))

    return called


def _rescued(found: Rescued) -> RescueResult:
    return RescueResult(**{field.name: getattr(found, field.name) for field in fields(Rescued)})


def _checked(found: Checked) -> Checked:
    return found


rescue = _from_python(rescuing.rescue, ("before", "after"), _rescued)
check = _from_python(checking.check, ("model", "against"), _checked)
