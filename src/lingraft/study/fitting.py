"""Whether what a study trains fits this machine at all, by a model's config.json, before its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lingraft.config.checks import trained_with
from lingraft.config.paths import user_path
from lingraft.config.schema import StrategyChoice, StrategySpec, Study, Training
from lingraft.errors import ConfigError, LingraftError
from lingraft.models.compute import compute_for
from lingraft.models.embedded import embedded_folder
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.models.shape import ModelShape
from lingraft.stage import StageSpec
from lingraft.strategies.composition import build
from lingraft.study.checks import place_of
from lingraft.study.grid import cells_of
from lingraft.study.stages.job import shape_in
from lingraft.study.stages.train import Train, held_bytes, setup_of
from lingraft.study.unused import size_text
from lingraft.train.memory_plan import (
    SAFE,
    Cut,
    LargestBatch,
    Setup,
    free_host,
    free_memory,
    host_memory,
    total_host,
    total_memory,
    training_memory,
)
from lingraft.train.phase import with_resolved_precision
from lingraft.train.processes import Processes

_LORA = StrategyChoice(parts=(StrategySpec(kind="lora"),))
_MOST_PROCESSES = 64  # that are tried


def trainings_of(study: Study) -> Iterator[tuple[str, StrategyChoice, Training]]:
    """Yield each phase's name with each of its strategies and their options of training, once."""
    met = []
    for cell in cells_of(study):
        for step in cell.steps[-1:] if cell.is_mixed else cell.steps:
            phase = next(one for one in study.phases if one.name == step.phase)
            training = trained_with(step.strategy, phase.training.apply_to(study.training))
            one = step.phase, step.strategy, training
            if one not in met:
                met.append(one)
                yield one


def check_divided(study: Study) -> None:
    """Refuse strategies beside which no weights can be divided, before anything is read.

    Raises:
        ConfigError: One holds weights in 4 bits.
    """
    for step in (step for cell in cells_of(study) for step in cell.steps):
        for part in build(step.strategy).parts:
            if not part.can_be_divided:
                raise ConfigError(
                    f"{place_of(step)}: {part.kind!r} with base: nf4 holds weights in 4 bits, which --sharded cannot "
                    "divide. Leave --sharded out (the whole model takes about half a byte for a weight), or `base`."
                )


def check_memory(study: Study, processes: Processes) -> None:
    """Refuse a study that trains what this machine cannot hold, before anything of a model but its config.json is read.

    Raises:
        ConfigError: Weights, gradients and moments alone do not fit; with what would fit.
    """
    first = study.phases[0]
    name = first.checkpoint or study.model
    folder = None if name is None else configuration_of(name)
    if folder is None:
        return
    problems: dict[str, None] = {}
    for phase, choice, training in trainings_of(study):
        problem = misfit(
            f"phase {phase!r}, strategy {choice.label!r}",
            folder,
            choice,
            with_resolved_precision(training),
            processes,
            trust_remote_code=study.trust_remote_code,
        )
        if problem is not None:
            problems[problem] = None
    if problems:
        raise ConfigError("\n".join(problems))


def misfit(
    place: str,
    folder: Path,
    choice: StrategyChoice,
    training: Training,
    processes: Processes,
    *,
    trust_remote_code: bool = False,
) -> str | None:
    """Return what is said of a training that no machine like this holds, with what would fit; None: it may fit.

    On a processor only what is certain counts: weights, gradients, moments and what strategies hold, against all memory
    and swap space there are. What is free changes while other programs run, and activations can be cut; about these a
    run warns. An accelerator's memory is its own: there the smallest micro-batch counts as well.

    Args:
        place: What trains, for the message.
        folder: Of the model; its config.json is read.
        choice: The strategies.
        training: Its options, the precision resolved.
        processes: That train it.
        trust_remote_code: Run Python code that the model brings along.
    """
    shape = shape_in(folder, choice, trust_remote_code=trust_remote_code)
    compute = compute_for(training.precision)
    if shape is None:
        return None
    held = held_bytes(build(choice), shape, compute)
    cut = Cut(checkpointing=training.gradient_checkpointing is not False)
    setup = setup_of(build(choice), training, compute, cut, processes)
    host = host_memory(shape, setup, saves=training.saves)
    if not setup.on_processor and host.certain > total_host():
        return (
            f"{place}: loading and saving {shape.parameters / 1e9:.2f} billion parameters in float32 takes "
            f"{size_text(host.certain)} of the machine's own memory, and there are {size_text(total_host())} with swap "
            "space. Take a smaller model or add swap space."
        )
    total = total_memory(compute)
    needed = _least_bytes(shape, setup, held)
    if needed <= total:
        return None
    adapted = adapted_shape(folder, shape, trust_remote_code=trust_remote_code)
    return refusal(place, training, shape, adapted, setup, held, needed, total)


def refusal(
    place: str,
    training: Training,
    shape: ModelShape,
    adapted: ModelShape | None,
    setup: Setup,
    held: int,
    needed: int,
    total: int,
) -> str:
    """Return the sentence about what does not fit, with what would."""
    devices = "" if setup.on_processor else " on each device"
    message = (
        f"{place}: training {shape.trained / 1e9:.2f} of {shape.parameters / 1e9:.2f} billion parameters in "
        f"{setup.precision} takes at least {size_text(needed)} of memory{devices}, and there are {size_text(total)}."
    )
    row = LargestBatch(1, training.max_length, training.max_length)
    room = SAFE * total
    others = _others(shape, adapted, setup, lambda own, one: _bytes(own, one, row, held) <= room)
    sizes = [(_bytes(own, one, row, held), words) for words, own, one in others]
    found = [(size, words) for size, words in sizes if size <= room]
    if not found:
        least = "".join(
            f" The least would be {words} ({size_text(size)})." for size, words in sorted(sizes)[:1]
        )
        return f"{message} Nothing fits here.{least} Take a smaller model or a larger machine."
    return (
        f"{message} What would fit: "
        + ", or ".join(f"{words} ({size_text(size)})" for size, words in found)
        + "."
    )


def adapted_shape(folder: Path, shape: ModelShape, *, trust_remote_code: bool) -> ModelShape | None:
    """Return a model's shape with adapters; None: not known."""
    return shape if shape.ranks else shape_in(folder, _LORA, trust_remote_code=trust_remote_code)


def _others(
    shape: ModelShape, adapted: ModelShape | None, setup: Setup, fits: Callable[[ModelShape, Setup], bool]
) -> Iterator[tuple[str, ModelShape, Setup]]:
    """Yield other ways to train a model, the nearest to what was asked first: what to write, sizes and setup."""
    again = replace(setup, checkpointing=True, micro_batches=2)
    if not setup.checkpointing:
        yield "training.gradient_checkpointing=true", shape, again
    pure = replace(again, precision="bf16_pure")
    if setup.precision != "bf16_pure":
        yield "training.precision=bf16_pure", shape, pure
    small = replace(pure, optimizer="adamw_8bit")
    if setup.optimizer == "adamw":
        yield "training.optimizer=adamw_8bit training.precision=bf16_pure", shape, small
    with_small = " with training.optimizer=adamw_8bit training.precision=bf16_pure"
    for words, one in (("", again), (with_small, small)) if not setup.on_processor else ():
        count = 2 * setup.processes if setup.sharded else 2  # a processor's processes share its memory
        while count <= _MOST_PROCESSES:
            own = replace(one, processes=count, sharded=True)
            if fits(shape, own):
                yield f"--processes {count} --sharded{words}", shape, own
                break
            count *= 2
    if adapted is not None and not shape.ranks:
        yield "the strategy lora", adapted, again
    if adapted is not None and not adapted.in_four_bits and not setup.sharded:  # 4 bits are not divided
        small_base = replace(adapted, in_four_bits=int(adapted.matrices - adapted.trained_matrices))
        yield "the strategy lora with base: nf4 (pip install 'lingraft[qlora]')", small_base, again


def _least_bytes(shape: ModelShape, setup: Setup, held: int) -> int:
    """Return the bytes without which nothing trains, on each device; of a processor those of all processes together."""
    plan = training_memory(shape, LargestBatch(1, 1, 1), setup, held=held)
    return plan.certain * setup.processes if setup.on_processor else plan.total


def _bytes(shape: ModelShape, setup: Setup, batch: LargestBatch, held: int) -> int:
    plan = training_memory(shape, batch, setup, held=held)
    return plan.total * setup.processes if setup.on_processor else plan.total


def configuration_of(name: str) -> Path | None:
    """Return a folder that holds a model's config.json, of the hub's models that file alone; None: it cannot be had.

    What is wrong with the model is said when it is looked for.
    """
    if name.startswith(EMBEDDED_PREFIX):
        try:
            return embedded_folder(name.removeprefix(EMBEDDED_PREFIX))
        except LingraftError:
            return None
    folder = user_path(name)
    if folder.exists():
        return folder if (folder / "config.json").is_file() else None
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.partition("@")
    try:
        return Path(hf_hub_download(repository, "config.json", revision=revision or None)).parent
    except Exception:  # hub, http and cache errors share no base class
        return None


def fitting_line(stages: Sequence[StageSpec]) -> str:
    """Return the plan of what is still to be done, in one line."""
    trainings = [one for one in stages if isinstance(one, Train)]
    sizes = [size for one in stages if (size := one.needs.memory_bytes) is not None]
    line = f"Plan: {len(stages)} stages, {len(trainings)} of them trainings"
    if sizes:
        free = free_memory(compute_for())
        line += (
            f"; at most about {size_text(max(sizes))} of memory at a time, of {size_text(free)} that are free"
        )
    hosts = [host.total for one in trainings if (host := one.host) is not None]
    if hosts:
        line += f"; at most {size_text(max(hosts))} of the machine's own memory, of {size_text(free_host())}"
    ways = {one.least_cut for one in trainings}
    if ways:
        pieces = max(one.pieces for one in ways)
        line += "; steps are computed " + ("whole" if pieces == 1 else f"in up to {pieces} pieces")
        if any(one.checkpointing for one in ways):
            line += ", activations twice (checkpointing)"
    return f"{line}."
