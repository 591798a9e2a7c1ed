"""Proof that a server has the model that it is asked for: what it says is what that model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lingraft.errors import EvaluationError

if TYPE_CHECKING:
    from lingraft.models.answering import Answering, Held
    from lingraft.models.server import ServerGenerator

# A server that has the model agrees on nearly all tokens, also where it computes in few bits.
_CHECKED_PROMPTS, _CHECKED_TOKENS = 8, 16
_FEWEST_TOKENS, _FEWEST_CHARACTERS = 0.9, 0.7
_NEAR_BEST = 0.25  # standard deviations of the logits: rounding may choose another token among those


@dataclass(frozen=True, slots=True)
class _Alike:
    """How many of the tokens that a server said are greedy ones of a model in memory: a `Batch`."""

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def __call__(self, held: Held) -> list[int]:
        """Return of each row how many of its tokens have the highest logit, or one so near that rounding decides."""
        import torch

        from lingraft.models.token_ids import embedding_rows

        untyped: Any = held.model
        found = []
        with torch.inference_mode():
            for prompt, said in self.rows:
                if not said or max(said) >= embedding_rows(held.model):
                    found.append(0)
                    continue
                ids = torch.tensor([[*prompt, *said]], device=untyped.device)
                logits = untyped(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].float()
                own = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
                is_near = logits.max(dim=1).values - own <= _NEAR_BEST * logits.std(dim=1)
                found.append(int(is_near.sum()))
        return found


def check_same_model(server: ServerGenerator, answering: Answering, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse a server that serves another model: what it says after a few prompts must be what the model says.

    Of tokens, nine in ten must be those that the model finds likeliest after the tokens before them, or as good as
    likeliest. Of a server that says no tokens, texts are compared up to where they first differ: seven in ten
    characters must be alike, as rounding may choose another token once, and all after it follows.

    Args:
        server: What will be asked.
        answering: The model.
        prompts: Of what will be asked; the shortest are taken.

    Raises:
        EvaluationError: They are not.
    """
    from lingraft.models.answering import Continue
    from lingraft.models.engine import Engine
    from lingraft.models.generation import Ending, Sampling, TokenPrompt

    shortest = [tuple(one) for one in sorted(prompts, key=len)[:_CHECKED_PROMPTS]]
    said = server.first_words(shortest, _CHECKED_TOKENS)
    if all(tokens is not None for tokens, _ in said) and any(tokens for tokens, _ in said):
        rows = tuple((ids, tuple(tokens or ())) for ids, (tokens, _) in zip(shortest, said, strict=True))
        ((_, near),) = answering.answers([_Alike(rows)])
        total, alike, kind, fewest = sum(len(one) for _, one in rows), sum(near), "tokens", _FEWEST_TOKENS
    else:
        end = answering.tokenizer.eos_token_id
        asked = tuple(TokenPrompt(one) for one in shortest)
        sampling = Sampling(max_new_tokens=_CHECKED_TOKENS)
        ending = Ending(frozenset([0 if end is None else int(end)]))
        batch = Continue(Engine(own_defaults=True), asked, sampling, ending)
        ((_, own),) = answering.answers([batch])
        pairs = [(text, one.text) for (_, text), one in zip(said, own, strict=True)]
        total = sum(max(map(len, pair)) for pair in pairs)
        alike = sum(
            len(list(takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)))) for pair in pairs
        )
        kind, fewest = "characters", _FEWEST_CHARACTERS
    if alike < fewest * total:
        raise EvaluationError(
            f"{server.place} serves another model than {server.folder}: of {total} {kind} that it wrote after "
            f"{len(shortest)} prompts, {alike} are that model's. Serve that folder, or let it be started for "
            "each model: {command: 'vllm serve {model} --port {port}'}."
        )
