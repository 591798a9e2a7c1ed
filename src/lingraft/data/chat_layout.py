"""What a chat template puts around an answer, learnt from what it makes of questions and answers of our own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lingraft.data.chat_template import ChatTemplate, Turn
from lingraft.data.chat_turns import THINKING, common_beginning, marked_turns, without_answer_marks
from lingraft.data.control_tokens import ControlTokens, Span
from lingraft.data.example import Message, Role
from lingraft.errors import DataError, ModelError

# No template holds these, and none changes them.
QUESTION, ANSWER, _SYSTEM = "Which day is it", "Monday", "Be brief"
SECOND_QUESTION, SECOND_ANSWER = "And then", "Tuesday"
_THOUGHT = "Pondering"
_SHORTEST_HEADING = 4  # characters; ordinary text is full of shorter ones


@dataclass(frozen=True, slots=True)
class Layout:
    """What a template puts around an answer, learnt from probes.

    Attributes:
        as_parts: Whether it takes content as a list of parts.
        header: What stands between the user's words and what the model is to write, `prefix` left out.
        prefix: Control text before an answer that the model need not write, such as an empty think block; masked.
        lead: White space between header and answer, which the model writes; supervised. A space at the end of a header
            is such.
        insert: `prefix` where the template does not write it, but does (or opens it) where an answer is asked for.
        space: Characters of white space before an answer's first word.
        closings: What the template puts after an answer, up to the token that ends it.
        tail: Control text that ends every conversation after that, such as the header of an answer; "": none.
        ending: Put after an answer that none of `closings` follows; "": such an answer is an error.
        takes_system: Whether it has a place for a system prompt.
        system_joint: What it writes between a system prompt and the last question, where it shows the prompt only
            while that question is unanswered (Mistral v0.3); "": it does not.
        plain_headings: What it writes before an answer, or between an answer and a question, where no control token is
            in it, such as `[/INST]` of Llama 2: a text that holds it cannot be distinguished from a turn.
    """

    as_parts: bool
    header: str
    prefix: str
    lead: str
    insert: str
    space: int
    closings: tuple[str, ...]
    tail: str
    ending: str
    takes_system: bool
    system_joint: str
    plain_headings: tuple[str, ...]


class Probing:
    """Learns a template's layout.

    Args:
        template: Of the model.
        control: Which tokens steer it.
        end_token: The tokenizer's; "": it has none.
    """

    def __init__(self, template: ChatTemplate, control: ControlTokens, end_token: str) -> None:
        self.template, self.control, self._eos = template, control, end_token
        self._as_parts = False

    def learn(self) -> tuple[Layout, bool]:
        """Return what the template puts around an answer, and whether its training variant, if any, is to be preferred.

        Raises:
            ModelError: It shows no question or no answer, or nothing ends an answer.
        """
        text, (first, last) = self._probe_one()
        (asked,) = self.template.render([self._turns(("user", QUESTION))], open_answer=True)
        if isinstance(asked, DataError) or QUESTION not in asked:
            asked = text[:first]
        prefix, lead, insert = _between(asked, text[:first])
        if not (lead or insert) and text[:first].endswith(" "):
            # Tokenizers join a space to the word after it: the model writes both.
            prefix, lead = prefix[:-1], " "
        closings, ending, inner, flaw = self._closings(text, first, last)
        thought = f"{THINKING[0][0]}\n{_THOUGHT}\n{THINKING[0][1]}\n\n{ANSWER}"
        thinks = THINKING[0][1] in self.template.source
        if thinks and _THOUGHT not in str(self._probe(("user", QUESTION), ("assistant", thought))):
            flaw = True
        system = self._probe(("system", _SYSTEM), ("user", QUESTION), ("assistant", ANSWER))
        takes_system = not isinstance(system, DataError) and _SYSTEM in system
        after = text[last:].lstrip()
        closed = next((one for one in closings if after.startswith(one)), "")
        tail = after[len(closed) :] if closed else ""
        header = text[text.index(QUESTION) + len(QUESTION) : first - len(prefix) - len(lead)]
        plain = (one.strip() for one in (header, inner) if not self.control.pattern.search(one))
        layout = Layout(
            as_parts=self._as_parts,
            header=header,
            prefix=prefix,
            lead=lead,
            insert=insert,
            space=first - len(text[:first].rstrip()),
            closings=closings,
            tail=tail if tail.strip() else "",
            ending=ending,
            takes_system=takes_system,
            system_joint="" if takes_system else self._system_joint(),
            plain_headings=tuple(one for one in plain if len(one) >= _SHORTEST_HEADING),
        )
        return layout, flaw

    def _system_joint(self) -> str:
        """Return what joins a system prompt to the last question where the template puts it there, else ""."""
        system: tuple[Role, str] = ("system", _SYSTEM)
        earlier: tuple[tuple[Role, str], ...] = (("user", SECOND_QUESTION), ("assistant", SECOND_ANSWER))
        (shown,) = self.template.render([self._turns(system, ("user", QUESTION))], open_answer=True)
        parts = re.search(f"{_SYSTEM}(.*?){QUESTION}", str(shown), re.DOTALL)
        joint = parts[1] if parts else ""
        joined: tuple[Role, str] = ("user", f"{_SYSTEM}{joint}{QUESTION}")
        for before in (earlier[:0], earlier):
            asked = self._turns(system, *before, ("user", QUESTION)), self._turns(*before, joined)
            given, made = self.template.render(asked, open_answer=True)
            if isinstance(given, DataError) or given != made:
                return ""
        return joint

    def _probe(self, *said: tuple[Role, str]) -> str | DataError:
        return self.template.render([self._turns(*said)])[0]

    def _turns(self, *said: tuple[Role, str]) -> list[Turn]:
        messages = [Message(role, words) for role, words in said]
        return marked_turns(messages, self.control, as_parts=self._as_parts)

    def _probe_one(self) -> tuple[str, Span]:
        """Return a question with its answer as the template writes them, and the answer's place."""
        problem = "shows neither question nor answer"
        for self._as_parts in (False, True):
            found = self._probe(("user", QUESTION), ("assistant", ANSWER))
            if isinstance(found, DataError):
                problem = f"refuses a question with its answer ({found})" if not self._as_parts else problem
                continue
            text, answers = without_answer_marks(found)
            if QUESTION in text and len(answers) == 1:
                return text, answers[0]
            problem = f"shows {'no question' if QUESTION not in text else 'no answer, or one twice'}"
        raise ModelError(
            f"{self.template.model}: its chat template {problem}, so nothing could be learnt from a conversation; give "
            "the model another `chat_template` in its tokenizer_config.json."
        )

    def _closings(self, text: str, first: int, last: int) -> tuple[tuple[str, ...], str, str, bool]:
        """Return what closes an answer, what has to be put in where nothing does, what stands between an answer and a
        question, and whether training needs another template."""
        tail, inner, flaw = text[last:], None, False
        found = self._probe(
            ("user", QUESTION),
            ("assistant", ANSWER),
            ("user", SECOND_QUESTION),
            ("assistant", SECOND_ANSWER),
        )
        if not isinstance(found, DataError):
            both, answers = without_answer_marks(found)
            if len(answers) != 2 or SECOND_QUESTION not in both:
                flaw = True
            else:
                inner, tail = both[answers[0][1] : both.index(SECOND_QUESTION)], both[answers[1][1] :]
                flaw = both[: answers[0][1]] != text[:last]
        pattern = self.control.pattern
        controls = list(pattern.finditer(tail if inner is None else common_beginning(inner, tail)))
        if controls:
            # What ends a question ends an answer in most templates; some write the next message's header at once.
            likely = (self._eos, next(iter(pattern.findall(text[text.index(QUESTION) : first])), ""))
            end = next((one for name in likely for one in controls if one[0] == name), controls[-1])
            return (tail[: end.end()].lstrip(),), "", inner or "", flaw
        at_once = [
            None if one is None else re.match(rf"\s*({pattern.pattern})", one) for one in (tail, inner)
        ]
        closings = tuple(one[1] for one in at_once if one)
        if all(at_once):  # the last answer is closed otherwise than those before it
            return closings, "", inner or "", flaw
        ending = closings[0] if closings else self._eos
        if not ending:
            raise ModelError(
                f"{self.template.model}: its chat template ends an answer with nothing at which generation could stop, "
                "and its tokenizer names no end token; set `eos_token` in its tokenizer_config.json."
            )
        return closings, ending, inner or "", True


def _between(asked: str, before: str) -> tuple[str, str, str]:
    """Return what stands between a prompt and its answer: masked text, white space that is written, text to put in.

    Args:
        asked: The template's own prompt.
        before: What it writes before an answer.
    """
    shared = common_beginning(asked, before)
    for opened, closed in THINKING:
        block = re.search(rf"{re.escape(opened)}\s*{re.escape(closed)}\s*$", before)
        if block:
            return block[0], "", ""
        if shared == before and asked[len(before) :].strip() == opened:
            return "", "", f"{asked[len(before) :]}\n{closed}\n\n"
    if shared == before and asked[len(before) :].strip():
        return "", "", asked[len(before) :]  # a whole block, as Gemma 4's empty channel of thoughts
    if shared != asked:
        return "", "", ""
    rest = before[len(asked) :]
    return (rest, "", "") if rest.strip() else ("", rest, "")
