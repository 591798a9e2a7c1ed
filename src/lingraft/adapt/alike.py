"""Whether two models are versions of one: what lies between them is a model only then."""

from __future__ import annotations

from pathlib import Path

from lingraft.data.chat_format import chat_format
from lingraft.data.text_encoding import plain_core
from lingraft.errors import ModelError
from lingraft.models.loading import load_tokenizer
from lingraft.models.weights import ModelWeights, listed
from lingraft.strategies.base import is_embedding
from lingraft.strategies.selection import is_head

_PROBE = "Hello, wörld! สวัสดี 你好 12,345\n\tif x == y:"  # encoded alike by tokenizers that are alike


def check_alike(
    before: Path, after: Path, names: tuple[str, str], *, trust_remote_code: bool = False
) -> list[str]:
    """Refuse two models of which one was not made of the other; return what else differs, one sentence each.

    No weight is read.

    Args:
        before: Folder of the first.
        after: Of the second; adapters are merged.
        names: What the user calls them.
        trust_remote_code: Run Python code that the models bring along.

    Raises:
        ModelError: They have another architecture, shapes, vocabulary or chat template; says what and what to do.
    """
    first, second = (ModelWeights(one, trust_remote_code=trust_remote_code) for one in (before, after))
    one, other = names
    if first.architecture != second.architecture:
        raise ModelError(
            f"{other}: is {second.architecture}, but {one} is {first.architecture}. What lies between two models is a "
            f"model only where one was trained from the other; name the model that {other} was trained from."
        )
    _check_shapes(first, second, names)
    _check_tokenizers(before, after, names, trust_remote_code=trust_remote_code)
    types = [_types(weights) for weights in (first, second)]
    if types[0] != types[1]:
        return [
            f"{one} is stored in {types[0]}, {other} in {types[1]}: what lies between them is computed in float32."
        ]
    return []


def _check_shapes(first: ModelWeights, second: ModelWeights, names: tuple[str, str]) -> None:
    """Refuse other parameters, or of another shape."""
    one, other = names
    # A head of one's own stands for a tied one, which has the embeddings' weights.
    apart = [name for name in second.names if name not in first]
    missing = [name for name in first.names if name not in second]
    if apart or missing:
        whose, lacking, found = (other, one, apart) if apart else (one, other, missing)
        raise ModelError(
            f"{whose}: has {len(found)} weights that {lacking} does not have ({listed(found)}). What lies between two "
            "models is a model only where one was trained from the other."
        )
    wrong = [name for name in second.names if first.shape(name) != second.shape(name)]
    ends = [name for name in wrong if is_embedding(name) or is_head(name)]
    if ends and len(ends) == len(wrong):
        rows = [weights.shape(ends[0])[0] for weights in (first, second)]
        raise ModelError(
            f"{other}: its embedding has {rows[1]} rows, that of {one} {rows[0]}: tokens were added or removed. Give "
            f"both the same rows first (model.resize_token_embeddings({max(rows)}) on the smaller one, then save it "
            "with the larger one's tokenizer)."
        )
    if wrong:
        shapes = [list(weights.shape(wrong[0])) for weights in (first, second)]
        raise ModelError(
            f"{other}: {len(wrong)} weights have another shape than in {one}; the first is {wrong[0]}: {shapes[1]}, "
            f"not {shapes[0]}. Models of two sizes have nothing between them."
        )


def _check_tokenizers(before: Path, after: Path, names: tuple[str, str], *, trust_remote_code: bool) -> None:
    """Refuse another vocabulary or chat template."""
    one, other = names
    first, second = (
        load_tokenizer(folder, trust_remote_code=trust_remote_code) for folder in (before, after)
    )
    own, its = first.get_vocab(), second.get_vocab()
    differing = sorted(token for token in own.keys() | its.keys() if own.get(token) != its.get(token))
    if differing:
        token = differing[0]
        raise ModelError(
            f"{other}: its tokenizer has another vocabulary than that of {one}: {len(differing)} tokens differ, such "
            f"as {token!r} ({_id(its.get(token))}, not {_id(own.get(token))}). An embedding's row would stand for two "
            f"tokens; give {other} the tokenizer that it was trained with, if this is another one."
        )
    if plain_core(first).encode(_PROBE).ids != plain_core(second).encode(_PROBE).ids:
        raise ModelError(
            f"{other}: its tokenizer splits text otherwise than that of {one}, though the vocabulary is the same; "
            f"give {other} the tokenizer that it was trained with."
        )
    templates = [chat_format(tokenizer).template.source for tokenizer in (first, second)]
    if templates[0] != templates[1]:
        raise ModelError(
            f"{other}: its chat template is another than that of {one}, so the two would read the same question in "
            "two forms. Save one of them with the template that you deploy: load its tokenizer, set "
            "tokenizer.chat_template, and tokenizer.save_pretrained into a copy of its folder."
        )


def _id(number: int | None) -> str:
    return "none" if number is None else f"id {number}"


def _types(weights: ModelWeights) -> str:
    """Return the types that parameters are stored in, by their names."""
    return " and ".join(
        sorted({str(weights.files.kind(name)).removeprefix("torch.") for name in weights.files.names})
    )
