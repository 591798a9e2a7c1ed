"""The one owner of what a turn is: prompts, supervised spans, endings, and what stands before an answer.

A chat template says how conversations are written, not where an answer begins and ends. `ChatFormat` learns that from a
template by rendering questions and answers of its own, and tests itself with the tokenizer: a row, cut at its ending,
gives the answer back. Training, evaluation, replay, held-out losses and drift all ask it, so they cannot disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lingraft.data.chat_layout import ANSWER, QUESTION, SECOND_ANSWER, SECOND_QUESTION, Probing
from lingraft.data.chat_template import CLOCK, FALLBACK_TEMPLATE, ChatTemplate, Turn, template_of, tools_value
from lingraft.data.chat_turns import (
    THINKING,
    calls,
    check_calls,
    check_tools,
    common_beginning,
    has_marks,
    marked_turns,
    split_thoughts,
    thinks,
    without_answer_marks,
    without_marks_of_answers,
)
from lingraft.data.control_tokens import ControlTokens, Span, SpelledText, without_marks
from lingraft.data.example import Example, Message
from lingraft.data.text_encoding import encode_by_offsets, plain_core
from lingraft.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_IDENTITY: dict[str, int | str] = {"chat": 4, "clock": CLOCK.date().isoformat()}
"""What of this module decides token ids and endings, for fingerprints: raise the number with every change."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the template writes it.

    Attributes:
        example: Of which it is.
        text: What is tokenised.
        spans: Where the loss sees it: each answer with what ends it.
        characters: Of the answers in `spans`, as the row has them.
        masked: Answers that no span holds, because the row says so or the template writes them otherwise.
        is_folded: Whether the system prompt stands in front of the user's text.
        has_headings: Whether a message holds what the template writes between turns in ordinary tokens.
    """

    example: Example
    text: SpelledText
    spans: tuple[Span, ...]
    characters: int
    masked: int
    is_folded: bool
    has_headings: bool


class ChatFormat:
    """How a model's conversations are written and read.

    Use `chat_format`. Construction renders and encodes a few short conversations: milliseconds.

    Attributes:
        template: Of the model, or TRL's training variant of it where the model's own writes a turn otherwise once
            others follow, or lets reasoning or the end of a turn vanish.
        control: Which tokens steer the model.
        endings: Ids at which generation stops: the tokenizer's end token, and what closes an answer.
        prefix: Control text between header and answer, such as an empty think block: masked in training, given in
            evaluation; "": none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        own = template_of(tokenizer)
        end_token = "" if tokenizer.eos_token is None else str(tokenizer.eos_token)
        self.is_fallback = own.source == FALLBACK_TEMPLATE
        self._use(tokenizer, own)
        variant, has_flaw = own.training_variant(), True
        try:
            self._layout, has_flaw = Probing(own, self.control, end_token).learn()
        except ModelError:
            if variant is None:
                raise
        if variant is not None and has_flaw:
            self._use(tokenizer, variant)
            self._layout, _ = Probing(variant, self.control, end_token).learn()
        layout = self._layout
        self.prefix = layout.insert or layout.prefix
        closing = re.compile(r"\s*(?:" + "|".join(map(re.escape, layout.closings)) + ")")
        self._closing = closing if layout.closings else re.compile("(?!)")
        # Of what closes an answer the last control token ends it.
        names = [self.control.pattern.findall(one)[-1] for one in (*layout.closings, layout.ending) if one]
        own_end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.endings = frozenset([*own_end, *(self.control.ids[name] for name in names)])
        if tokenizer.is_fast:
            self._test(tokenizer)

    def _use(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        self.template = template
        self.control = ControlTokens(tokenizer, template.source + template.frame())
        self._is_marked = re.search(r"\{%-?\s*generation\s*-?%\}", template.source) is not None

    @property
    def takes_system(self) -> bool:
        """Whether the template has a place for a system prompt."""
        return self._layout.takes_system

    # Rendering

    def render(self, examples: Sequence[Example]) -> list[Rendered | DataError]:
        """Return each example's text and the spans of its answers, or why it cannot be trained on."""
        results: list[Rendered | DataError] = []
        source = self.template.source
        # One set of tools a rendering.
        for tools, run in groupby(examples, key=lambda example: example.tools):
            alike, value = list(run), self._tools(tools)
            folded = [self._folded(example) for example in alike]
            turns = [self._turns(messages) for messages, _ in folded]
            found = self.template.render(turns, tools=value)
            for example, (messages, is_folded), own, marked in zip(alike, folded, turns, found, strict=True):
                try:
                    # Templates without a place for tools leave them out in silence.
                    if tools and "tools" not in source:
                        raise DataError("the chat template has no place for tools, which would be lost")
                    if "tool_calls" not in source and calls(messages):
                        raise DataError("the chat template has no place for tool_calls, which would be lost")
                    if isinstance(marked, DataError):
                        raise marked
                    self._check_system(messages)
                    places: Sequence[Span | None]
                    if calls(messages):
                        text, places = self._with_calls(messages, own, value)
                    else:
                        text, places = self._laid_out(messages, marked)
                    check_tools(value, text)
                    said = [one for one in messages if one.role == "assistant"]
                    pairs = zip(places, said, strict=True)
                    seen = [(span, one) for span, one in pairs if span and one.supervised]
                    if not any(one.supervised for one in said):
                        raise DataError("every answer of it is masked (weight 0)")
                    if not seen:
                        raise DataError(
                            "the chat template writes every answer of it otherwise than after a question alone"
                        )
                except DataError as error:
                    results.append(error)
                    continue
                spelled, spans = without_marks(text, [span for span, _ in seen])
                characters = sum(len(one.content) for _, one in seen)
                masked = len(said) - len(spans)
                # No token tells these from the template's own.
                headings = self._layout.plain_headings
                has_headings = any(one in said.content for one in headings for said in messages)
                results.append(Rendered(example, spelled, spans, characters, masked, is_folded, has_headings))
        return results

    def prompt(self, messages: Sequence[Message], *, tools: str = "", fold_system: bool = False) -> str:
        """Return the text after which the model answers, just as training has it before that answer.

        It ends with the header of an answer and with `prefix`. Control tokens that the messages spell are marked: only
        `encode` may read it. `without_marks` makes it readable.

        Raises:
            DataError: The template refuses the conversation.
        """
        said = (*messages, Message("assistant", ANSWER))
        example = Example("", said, "", "", "", tools=tools, fold_system=fold_system)
        messages, _ = self._folded(example)
        (marked,) = self.template.render([self._turns(messages)], tools=self._tools(tools))
        if isinstance(marked, DataError):
            raise marked
        self._check_system(messages)
        if not calls(messages):
            text, spans = self._laid_out(messages, marked)
            if spans[-1] is None:
                raise DataError("the chat template writes the answer otherwise than after a single question")
            return text[: spans[-1][0]]
        text, answers = without_answer_marks(marked)
        self._check_whole(messages, text, answers)
        start, insert = self._start(text, messages[-1], answers[-1][0])
        return text[:start] + insert

    def prompt_ids(
        self, messages: Sequence[Message], *, tools: str = "", fold_system: bool = False
    ) -> list[int]:
        """Return the token ids of `prompt`; the template writes special tokens, none are added.

        Raises:
            DataError: The template refuses the conversation.
        """
        return self.encode(self.prompt(messages, tools=tools, fold_system=fold_system))

    def encode(self, marked: str) -> list[int]:
        """Return the token ids of a text with marks, as `prompt` and `as_text` return it."""
        return self.control.encode(marked)

    def as_text(self, text: str) -> str:
        """Return a text with marks, so that `encode` takes what it spells for text."""
        return self.control.protected(text)

    def begun(self, messages: Sequence[Message], beginning: str) -> str:
        """Return the prompt for an answer whose first words are given, with marks."""
        return self.prompt(messages) + self._layout.lead + self.as_text(beginning.lstrip())

    def continuation(self, prompt: str, words: str) -> str:
        """Return what follows a prompt if the model says these words, with marks.

        Where `prompt` ends as `prompt` does, the white space is put in with which training has an answer begin.
        """
        opens = prompt.endswith(self._layout.header + self.prefix) and not words[:1].isspace()
        return self._layout.lead * opens + self.as_text(words)

    def answer_in(self, said: str) -> str:
        """Return what a model answered without what it thought before; "" where its thoughts have no end."""
        pair = next((one for one in THINKING if one[1] in self.template.source), None)
        if pair is None:
            return said
        _, closed, answer = said.rpartition(pair[1])
        if closed:
            return answer.lstrip()
        return "" if answer.lstrip().startswith(pair[0]) else said

    @property
    def thoughts(self) -> tuple[int, int] | None:
        """The tokens that begin and end a model's thoughts, where the template knows such, one token each."""
        for pair in THINKING:
            if pair[1] in self.template.source and self.control.ids.keys() >= set(pair):
                return self.control.ids[pair[0]], self.control.ids[pair[1]]
        return None

    def _turns(self, messages: Sequence[Message]) -> list[Turn]:
        return marked_turns(messages, self.control, as_parts=self._layout.as_parts)

    def _folded(self, example: Example) -> tuple[tuple[Message, ...], bool]:
        """Return the messages with the system prompt where it is not lost, and whether the row asks for that place.

        A row may ask for the first question. Some templates put it before the last one, while that is unanswered: there
        the row says it too, and is trained on the last answer, since those before it were asked for otherwise.
        """
        messages = example.messages
        asked = [place for place, one in enumerate(messages) if one.role == "user"]
        if messages[0].role != "system" or self.takes_system or not asked:
            return messages, False
        if example.fold_system:
            place, joint, earlier = asked[0], "\n\n", messages[1 : asked[0]]
        elif self._layout.system_joint and asked[-1] == len(messages) - 2:
            place, joint = asked[-1], self._layout.system_joint
            earlier = tuple(replace(one, supervised=False) for one in messages[1:place])
        else:
            return messages, False
        both = joint.join(one for one in (messages[0].content, messages[place].content) if one.strip())
        question = replace(messages[place], content=both)
        return (*earlier, question, *messages[place + 1 :]), example.fold_system

    def _check_system(self, messages: Sequence[Message]) -> None:
        said = any(one.role == "system" and one.content.strip() for one in messages)
        if said and not self.takes_system:
            raise DataError("the chat template leaves out the system message, which would be lost")

    def _tools(self, tools: str) -> Any:
        return self.control.protected_value(tools_value(tools))

    def _check_whole(self, messages: Sequence[Message], text: str, answers: Sequence[Span]) -> None:
        """Refuse a rendering in which something that was said is not to be found.

        Raises:
            DataError: With what is lost.
        """
        asked = sum(map(has_marks, messages))
        if len(answers) != asked:
            raise DataError(f"the chat template writes {len(answers)} of its {asked} answers")
        as_written = self.control.protected if self.control.has_marks(text) else str
        for message in messages:
            said = as_written(message.content).strip()
            least = 1
            if message.role == "assistant":  # thoughts are looked for where they must stand
                said = as_written(split_thoughts(message.content)[3]).strip()
            elif message.role == "system":  # others may say it too
                others = [as_written(one.content) for one in messages if one is not message]
                least += sum(one.count(said) for one in others if said)
            elif message.role == "tool":  # rewritten by some templates
                continue
            if said and text.count(said) < least:
                raise DataError(
                    f"the chat template leaves out the {message.role} message, which would be lost"
                )

    def _laid_out(self, messages: Sequence[Message], marked: str) -> tuple[str, list[Span | None]]:
        """Return the text, with what is missing put in, and of each answer the span.

        None: the template writes it otherwise than an answer that is asked for, so the loss must not see it.
        """
        text, answers = without_answer_marks(marked)
        self._check_whole(messages, text, answers)
        pieces: list[str] = []
        spans: list[Span | None] = []
        at = length = 0
        said = (one for one in messages if one.role == "assistant")
        for message, (first, last) in zip(said, answers, strict=True):
            start, insert = self._start(text, message, first)
            closed = self._closing.match(text, last)
            if closed:
                end, ending = closed.end(), ""
            elif self._layout.ending:
                own = message.content[len(message.content.rstrip()) :]
                end, ending = last + len(own) * text.startswith(own, last), self._layout.ending
            else:
                raise DataError("the chat template ends an answer otherwise than it does elsewhere")
            pieces += [text[at:start], insert, text[start:end], ending]
            begin = length + start - at + len(insert)
            length = begin + end - start + len(ending)
            at = end
            is_usual = thinks(message) or text.endswith(self._layout.prefix, 0, start)
            spans.append((begin, length) if is_usual else None)
        return "".join([*pieces, text[at:]]), spans

    def _start(self, text: str, message: Message, first: int) -> tuple[int, str]:
        """Return where what the model is to write begins, and what is put in before it.

        Args:
            text: Without marks of answers.
            message: The answer.
            first: Where its first word begins.
        """
        layout = self._layout
        if thinks(message):
            at = text.rfind(layout.header, 0, first)
            if not layout.header.strip() or at < 0:
                raise DataError("the chat template does not show where the reasoning before an answer begins")
            begin = at + len(layout.header)
            details = json.loads(message.details) if message.details else {}
            for one in (split_thoughts(message.content)[1], str(details.get("reasoning_content") or "")):
                if self.control.protected(one).strip() not in text[begin:first]:
                    raise DataError("the chat template leaves out the reasoning, which would be lost")
            # Thoughts replace an empty think block; what else stands there, as a channel, is given nevertheless.
            return begin + len(layout.prefix) * text.startswith(layout.prefix, begin), ""
        space = next((size for size in range(first) if not text[first - size - 1].isspace()), first)
        if text.endswith(self.control.swallowing, 0, first - space):
            return first, layout.insert  # the space is of the header's token, which the model does not write
        own = len(message.content) - len(message.content.lstrip())
        start = first - min(max(space - layout.space, 0), own)  # white space that the template did not trim
        if layout.lead and text.endswith(layout.lead, 0, start):
            start -= len(layout.lead)
        return start, layout.insert

    def _with_calls(
        self, messages: Sequence[Message], turns: Sequence[Turn], tools: Any
    ) -> tuple[str, Sequence[Span | None]]:
        """Return the text of a conversation in which tools are called, and the spans of the assistant's messages.

        A call has no words that could be marked. So a span is what the template marks, or what it adds from the prompt
        of a message to the message.
        """
        text, spans = (
            self._marked_spans(turns, tools) if self._is_marked else self._added_spans(messages, turns, tools)
        )
        said = sum(one.role == "assistant" for one in messages)
        if len(spans) != said:
            raise DataError(f"the chat template shows {len(spans)} of its {said} answers and calls")
        to_end_of_turn = []
        for start, end in spans:
            # White space after the token that ends a message is the template's: it goes. Some templates close the
            # {% generation %} block before that token: it joins.
            content = text[start:end].rstrip()
            is_ended = any(one.end() == len(content) for one in self.control.of_template.finditer(content))
            joining = None if is_ended else self.control.of_template.match(text, end)
            to_end_of_turn.append((start, joining.end() if joining else start + len(content)))
        check_calls(turns, text, to_end_of_turn)
        return text, to_end_of_turn

    def _marked_spans(self, turns: Sequence[Turn], tools: Any) -> tuple[str, list[Span]]:
        (found,) = self.template.render_with_blocks([turns], tools=tools)
        if isinstance(found, DataError):
            raise found
        text, blocks = without_marks_of_answers(*found)
        spans: list[Span] = []
        before = self._layout.header + self._layout.prefix
        for start, end in blocks:
            if spans and not text[spans[-1][1] : start].strip():
                spans[-1] = (spans[-1][0], end)  # one message in several blocks
            else:
                spans.append((start, end))
        # What a block begins with of header and prefix is not the model's.
        sizes = range(len(before), 0, -1)
        shared = [
            next((size for size in sizes if text[start:end].startswith(before[-size:])), 0)
            for start, end in spans
        ]
        return text, [(start + size, end) for size, (start, end) in zip(shared, spans, strict=True)]

    def _added_spans(
        self, messages: Sequence[Message], turns: Sequence[Turn], tools: Any
    ) -> tuple[str, list[Span]]:
        places = [place for place, one in enumerate(messages) if one.role == "assistant"]
        prompts = self.template.render([turns[:place] for place in places], open_answer=True, tools=tools)
        afters = self.template.render([turns[: place + 1] for place in places], tools=tools)
        (whole,) = self.template.render([turns], tools=tools)
        if isinstance(whole, DataError):
            raise whole
        text, _ = without_answer_marks(whole)
        spans = []
        for prompt, after in zip(prompts, afters, strict=True):
            if isinstance(prompt, DataError) or isinstance(after, DataError):
                raise prompt if isinstance(prompt, DataError) else after  # type: ignore[misc]
            before, upto = without_answer_marks(prompt)[0], without_answer_marks(after)[0]
            upto = upto.removesuffix(self._layout.tail)
            start, end = len(common_beginning(before, text)), len(common_beginning(upto, text))
            # White space at the end may differ: behind the last message, and behind thoughts that a prompt opens.
            if before[start:].strip() or upto[end:].strip() or end < start:
                raise DataError("the chat template writes a message otherwise once others follow it")
            prefix = self._layout.prefix
            opened = (size for size in range(len(prefix), -1, -1) if text.endswith(prefix[:size], 0, start))
            block = next((start - size for size in opened if text.startswith(prefix, start - size)), None)
            spans.append((start if block is None else block + len(prefix), end))
        return text, spans

    def _test(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Encode conversations, cut each answer at its ending, and compare.

        Raises:
            ModelError: The answer does not come back, or its last token is none at which generation stops.
        """

        def decoded(ids: list[int]) -> str:
            words = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return str(words).strip()

        one = (Message("user", QUESTION), Message("assistant", ANSWER))
        two = (*one, Message("user", SECOND_QUESTION), Message("assistant", SECOND_ANSWER))
        for messages in (one, two):
            (rendered,) = self.render([Example("", messages, "", "", "")])
            if isinstance(rendered, DataError):
                if messages == one:
                    raise ModelError(f"{self.template.model}: {rendered}")
                return  # single questions alone: rows with more are refused, and counted
            answers = [ANSWER, SECOND_ANSWER][: len(messages) // 2][-len(rendered.spans) :]
            for answer, span in zip(answers, rendered.spans, strict=True):
                _, tokens, seen = encode_by_offsets([rendered.text.text], [(span,)], plain_core(tokenizer))
                trained = [int(token) for token in tokens[seen]]
                said = decoded(list(takewhile(lambda token: token not in self.endings, trained)))
                expected = decoded(self.encode(answer))
                is_shared = not decoded(trained[:1]).startswith(
                    answer[0]
                )  # its first token is the header's as well
                if not trained or trained[-1] not in self.endings:
                    problem = f"ends in {tokenizer.decode(trained[-1:])!r}, at which generation does not stop"
                elif said == expected or (is_shared and said.endswith(expected)):
                    continue
                else:
                    problem = f"is {said!r} when it is cut off at its end"
                raise ModelError(
                    f"{self.template.model}: with its chat template and tokenizer the answer {answer!r} {problem}, so "
                    "it cannot be trained and evaluated alike; give the model another `chat_template` or `eos_token` "
                    "in its tokenizer_config.json."
                )


_formats: WeakKeyDictionary[Any, tuple[Any, ChatFormat]] = WeakKeyDictionary()


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Return how a tokenizer's conversations are written; made once for each tokenizer and template.

    Raises:
        ModelError: The tokenizer has neither a template nor an end token, or conversations could not be trained on and
            evaluated alike (see `ChatFormat`).
    """
    key = (str(tokenizer.chat_template), tokenizer.eos_token, len(tokenizer), str(tokenizer.name_or_path))
    known = _formats.get(tokenizer)
    if known is None or known[0] != key:
        known = key, ChatFormat(tokenizer)
        _formats[tokenizer] = known
    return known[1]
