"""The tensors of a folder's safetensors files, under the names that the files give them, each read when asked for.

`models.weights` reads them under the names of the model's parameters, which is what nearly everybody wants.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from lingraft.errors import ModelError, did_you_mean
from lingraft.records import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_ELEMENTS_COMPARED = 2**20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def type_name(dtype: torch.dtype) -> str:
    """Return what the header of a safetensors file calls a type."""
    return next(name for name, own in _TYPES.items() if own == dtype)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor to be written: its name in the file, the type that it is stored in, and its shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, tensors: Iterable[StoredTensor], pieces_of: Callable[[StoredTensor], Iterable[torch.Tensor]]
) -> None:
    """Write one safetensors file, a piece at a time: its header's length, the header, and the bytes in its order.

    Args:
        path: The file.
        tensors: What it holds.
        pieces_of: Returns a tensor's elements in order, in the type that they are stored in, on the processor.
    """
    # So that each begins at a multiple of its width.
    ordered = sorted(tensors, key=lambda one: -one.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {
            "dtype": type_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            for piece in pieces_of(tensor):
                file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


class WeightReader(Protocol):
    """A model's tensors, read piece by piece."""

    @property
    def folder(self) -> Path:
        """Where they lie."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, sorted."""

    @property
    def architecture(self) -> str | None:
        """As the configuration names it, such as llama; None: there is no configuration."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def pieces(self, name: str, elements: int, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Whole rows of a tensor, in order; see `CheckpointReader.pieces`."""


def repeats(reader: WeightReader, one: str, other: str) -> bool:
    """Whether two tensors of a model are the same bit for bit, in type and shape too."""
    if reader.shape(one) != reader.shape(other):
        return False
    pairs = zip(reader.pieces(one, _ELEMENTS_COMPARED), reader.pieces(other, _ELEMENTS_COMPARED), strict=True)
    return all(first.dtype == second.dtype and torch.equal(first, second) for first, second in pairs)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor in a file: its type as the header names it, and where its bytes begin."""

    type: str
    shape: tuple[int, ...]
    start: int


class CheckpointReader:
    """The tensors of a folder's safetensors files, each read only when asked for.

    Memory: one tensor or piece at a time, whatever the size of the model. Files stay mapped while the reader lives, but
    `pieces` reads beside the map, so that what was read does not count as this process's memory.

    Args:
        folder: Holds model.safetensors, or model.safetensors.index.json and the shards that it names.

    Raises:
        ModelError: Neither is there, a shard is missing, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._headers: dict[Path, dict[str, _Entry]] = {}
        has_index = (self.folder / INDEX_FILE).is_file()
        if has_index:
            self._file_of = self._places_by_index()
        if (self.folder / SINGLE_FILE).is_file():  # where both are, transformers loads this one
            names = dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
            if has_index and names.keys() != self._file_of.keys():
                raise ModelError(
                    f"{self.folder}: {SINGLE_FILE} and {INDEX_FILE} name other tensors. Remove the one that is not "
                    "meant."
                )
            self._file_of = names
        elif not has_index:
            raise ModelError(missing_weights(self.folder))
        self.names: tuple[str, ...] = tuple(sorted(self._file_of))

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._folder

    @property
    def architecture(self) -> str | None:
        """`model_type` of config.json, such as llama; None: it is not there, or does not say.

        Raises:
            ModelError: config.json is not valid JSON.
        """
        path = self._folder / "config.json"
        if not path.is_file():
            return None
        try:
            found = read_json(path)
        except ValueError as error:
            raise ModelError(f"{path}: is not valid JSON ({error}). Fetch the checkpoint again.") from error
        return found.get("model_type") if isinstance(found, dict) else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape from the file's header, without reading the tensor.

        Raises:
            ModelError: There is no tensor of that name.
        """
        return tuple(self._in_file(name).get_slice(name).get_shape())

    def files(self) -> dict[str, list[str]]:
        """Return the names of the tensors of each file."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(self._file_of[name], []).append(name)
        return found

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor."""
        return self._file_of[name]

    def kind(self, name: str) -> torch.dtype:
        """Return the type that a tensor is stored in.

        Raises:
            ModelError: There is no tensor of that name, or its type is unknown.
        """
        path, entry = self._entry(name)
        if entry.type not in _TYPES:
            raise ModelError(f"{path}: {name} is of type {entry.type}, which cannot be read.")
        return _TYPES[entry.type]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in the type it is stored in, on the CPU.

        Raises:
            ModelError: There is no tensor of that name.
        """
        tensor: torch.Tensor = self._in_file(name).get_tensor(name)
        return tensor

    def copy_of(self, name: str) -> torch.Tensor:
        """Return a tensor as `tensor` does, but read beside the file map as `pieces` are."""
        shape = self.shape(name)
        (whole,) = self.pieces(name, max(1, math.prod(shape))) if math.prod(shape) else (self.tensor(name),)
        return whole.view(shape)

    def pieces(self, name: str, elements: int, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Yield a tensor row by row (along its first axis) in pieces, flat and in the type it is stored in.

        Args:
            name: The tensor.
            elements: About as many numbers a piece; at least one row.
            rows: Stop after so many rows; None: all.

        Yields:
            [numbers of some whole rows], valid until the next piece is asked for: the memory is used again.

        Raises:
            ModelError: There is no tensor of that name, its type is unknown, or the file is cut off.
        """
        kind = self.kind(name)
        path, entry = self._entry(name)
        shape = entry.shape
        height = shape[0] if shape else 1
        width = math.prod(shape[1:])  # numbers in a row
        left = (height if rows is None else min(rows, height)) * width
        size = max(1, elements // max(1, width)) * width
        buffer = bytearray(min(size, left) * kind.itemsize)
        with path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            while left > 0:
                numbers = min(size, left)
                view = memoryview(buffer)[: numbers * kind.itemsize]
                done = 0
                while done < len(view):  # a single read may stop short of 2 GiB
                    count = file.readinto(view[done:])
                    if not count:
                        raise ModelError(f"{path}: {name} is cut off. Fetch the checkpoint again.")
                    done += count
                yield torch.frombuffer(view, dtype=kind)
                left -= numbers

    def _entry(self, name: str) -> tuple[Path, _Entry]:
        """Return a tensor's file and its entry in the header, which safe_open has checked."""
        self._in_file(name)
        path = self.folder / self._file_of[name]
        if path not in self._headers:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                pairs = json.loads(file.read(length), object_pairs_hook=list)
            names = [one for one, _ in pairs]
            twice = (
                next((one for one in names if names.count(one) > 1), None)
                if len({*names}) < len(names)
                else None
            )
            if twice is not None:
                raise ModelError(f"{path}: damaged (it names {twice} twice). Fetch the checkpoint again.")
            header = {one: dict(own) for one, own in pairs if one != "__metadata__"}
            self._headers[path] = {
                one: _Entry(own["dtype"], tuple(own["shape"]), 8 + length + own["data_offsets"][0])
                for one, own in header.items()
            }
        return path, self._headers[path][name]

    def _places_by_index(self) -> dict[str, str]:
        index = self.folder / INDEX_FILE
        try:
            places = {str(name): str(file) for name, file in read_json(index)["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index}: not an index of shards ({type(error).__name__}: {error}).") from error
        stored = {file: set(self._open(file).keys()) for file in sorted(set(places.values()))}
        for name, file in places.items():
            if name not in stored[file]:
                raise ModelError(
                    f"{index}: {name} should be in {file}, but is not. Fetch the checkpoint again."
                )
        return places

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            if Path(file).name != file:
                raise ModelError(f"{self.folder / INDEX_FILE}: the shard {file!r} is outside the folder.")
            if not path.is_file():
                raise ModelError(f"{self.folder}: the shard {file} is missing. Fetch the checkpoint again.")
            if path.suffix != ".safetensors":
                raise ModelError(
                    f"{self.folder / INDEX_FILE}: the shard {file} is no safetensors file. Convert the weights (load "
                    "and save_pretrained in an environment you trust)."
                )
            try:
                self._files[file] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: damaged ({error}). Fetch the checkpoint again.") from error
        return self._files[file]

    def _in_file(self, name: str) -> Any:
        if name not in self._file_of:
            raise ModelError(f"{self.folder}: no tensor is called {name!r}. {did_you_mean(name, self.names)}")
        return self._open(self._file_of[name])


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter.

    Raises:
        ModelError: It holds a model's weights as well, so that nobody can tell which of them is meant.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    weights = next((file for file in (SINGLE_FILE, INDEX_FILE) if (folder / file).is_file()), None)
    if weights is not None:
        raise ModelError(
            f"{folder}: holds a model ({weights}) and an adapter ({ADAPTER_CONFIG}), so it is not clear which is "
            "meant; move one of them into a folder of its own."
        )
    return True


def missing_weights(folder: Path) -> str:
    """Return the message for a folder without safetensors, saying so where it holds pickles instead."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: only pickled weights ({', '.join(pickles)}), which can run any code when read, so lingraft "
            "does not. Convert them to safetensors (load and save_pretrained in an environment you trust)."
        )
    return (
        f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}, so there are no weights to read. Before they are "
        "here, `lingraft plan STUDY --card 80` says what training takes of a card of 80 GB."
    )
