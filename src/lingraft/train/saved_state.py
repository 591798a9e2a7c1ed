"""What a resumable checkpoint holds of the training: written beside it, read on any number of processes.

    checkpoint-STEP/shard-RANK-model-*.safetensors    trained weights and the optimiser's moments: a process's pieces
                   /optimizer.json                    the step, and the optimiser's numbers of each parameter

torch's distributed checkpoint reads the pieces, whatever number of processes wrote them. All is safetensors and JSON.
The learning rates follow from the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from lingraft.errors import in_one_line
from lingraft.records import from_json, read_json, to_json, write_json_atomically
from lingraft.train.sharding import own_piece

OPTIMIZER = "optimizer.json"
_WEIGHTS, _MOMENTS = "weights.", "moments."
_SCALES = ".scales"
_BLOCK = 256  # weights that share a scale in torchao's moments of 8 bits
_FORMAT = 1
_SHARE_OF_FREE = 0.5
_BYTES_AT_ONCE = 1 << 30  # a file is made in memory before it is written


@dataclass(frozen=True, slots=True)
class _OptimizerState:
    """What the files of tensors do not hold.

    Attributes:
        format: Of this file.
        step: Optimiser steps done.
        moments: By parameter the names of its moments, which have its shape, and of their scales.
        numbers: By parameter what else its state holds; whole numbers were no tensors.
    """

    format: int
    step: int
    moments: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, Mapping[str, int | float]]


class Saving:
    """Writes checkpoints while training goes on: one at a time, from a copy in the processor's memory.

    Where the copy would take more than half of the memory that is free, training waits until they are written.

    Args:
        processes: How many write together, each with an object like this one.
    """

    def __init__(self, processes: int) -> None:
        # Its own, since training talks at the same time, and over gloo, since the copy is no accelerator's.
        self._group = dist.new_group(backend="gloo") if processes > 1 else None
        self._processes = processes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._pending: Future[None] | None = None

    def begin(self, tensors: Mapping[str, Tensor], folder: Path, then: Callable[[], None]) -> None:
        """Copy tensors and begin to write them; every process calls this, after `finish`.

        Args:
            tensors: Whole ones are written by whoever gives them.
            folder: Exists.
            then: Called in the end, when all processes have written.
        """
        # Of all processes together, which are one machine's.
        everywhere = sum(one.numel() * one.element_size() for one in tensors.values())
        has_room = everywhere <= _SHARE_OF_FREE * psutil.virtual_memory().available
        pieces = {name: _piece(one, copied=has_room) for name, one in tensors.items()}
        files = files_of(tensors, _BYTES_AT_ONCE, self._processes)

        def write() -> None:
            if self._group is None:
                last = max(files.values(), default=0)
                for number in range(1, last + 1):
                    part = {
                        name: _floats(one).contiguous()
                        for name, one in pieces.items()
                        if files[name] == number
                    }
                    save_file(part, folder / f"shard-00001-model-{number:05d}-of-{last:05d}.safetensors")
            else:
                writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
                write_pieces(tensors, writer, self._group, pieces)
            then()

        self._pending = self._thread.submit(write)
        if not has_room:
            wait([self._pending])

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: A file could not be written, here or in another process.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def write_pieces(
    tensors: Mapping[str, Tensor],
    writer: HuggingFaceStorageWriter,
    group: dist.ProcessGroup | None = None,
    pieces: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what each process gives, and return when all have.

    Args:
        tensors: Say what is written, and where it lies in the whole.
        writer: Of files.
        group: Of processes; None: all.
        pieces: This process's own, where they are other ones than the tensors hold; None: those.

    Raises:
        OSError: A file could not be written, here or in another process.
    """
    with _errors_of_all():
        save(dict(tensors), storage_writer=writer, process_group=group, planner=_OwnPieces(pieces))


class _OwnPieces(DefaultSavePlanner):
    """Hands out a process's pieces when they are written, and only then makes float32 numbers of those of 8 bits."""

    def __init__(self, pieces: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self._pieces = pieces

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return a tensor of this process's."""
        return super().lookup_object(index) if self._pieces is None else _floats(self._pieces[index.fqn])


def _piece(tensor: Tensor, *, copied: bool) -> Tensor:
    """Return what this process holds of a tensor, itself or a copy in the processor's memory."""
    piece = own_piece(tensor).detach()
    if not copied:
        return piece
    own: Any = piece
    if _scales_of(piece) is not None:
        made: Tensor = type(own)(
            *(one.to("cpu", copy=True) for one in (own.codes, own.scale, own.qmap)), own.signed
        )
        return made
    return piece.to("cpu", copy=True)


def _scales_of(tensor: Tensor) -> Tensor | None:
    """Return the scales of the blocks of a tensor of torchao's codes; None: it is no such one."""
    scales = getattr(tensor, "scale", None)
    return scales if isinstance(scales, Tensor) else None


def _floats(tensor: Tensor) -> Tensor:
    """Return a tensor's numbers: in float32 of one of 8 bits, else as they are."""
    return tensor if _scales_of(tensor) is None else tensor.dequantize()


@contextmanager
def _errors_of_all() -> Iterator[None]:
    """Raise what went wrong in any process as an OSError: torch's own no `except Exception` would catch."""
    try:
        yield
    except CheckpointException as error:
        raise OSError("; ".join(in_one_line(own) for own, _ in error.failures.values())) from error


def files_of(tensors: Mapping[str, Tensor], most_bytes: int, processes: int = 1) -> dict[str, int]:
    """Return the number of each tensor's file, from 1, by name.

    Args:
        tensors: By name, in the order of the files.
        most_bytes: Of a file, unless one tensor alone has more.
        processes: That divide each tensor; each has files of its own.
    """
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size() // processes
        if size and size + own > most_bytes:
            number, size = number + 1, 0
        files[name] = number
        size += own
    return files


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Return trained weights and the optimiser's moments under the names of a checkpoint; divided ones stay divided.

    Args:
        model: Its trained parameters are taken.
        optimizer: None: no moments.
    """
    trained = {one: name for name, one in model.named_parameters() if one.requires_grad}
    found = {f"{_WEIGHTS}{name}": parameter.detach() for parameter, name in trained.items()}
    for parameter, name in trained.items() if optimizer is not None else ():
        assert optimizer is not None
        for key, value in _moments_of(optimizer.state[parameter]).items():
            found[f"{_MOMENTS}{name}.{key}"] = value
    return found


def _moments_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a parameter's moments; of undivided ones of 8 bits also the scales of their blocks.

    With these the codes are found again bit for bit; the largest number of a block alone does not tell its scale.
    Moments of 8 bits become float32 numbers when they are written: all at once would take four times their memory.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            found[key] = value.detach()
            scales = _scales_of(value)
            if scales is not None:
                found[f"{key}{_SCALES}"] = scales
    return found


def write_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, step: int, folder: Path
) -> None:
    """Write what `training_tensors` does not return; the first process does."""
    moments: dict[str, tuple[str, ...]] = {}
    numbers: dict[str, dict[str, int | float]] = {}
    for name, parameter in model.named_parameters() if optimizer is not None else ():
        assert optimizer is not None
        state = optimizer.state.get(parameter, {})
        tensors = _moments_of(state).keys()
        moments[name] = tuple(sorted(tensors))
        numbers[name] = {
            key: float(value) if isinstance(value, Tensor) else value
            for key, value in state.items()
            if key not in tensors
        }
    write_json_atomically(folder / OPTIMIZER, to_json(_OptimizerState(_FORMAT, step, moments, numbers)))


def read_training(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LambdaLR
) -> None:
    """Read a checkpoint into a model, its optimiser and the learning rate; every process calls this.

    Weights are read in place, bit for bit, and so are moments but for those of 8 bits where parameters are or were
    divided, which are rounded anew.

    Raises:
        OSError: A file cannot be read, here or in another process.
    """
    saved = from_json(_OptimizerState, read_json(folder / OPTIMIZER))
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    own: Any = getattr(optimizer, "optimizer", optimizer)  # out of accelerate's wrapper
    quantised = getattr(own, "_new_buffer", None)  # torchao's, whose moments are of few bits
    on_device = {
        one
        for group in own.param_groups
        if group.get("fused") or group.get("capturable")
        for one in group["params"]
    }
    processes = dist.get_world_size() if dist.is_initialized() else 1
    files = files_of(trained, _BYTES_AT_ONCE, processes)
    # One after the other: float32 moments of all weights might not fit.
    for number in range(1, max(files.values(), default=0) + 1):
        some = {name: trained[name] for name in trained if files[name] == number}
        wanted = {f"{_WEIGHTS}{name}": parameter.detach() for name, parameter in some.items()}
        for name, parameter in some.items():
            for key in saved.moments.get(name, ()):
                weight, is_scale = parameter.detach(), key.endswith(_SCALES)
                if is_scale and isinstance(weight, DTensor):
                    continue
                wanted[f"{_MOMENTS}{name}.{key}"] = (
                    weight.new_empty(weight.numel() // _BLOCK, dtype=torch.float32)
                    if is_scale
                    else torch.empty_like(weight, dtype=torch.float32)
                )
        with _errors_of_all(), warnings.catch_warnings():
            # One process reads by itself.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)))
        for name, parameter in some.items():
            if name not in saved.moments:
                continue
            state = own.state[parameter]
            for key, value in saved.numbers[name].items():
                device = None if key == "step" and parameter not in on_device else parameter.device
                state[key] = value if isinstance(value, int) else torch.tensor(value, device=device)
            for key in (one for one in saved.moments[name] if not one.endswith(_SCALES)):
                state[key] = wanted[f"{_MOMENTS}{name}.{key}"]
                scale = wanted.get(f"{_MOMENTS}{name}.{key}{_SCALES}")
                if quantised is not None:
                    moment = quantised(parameter, key == "exp_avg")
                    if scale is None:
                        moment.copy_(state[key])
                    else:
                        from lingraft.train.eight_bit import hold  # imports torchao

                        hold(moment, state[key], scale)
                    state[key] = moment
    schedule.last_epoch = saved.step
    schedule._last_lr = [
        base * factor(saved.step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(own.param_groups, schedule._last_lr, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
