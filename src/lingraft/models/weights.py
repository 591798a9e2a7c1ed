"""A model's weights on disk under the names of its parameters, whatever its files call them, read lazily.

Files from the hub name tensors as whoever trained them did: without the inner model's prefix, under names that
transformers has changed since, a mixture's experts one by one where the model holds them in one stack, a tied head
once, twice or in place of the embedding. Two files of one model compare only under the model's own names. These come
from the model built without weights, and from the very conversions that transformers does when it loads.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lingraft.errors import ModelError, did_you_mean, in_one_line
from lingraft.models.layers import layer_count, layer_of
from lingraft.models.tensor_files import CheckpointReader, repeats

_ELEMENTS_AT_ONCE = 2**22
# What older versions stored and today's make anew, beside what an architecture names itself.
_OLD_BUFFER = re.compile(r"\.(masked_bias|causal_mask|inv_freq|[kqv]_scale|[kv]_proj\.output_scale)$")
_MASK = re.compile(r"\battn\.(attention\.)?bias$")


def empty_model(folder: Path, *, trust_remote_code: bool = False) -> Any | None:
    """Return a model without memory for its weights, to ask for names and shapes.

    None where there is no configuration that transformers knows, or the model's own code cannot be run so.
    """
    if not (folder / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=trust_remote_code
            )
    except Exception:  # whatever its code raises; loading it for training will tell
        return None


WRAPPED_ADVICE = (
    "If the names begin with a wrapper's (_orig_mod. of torch.compile, module. of DistributedDataParallel, "
    "base_model.model. of PEFT), save the model inside of it with save_pretrained."
)
"""For messages on names that the architecture does not know."""


def misfit_message(
    wrong: Sequence[tuple[str, Sequence[int], Sequence[int]]], missing: Sequence[str], others: Sequence[str]
) -> str:
    """Return what is said of weights that are not those of the architecture.

    Args:
        wrong: Names with their shapes, in the files and by config.json.
        missing: Parameters that are in no file.
        others: Weights of the files that belong to no parameter.
    """
    if wrong:
        name, stored, own = wrong[0]
        return (
            f"{len(wrong)} weights have another size than config.json says; the first is {name}: {list(stored)} in its "
            f"file, {list(own)} by config.json."
        )
    message = f"{len(missing)} weights are not in its files ({listed(missing)})"
    if others:
        message += (
            f", which hold {len(others)} that no parameter is called, such as {others[0]}. {WRAPPED_ADVICE}"
        )
    return message


def listed(names: Sequence[str]) -> str:
    """Return the first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors of the files, and the parameters that are made of them.

    Attributes:
        stored: Names in the files.
        parameters: Names in the model.
        conversion: How transformers makes the ones of the others; None: one is the other.
    """

    stored: tuple[str, ...]
    parameters: tuple[str, ...]
    conversion: _Conversion | None = None


class ModelWeights:
    """The weights of a checkpoint under the names of the model's parameters; see `WeightReader`.

    Tied parameters have one name, as in `named_parameters()`, unless the files hold two that differ: then
    transformers does not tie them either. What is stored and belongs to no parameter of the model keeps its name;
    buffers, and what the architecture ignores, are left out. Without a configuration that transformers knows all names
    are those of the files.

    Memory: as `CheckpointReader`; a parameter that is made of several stored tensors takes theirs at once, of a
    mixture's experts those of a piece.

    Args:
        folder: See `CheckpointReader`.
        trust_remote_code: Run Python code that the model brings along.

    Raises:
        ModelError: The files cannot be read, or not be converted as the architecture wants.
    """

    def __init__(self, folder: str | Path, *, trust_remote_code: bool = False) -> None:
        self.files = CheckpointReader(folder)
        self._parts: dict[str, Part] = {}  # by parameter
        self._shapes: dict[str, tuple[int, ...]] = {}  # of what is converted
        self.tied: dict[str, str] = {}
        """Names of parameters that are tied to another one, and the name that this one goes by."""
        self.repeated: tuple[str, ...] = ()
        """Tensors of the files that repeat what they are tied to."""
        architecture = self.files.architecture  # refuses a configuration that is damaged
        self._model = (
            None
            if architecture is None
            else empty_model(self.files.folder, trust_remote_code=trust_remote_code)
        )
        if self._model is None:
            self._parts = {name: Part((name,), (name,)) for name in self.files.names}
        else:
            self._read_names(self._model)
        self.names: tuple[str, ...] = tuple(sorted(self._parts))

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.files.folder

    @property
    def architecture(self) -> str | None:
        """See `CheckpointReader.architecture`."""
        return self.files.architecture

    def __contains__(self, name: str) -> bool:
        return self.tied.get(name, name) in self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape, without reading it.

        Raises:
            ModelError: There is none of that name.
        """
        part = self._part(name)
        return self.files.shape(part.stored[0]) if part.conversion is None else self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a parameter in the type it is stored in, on the CPU.

        Raises:
            ModelError: There is none of that name.
        """
        part = self._part(name)
        if part.conversion is None:
            return self.files.tensor(part.stored[0])
        return self._converted(part.conversion, part.conversion.sources)[name]

    def pieces(self, name: str, elements: int, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Yield whole rows of a parameter, flat and in order; see `CheckpointReader.pieces`."""
        part = self._part(name)
        if part.conversion is None:
            yield from self.files.pieces(part.stored[0], elements, rows)
            return
        shape = self._shapes[name]
        width = math.prod(shape[1:])
        count = shape[0] if rows is None else min(rows, shape[0])
        at_once = max(1, elements // width)
        if not part.conversion.stacks:
            yield from torch.split(self.tensor(name).reshape(-1)[: count * width], at_once * width)
            return
        for start in range(0, count, at_once):
            some = {
                pattern: stored[start : min(start + at_once, count)]
                for pattern, stored in part.conversion.sources.items()
            }
            yield self._converted(part.conversion, some)[name].reshape(-1)

    @property
    def has_model(self) -> bool:
        """Whether the architecture is known, so that names are those of its parameters."""
        return self._model is not None

    def misfit(self) -> str | None:
        """Return why these weights are not those of the model that config.json describes, None where they are.

        What a model's own code would tell is not known here: None.
        """
        if self._model is None:
            return None
        wanted = dict(self._model.named_parameters())
        ignored = re.compile(
            "|".join(getattr(self._model, "_keys_to_ignore_on_load_missing", None) or ()) or "(?!)"
        )
        wrong = [
            (name, list(self.shape(name)), list(own.shape))
            for name, own in wanted.items()
            if name in self and self.shape(name) != tuple(own.shape)
        ]
        missing = [name for name in wanted if name not in self and not ignored.search(name)]
        others = [name for name in self.names if name not in wanted and name not in self.tied]
        if wrong or missing:
            return misfit_message(wrong, missing, others)
        layers = layer_count(wanted)
        # What a model predicts further tokens by comes after its own layers, and is trained by few.
        layers_after = getattr(self._model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
        # Other towers and heads may be left out on purpose; a part of a decoder layer never is.
        lists = {self._list_of_layers(name) for name in wanted if layer_of(name) is not None}
        left_out = [
            name
            for name in others
            if (layer := layer_of(name)) is not None and not layers <= layer < layers + layers_after
            if self._list_of_layers(name) in lists
        ]
        if left_out:
            found = layer_count(left_out)
            said = (
                f"by config.json it has {layers} layers, its files hold {found}. " if found > layers else ""
            )
            return (
                f"its files hold {len(left_out)} weights of layers that the model of its config.json has no place for "
                f"({listed(left_out)}); {said}One of the two belongs to another model."
            )
        whole_numbers = next(
            (name for name in wanted if not self._is_floating(name) and wanted[name].is_floating_point()),
            None,
        )
        if whole_numbers is not None:
            return f"its {whole_numbers} holds whole numbers, where the model has weights."
        return None

    def _list_of_layers(self, name: str) -> str:
        """Return what stands before a layer's number, with or without the inner model's prefix in the file."""
        before = name.partition(f".{layer_of(name)}.")[0]
        return before.removeprefix(f"{getattr(self._model, 'base_model_prefix', '')}.")

    def _is_floating(self, name: str) -> bool:
        return name not in self or all(
            self.files.kind(one).is_floating_point for one in self._part(name).stored
        )

    def not_finite(self) -> str | None:
        """Return what weight holds not-a-number or infinite values, None where none does; reads all weights once."""
        known: set[str] | None = None
        # Quantised ones have other names than the parameters; what else belongs to none is not read for a model.
        if self._model is not None and getattr(self._model.config, "quantization_config", None) is None:
            known = {name for name, _ in self._model.named_parameters()} | self.tied.keys()
        for part in self.parts():
            is_used = known is None or not known.isdisjoint(part.parameters)
            for name in part.stored if part.parameters and is_used else ():
                if not self.files.kind(name).is_floating_point:
                    continue
                bad = 0
                for piece in self.files.pieces(name, _ELEMENTS_AT_ONCE):
                    values = piece.float() if piece.element_size() == 1 else piece
                    if not values.sum(dtype=torch.float32).isfinite():  # a sum may also be too large
                        bad += int((~values.isfinite()).sum())
                if bad:
                    return (
                        f"its {name} holds {bad} values that are no finite numbers (NaN, inf), so nothing can be "
                        "learnt from it; take a checkpoint from before they arose."
                    )
        return None

    def parts(self) -> tuple[Part, ...]:
        """Return all that is stored, but for `repeated`, in the order of the files."""
        once = {part.stored: part for part in self._parts.values()}
        read = {name for stored in once for name in stored} | set(self.repeated)
        others = [Part((name,), ()) for name in self.files.names if name not in read]
        return tuple(
            sorted(
                [*once.values(), *others], key=lambda part: (self.files.file_of(part.stored[0]), part.stored)
            )
        )

    def as_stored(self, part: Part, made: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a part's parameters as its files hold them, by the files' names; others are those of the files.

        Where transformers would save them under other names than these, under the parameters' own, which it reads too.
        """
        if not part.parameters:
            return {name: self.files.tensor(name) for name in part.stored}
        if part.conversion is None:
            return {part.stored[0]: made[part.parameters[0]]}
        from transformers.core_model_loading import revert_weight_conversion

        assert self._model is not None
        saved = revert_weight_conversion(self._model, dict(made))
        return saved if set(saved) == set(part.stored) else dict(made)

    def type_in(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Return the type of a parameter in a model that is stored or loaded in `dtype`: some stay in float32.

        Architectures name those, such as what chooses a mixture's experts, whose rounding would change the choice.
        """
        from transformers.core_model_loading import build_glob_alternation

        if self._model is None:
            return dtype
        plan = self._model._get_dtype_plan(dtype)
        if not plan:
            return dtype
        found = build_glob_alternation(list(plan))[0].search(name)
        return torch.float32 if found else dtype

    def is_turned(self, name: str) -> bool:
        """Whether a weight is stored as [in, out], as GPT-2's are, and not as a linear layer's [out, in]."""
        from transformers.pytorch_utils import Conv1D

        if self._model is None:
            return False
        modules = dict(self._model.named_modules())
        return isinstance(modules.get(name.rpartition(".")[0]), Conv1D)

    def _part(self, name: str) -> Part:
        own = self.tied.get(name, name)
        if own not in self._parts:
            raise ModelError(
                f"{self.folder}: no parameter is called {name!r}. {did_you_mean(name, self.names)}"
            )
        return self._parts[own]

    def _read_names(self, model: Any) -> None:
        names = _Names(model)
        found: dict[str, Part] = {}
        groups: dict[str, dict[str | None, list[str]]] = {}
        for stored in names.in_order(self.files.names):
            name, pattern = names.renamed(stored)
            if name in names.state:
                groups.setdefault(name, {}).setdefault(pattern, []).append(stored)
            elif not names.is_ignored(name) and not self._is_old_buffer(stored):
                found[stored] = Part((stored,), (stored,))
        for name, sources in groups.items():
            stored_names = tuple(one for own in sources.values() for one in own)
            if None in sources:
                found[name] = Part((sources[None][0],), (name,))
                continue
            pattern = next(iter(sources))
            conversion = _Conversion(
                names.converters[str(pattern)], name, {str(key): tuple(own) for key, own in sources.items()}
            )
            made = self._converted(conversion, conversion.sources, meta=True)
            self._shapes |= {own: tuple(tensor.shape) for own, tensor in made.items()}
            part = Part(stored_names, tuple(own for own in made if own in names.state), conversion)
            found |= dict.fromkeys(part.parameters, part)
        buffers = {name for name, _ in model.named_buffers()}
        self._parts = {name: part for name, part in found.items() if name not in buffers}
        # What is tied gets one name, wherever of the two it is stored; what differs keeps both.
        first_names: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            own = first_names.setdefault(id(parameter), name)
            if own == name or (own not in self._parts and name not in self._parts):
                continue
            if own not in self._parts:
                part = self._parts.pop(name)
                self._parts[own] = Part(part.stored, (own,))
            elif name in self._parts:
                if not repeats(self, own, name):
                    continue
                self.repeated += self._parts.pop(name).stored
            self.tied[name] = own

    def _is_old_buffer(self, stored: str) -> bool:
        """Whether a stored tensor is no weight but a mask, the frequencies of positions, or scales of a cache."""
        is_mask = _MASK.search(stored) is not None and len(self.files.shape(stored)) == 4
        return is_mask or _OLD_BUFFER.search(stored) is not None

    def _converted(
        self, conversion: _Conversion, sources: Mapping[str, Sequence[str]], *, meta: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return what transformers makes of stored tensors, by parameter; on the meta device shapes alone."""
        own = copy.deepcopy(conversion.converter)
        for pattern, stored in sources.items():
            for name in stored:
                read: Callable[[], torch.Tensor] = partial(self.files.copy_of, name)
                if meta:
                    shape, kind = self.files.shape(name), self.files.kind(name)
                    read = partial(torch.empty, shape, dtype=kind, device="meta")
                own.add_tensor(conversion.first, name, pattern, read)
        try:
            made = own.convert(
                conversion.first, model=self._model, config=getattr(self._model, "config", None)
            )
        except Exception as error:  # the library's operations raise what torch does
            raise ModelError(
                f"{self.folder}: {conversion.first} cannot be made of {next(iter(sources.values()))[0]} and others: "
                f"{in_one_line(error)}"
            ) from error
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


@dataclass(frozen=True, slots=True)
class _Conversion:
    """What transformers does to make parameters of several stored tensors, or several parameters of one.

    Attributes:
        converter: Its rule.
        first: The parameter that the rule's names lead to; others are made beside it.
        sources: The stored tensors by the rule's pattern that fits them, in order.
    """

    converter: Any
    first: str
    sources: Mapping[str, tuple[str, ...]]

    @property
    def stacks(self) -> bool:
        """Whether the parameter's rows along its first axis come from one stored tensor of each pattern."""
        from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose

        first, *others = self.converter.operations
        return (
            isinstance(first, MergeModulelist)
            and first.dim == 0
            and len({len(own) for own in self.sources.values()}) == 1
            and all(
                (isinstance(one, Concatenate) and one.dim > 0)
                or (isinstance(one, Transpose) and min(one.dim0, one.dim1) > 0)
                for one in others
            )
        )


class _Names:
    """The rules by which transformers renames stored tensors when it loads a model."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(model)
        self.state: Mapping[str, torch.Tensor] = model.state_dict()
        self._prefix: str = model.base_model_prefix
        self._renamings = [one for one in rules if isinstance(one, WeightRenaming)]
        self._converters = [one for one in rules if isinstance(one, WeightConverter)]
        self.converters = {pattern: one for one in self._converters for pattern in one.source_patterns}
        ignored = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
        # As transformers: both were stored once, and are made anew today.
        buffers = [name for name, _ in model.named_buffers()]
        ignored += [r"rotary_emb\.inv_freq"] if any("inv_freq" in name for name in buffers) else []
        ignored += [r"(^|\.)position_ids$"] if any("position_ids" in name for name in buffers) else []
        self._ignored = re.compile("|".join(f"({one})" for one in ignored)) if ignored else None

    def in_order(self, stored: Sequence[str]) -> list[str]:
        """Return names in the order in which transformers stacks them: experts by number."""
        from transformers.core_model_loading import dot_natural_key

        return sorted(stored, key=dot_natural_key)

    def renamed(self, stored: str) -> tuple[str, str | None]:
        """Return a parameter's name, and the pattern of the converter that makes it, if one does."""
        from transformers.core_model_loading import rename_source_key

        name, pattern = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, dict(self.state)
        )
        if name not in self.state and stored in self.state:
            name, pattern = rename_source_key(stored, [], [], self._prefix, dict(self.state))
        return name, pattern

    def is_ignored(self, name: str) -> bool:
        """Whether the architecture says of a stored tensor that it means nothing."""
        return self._ignored is not None and self._ignored.search(name) is not None
