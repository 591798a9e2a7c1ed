"""What trackers (TensorBoard, trackio, Weights & Biases, ...) are given: a run for each training, and readable names.

The Trainer's own callbacks (`report_to`) do the work; here they get the run's name, their place and the names of what
is logged, and are closed however the training ends, so that the next one of the same process is a run of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import Trainer
from transformers.integrations import integration_utils

RUNS: Final = "runs"  # in the workplace of a training, which is kept as its folder `trackers`
# By the Trainer's names. The first four are logged after each step, the last with the summary at the end.
_NAMES: Final = {
    "loss": "loss_nats_per_supervised_token",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "epoch": "pass_over_the_data",
    "train_loss": "mean_loss_nats_per_supervised_token",
}
_TOKENS: Final = "tokens"  # real ones, without padding, since the training began


@dataclass(frozen=True)
class TrackedRun:
    """What a training is called in trackers.

    Attributes:
        project: What groups runs, such as the study's name.
        name: Of the run, such as the label of what is trained.
    """

    project: str
    name: str


@contextmanager
def tracked(trainer: Trainer, run: TrackedRun, folder: Path, tokens_after: Sequence[int]) -> Iterator[None]:
    """Let a trainer's trackers know the run while the block runs, and close them at its end.

    Args:
        trainer: With the callbacks of its `report_to`.
        run: What the training is called.
        folder: Where trackers that write files put them, unless the user's environment says where.
        tokens_after: Real tokens trained on after so many steps.
    """
    kinds = tuple(integration_utils.INTEGRATION_TO_CALLBACK[name] for name in trainer.args.report_to or ())
    own: list[Any] = (
        [one for one in trainer.callback_handler.callbacks if isinstance(one, kinds)] if kinds else []
    )
    for one in own:
        one.on_log = _with_readable_names(one.on_log, tokens_after)
        if hasattr(one, "logging_dir"):  # TensorBoard's, which calls a run by its folder
            shared = one.logging_dir and Path(one.logging_dir) / _as_folder(run.project)
            one.logging_dir = str((shared or folder) / _as_folder(run.name))
        if hasattr(one, "_wandb") and trainer.is_world_process_zero():
            place = Path(os.environ.get("WANDB_DIR", folder))
            place.mkdir(parents=True, exist_ok=True)
            # Not by the Trainer: in one process it would put every run where the first one is.
            one._wandb.init(
                project=os.environ.get("WANDB_PROJECT", run.project), name=run.name, dir=str(place)
            )
    try:
        yield
    finally:
        if (
            trainer.is_world_process_zero()
        ):  # others opened none, and trackio refuses to close what is not open
            for one in own:
                _close(one)


def _with_readable_names(on_log: Callable[..., Any], tokens_after: Sequence[int]) -> Callable[..., Any]:
    """Return a callback's method that is given what was logged by names that say what it is, with the tokens."""

    def call(
        args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **others: Any
    ) -> Any:
        readable = {_NAMES.get(name, name): value for name, value in (logs or {}).items()}
        if logs is not None and "loss" in logs:
            readable[_TOKENS] = tokens_after[state.global_step]
        return on_log(args, state, control, logs=readable, **others)

    return call


def _close(callback: Any) -> None:
    """Close what a tracker holds open: the Trainer closes some of them, and none of a training that failed."""
    writer, wandb = getattr(callback, "tb_writer", None), getattr(callback, "_wandb", None)
    trackio = getattr(callback, "_trackio", None)
    if writer is not None:
        writer.close()
        callback.tb_writer = None
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    if trackio is not None and getattr(callback, "_initialized", False):
        trackio.finish()
        callback._initialized = False


def _as_folder(name: str) -> str:
    """Return a name as one folder, which a tracker shows: slashes would make folders of it."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]+', "-", name).strip(" .")[:100] or "training"
