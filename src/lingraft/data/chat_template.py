"""Chat templates: which one a model is trained with, and how it renders conversations on a day that never changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lingraft.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FALLBACK_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
"""Used where a tokenizer has no chat template: Alpaca's headings, an end token after every answer.

    BOS? [SYSTEM, blank line] "### Instruction:" USER, blank line, "### Response:" ANSWER EOS, blank line, ...

Headings and answers are on lines of their own. Only what tokenizers of base models have is needed: an end token.
"""

CLOCK = datetime(2024, 7, 26)
"""The day that every template is shown, in training and evaluation: what Llama 3 writes where it has no clock. Today's
date would change data and prompts overnight."""

_DIRECTIVES = [f"%{flag}{letter}" for letter in "aAbBcdDeFGgHIjklmMnpPrRStTuUVwWxXyYzZ" for flag in ("-", "")]
_TRAINING_VARIANT = "_training.jinja"

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What rendering needs of a tokenizer, worked out once instead of for every row.

    Attributes:
        source: Jinja.
        options: What templates read besides the messages.
        model: Its name, for errors.
        is_variant: Whether `source` is TRL's training variant of the tokenizer's own template.
    """

    source: str
    options: dict[str, Any]
    model: str
    is_variant: bool = False

    def training_variant(self) -> ChatTemplate | None:
        """Return TRL's variant for training, which renders a turn alike whatever follows it; None: it has none."""
        found = _training_variants().get(self.source.strip())
        return None if found is None else replace(self, source=found, is_variant=True)

    def render(
        self, conversations: Sequence[Sequence[Turn]], *, open_answer: bool = False, tools: Any = None
    ) -> list[str | DataError]:
        """Return each rendered text, or why it is refused; with `open_answer` the header of an answer ends it."""
        found = self.render_with_blocks(conversations, open_answer=open_answer, tools=tools, blocks=False)
        return [one if isinstance(one, DataError) else one[0] for one in found]

    def frame(self) -> str:
        """Return what the template writes around messages, rendered of a few roles that say next to nothing."""
        said = {role: {"role": role, "content": "a"} for role in ("system", "user", "assistant", "tool")}
        pair = [said["user"], said["assistant"]]
        conversations = [*pair, *pair], [said["system"], *pair], [*pair, said["tool"], said["assistant"]]
        found = self.render(conversations, open_answer=True)
        return "".join(one for one in found if isinstance(one, str))

    def render_with_blocks(
        self,
        conversations: Sequence[Sequence[Turn]],
        *,
        open_answer: bool = False,
        tools: Any = None,
        blocks: bool = True,
    ) -> list[tuple[str, list[tuple[int, int]]] | DataError]:
        """Return each rendered text with the places of its {% generation %} blocks, or why it is refused.

        Raises:
            ModelError: The template takes more time or memory than it may (see `text.templates`).
        """
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        from lingraft.text.templates import TemplateLimitError

        if not conversations:
            return []
        source = self.source
        if "strftime_now" in source:
            # That is transformers' clock, and is to show CLOCK: a macro of that name hides the function, since
            # transformers hands templates no functions of ours.
            shown = ((one, CLOCK.strftime(one)) for one in (*_DIRECTIVES, "%%"))
            written = "".join(f" | replace({one!r}, {day!r})" for one, day in shown)
            # Of the line break after a block Jinja takes one away: that must not be the template's own.
            source = f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n{source}"
        source = limited(source)
        try:
            compile_bounded(source)  # kept by transformers
            rendered: Any = render_jinja_template(
                [list(one) for one in conversations],
                chat_template=source,
                return_assistant_tokens_mask=blocks,
                add_generation_prompt=open_answer,
                tools=tools,
                **self.options,
            )
        except (TemplateLimitError, MemoryError) as error:
            if len(conversations) == 1:
                problem = str(error) or "needs more memory than there is"
                raise ModelError(
                    f"{self.model}: its chat template {problem} for a conversation; give the model another "
                    "`chat_template` in its tokenizer_config.json."
                ) from error
            return self._one_by_one(conversations, open_answer=open_answer, tools=tools, blocks=blocks)
        # A template is a program: what it does not foresee ends in Python's own errors.
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            if len(conversations) == 1:
                return [DataError(f"the chat template refuses the conversation: {error}")]
            return self._one_by_one(conversations, open_answer=open_answer, tools=tools, blocks=blocks)
        texts, places = rendered
        return list(zip(texts, places if blocks else [[] for _ in texts], strict=True))

    def _one_by_one(
        self, conversations: Sequence[Sequence[Turn]], **options: Any
    ) -> list[tuple[str, list[tuple[int, int]]] | DataError]:
        """Render again what was refused together, to see which of them are."""
        return [self.render_with_blocks([one], **options)[0] for one in conversations]


def limited(source: str) -> str:
    """Return a template's text by which only `compile_bounded` knows it: transformers keeps compiled ones by text."""
    return f"{{#- limited -#}}{source}"


def compile_bounded(source: str) -> None:
    """Have transformers compile a template in our bounded sandbox, and begin the budget of what is rendered next.

    Raises:
        TemplateSyntaxError: It is not valid Jinja.
    """
    from transformers.utils import chat_template_utils

    from lingraft.text.templates import BoundedEnvironment

    with patch.object(chat_template_utils, "ImmutableSandboxedEnvironment", BoundedEnvironment):
        compiled: Any = chat_template_utils._compile_jinja_template(source)
    compiled.environment.begin()


def chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Return the tokenizer's chat template and False, or FALLBACK_TEMPLATE and True where it has none.

    Raises:
        ModelError: It has neither a template nor an end token, so it could not learn where to stop.
    """
    try:
        template = None if tokenizer.chat_template is None else str(tokenizer.get_chat_template())
    except ValueError as error:  # several named templates and no default one
        raise ModelError(
            f"{tokenizer.name_or_path}: names several chat templates ({', '.join(tokenizer.chat_template)}) and none "
            "'default'; call the one to be trained with 'default' in its tokenizer_config.json."
        ) from error
    if template is not None and template != FALLBACK_TEMPLATE:
        return template, False
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has neither a chat template nor an end token; "
            "set `eos_token` or `chat_template` in its tokenizer_config.json."
        )
    return FALLBACK_TEMPLATE, True


def template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return a tokenizer's template with what it may read: special tokens, and a clock that stands still.

    Raises:
        ModelError: See `chat_template`.
    """
    options = {**tokenizer.special_tokens_map, "date_string": CLOCK.strftime("%d %b %Y")}
    return ChatTemplate(chat_template(tokenizer)[0], options, str(tokenizer.name_or_path or "the model"))


def tools_value(tools: str) -> Any:
    """Return an example's tools as templates take them; None: it has none."""
    return json.loads(tools) if tools else None


@cache
def _training_variants() -> dict[str, str]:
    """Return TRL's training templates by the text of the templates that they are for, read without importing TRL."""
    package = find_spec("trl")
    if package is None or package.origin is None:
        return {}
    folder = Path(package.origin).parent / "chat_templates"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.jinja")}
    return {
        texts[f"{name.removesuffix(_TRAINING_VARIANT)}.jinja"].strip(): text
        for name, text in texts.items()
        if name.endswith(_TRAINING_VARIANT) and f"{name.removesuffix(_TRAINING_VARIANT)}.jinja" in texts
    }
