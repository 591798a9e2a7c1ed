"""Which constraints a group is asked with, how they are put into words, and an answer that follows them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lingraft.data.worldbook.choice import choose, number_from
from lingraft.data.worldbook.constraints import Constraint
from lingraft.data.worldbook.templates import load_templates
from lingraft.data.worldbook.writing import writing_of

# First kinds take turns. `no_commas` is only ever the second one: nearly every plain sentence follows it.
FIRST_KINDS = (
    "upper_case", "json_key", "starts_with", "quotation_marks", "bullets", "ends_with",
    "title", "lower_case", "keyword", "sentences", "highlight",
)  # fmt: skip

# Pairs that one answer can follow, whichever is asked first; a pair that is not listed is never asked.
COMPATIBLE_PAIRS = frozenset(
    frozenset(pair)
    for pair in (
        ("upper_case", "quotation_marks"), ("upper_case", "title"), ("upper_case", "no_commas"),
        ("upper_case", "sentences"), ("upper_case", "bullets"),
        ("lower_case", "quotation_marks"), ("lower_case", "title"), ("lower_case", "no_commas"),
        ("lower_case", "sentences"), ("lower_case", "bullets"),
        ("quotation_marks", "sentences"), ("quotation_marks", "keyword"), ("quotation_marks", "no_commas"),
        ("starts_with", "ends_with"), ("starts_with", "keyword"), ("starts_with", "no_commas"),
        ("ends_with", "title"), ("ends_with", "keyword"), ("ends_with", "no_commas"), ("ends_with", "highlight"),
        ("title", "sentences"), ("title", "highlight"), ("json_key", "keyword"), ("json_key", "no_commas"),
        ("bullets", "no_commas"), ("highlight", "sentences"), ("highlight", "no_commas"),
    )
)  # fmt: skip

_PAIRS_OF_TEN = 3  # that many of ten groups have two constraints
_COUNTS = {"bullets": (1, 2), "sentences": (2,)}
# How many arguments a kind has, so that two unlike choices are always two unlike questions.
_ARGUMENTS = {"starts_with": 3, "ends_with": 3, "json_key": 3, "keyword": 3, "bullets": 2}


@dataclass(frozen=True, slots=True)
class ConstraintChoice:
    """A constraint before it is put into a language: the kind, which argument and which wording."""

    kind: str
    argument: int
    wording: int


def choose_constraints(first_kind: str, *parts: object) -> tuple[ConstraintChoice, ...]:
    """Return one or two compatible constraints, the first of the given kind."""
    kinds = [first_kind]
    if number_from("pair", *parts) % 10 < _PAIRS_OF_TEN:
        partners = sorted(next(iter(pair - {first_kind})) for pair in COMPATIBLE_PAIRS if first_kind in pair)
        kinds.append(choose(partners, "partner", *parts))
    return tuple(
        ConstraintChoice(
            kind,
            argument=number_from("argument", kind, *parts) % _ARGUMENTS.get(kind, 1),
            wording=number_from("wording", kind, *parts) % 2,
        )
        for kind in kinds
    )


def resolve_constraint(choice: ConstraintChoice, language: str) -> Constraint:
    """Return the constraint with its arguments in `language`, of the kind that it is realised as there."""
    kind = writing_of(language).realised.get(choice.kind, choice.kind)
    if choice.kind in _COUNTS:
        counts = _COUNTS[choice.kind]
        return Constraint(kind, (counts[choice.argument % len(counts)],))
    templates = load_templates(language)
    phrases = {
        "starts_with": templates["openings"],
        "ends_with": templates["closings"],
        "json_key": templates["keys"],
        "keyword": [keyword["word"] for keyword in templates["keywords"]],
    }.get(choice.kind)
    if phrases is not None:
        return Constraint(choice.kind, (phrases[choice.argument % len(phrases)],))
    return Constraint(kind)


def instruct(choice: ConstraintChoice, language: str) -> str:
    """Return the sentence that asks for a constraint."""
    constraint = resolve_constraint(choice, language)
    wording = load_templates(language)["constraints"][constraint.kind][choice.wording]
    return wording.replace("{argument}", str(constraint.arguments[0])) if constraint.arguments else wording


def write_answer(sentence: str, slot: str, choices: tuple[ConstraintChoice, ...], language: str) -> str:
    """Return the plain answer sentence in a form that follows every constraint.

    From the inside out: marks on the slot, more sentences, phrases at the ends, the ends of sentences, bullets, title,
    case, quotes or JSON. The order is what makes the compatible pairs compatible.
    """
    templates, writing = load_templates(language), writing_of(language)
    asked = {choice.kind: choice for choice in choices}
    demands = {choice.kind: resolve_constraint(choice, language) for choice in choices}
    arguments = {kind: one.arguments[0] for kind, one in demands.items() if one.arguments}
    kinds = {one.kind for one in demands.values()}
    if "highlight" in asked:
        # The slot stands last: an earlier match would be inside another word, as "tháng 1" in "tháng 12".
        before, _, after = sentence.rpartition(slot)
        sentence = f"{before}*{slot}*{after}"
    lines = [sentence]
    if "keyword" in asked:
        keywords = templates["keywords"]
        lines.append(keywords[asked["keyword"].argument % len(keywords)]["sentence"])
    for kind in ("bullets", "sentences"):
        if kind in asked:
            missing, extra = int(arguments[kind]) - len(lines), templates["extra_sentences"]
            lines += [extra[(asked[kind].wording + i) % len(extra)] for i in range(missing)]
    if "starts_with" in asked:
        lines.insert(0, str(arguments["starts_with"]))
    if "ends_with" in asked:
        lines.append(str(arguments["ends_with"]))
    mark = writing.exclamation if "exclamations" in kinds else "…" if "ellipses" in kinds else None
    if mark is not None:
        lines = [line.removesuffix(writing.full_stop) + mark for line in lines]
    if "bullets" in asked:
        text = "\n".join(f"* {line}" for line in lines)
    else:
        text = ("\n" if "lines" in kinds else writing.between_sentences).join(lines)
    if "title" in asked:
        titles = templates["titles"]
        text = f"<<{titles[asked['title'].wording % len(titles)]}>>\n{text}"
    if "upper_case" in kinds:
        text = text.upper()
    if "lower_case" in kinds:
        text = text.lower()
    if "quotation_marks" in asked:
        left, right = writing.quotation_marks
        text = f"{left}{text}{right}"
    if "json_key" in asked:
        text = json.dumps({str(arguments["json_key"]): text}, ensure_ascii=False)
    return text
