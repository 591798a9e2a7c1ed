"""What a check found, for people and for servers of continuous integration: a table, JUnit XML and Markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from xml.etree import ElementTree

from lingraft.adapt.checked import ABILITY, COLUMNS, TASK, Checked, cells_of, sentence_of
from lingraft.adapt.promise import AbilityLoss
from lingraft.errors import escape_control_characters
from lingraft.report.tables import Column, Table

_NOT_IN_XML = re.compile("[\ufffe\uffff]")  # beside control characters and surrogates
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


_NAMES = {
    ABILITY: "BCP-47 tag of its language; en: task ability",
    TASK: "what was asked, in which language",
}


def check_table(title: str, losses: Sequence[AbilityLoss]) -> Table:
    """Return the table of losses: a row for every ability, or for every task, as `title` says."""
    columns = (Column(title, _NAMES[title]), *(Column(*one) for one in COLUMNS.items()))
    return Table(columns, tuple(cells_of(one) for one in losses), 1)


def check_junit(found: Checked, seconds: float) -> str:
    """Return a check as JUnit XML: a test case for all that decides; broken is a failure, undecided is skipped.

    It is valid by the schemas of Ant (windyroad's JUnit.xsd) and of Jenkins (junit-10.xsd).

    Args:
        found: What was found.
        seconds: What it took.
    """
    cases = [(one.name, one.answer, sentence_of(one)) for one in found.deciding]
    cases += [(name, "undecided", f"{name}: undecided: {why}") for name, why in found.unmeasured.items()]
    answers = [answer for _, answer, _ in cases]
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        name="lingraft check",
        package="lingraft",
        id="0",
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname=_xml(platform.node().strip() or "localhost"),
        tests=str(len(cases)),
        failures=str(answers.count("broken")),
        errors="0",
        skipped=str(answers.count("undecided")),
        time=f"{seconds:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    known = {
        "model": found.model,
        "against": found.against,
        "answer": found.answer,
        "precision": found.precision,
        "lingraft": version("lingraft"),
    }
    for name, value in known.items():
        ElementTree.SubElement(properties, "property", name=name, value=_xml(value))
    for name, answer, sentence in cases:
        case = ElementTree.SubElement(
            suite, "testcase", name=_xml(name), classname="lingraft.check", time="0.000"
        )
        if answer != "held":
            outcome = ElementTree.SubElement(case, "skipped", message=_xml(sentence))
            if answer == "broken":
                outcome.tag = "failure"
                outcome.set("type", answer)  # which the stricter schema has of failures alone
            outcome.text = _xml(f"{found.title}\n{sentence}")
    ElementTree.SubElement(suite, "system-out").text = _xml(str(found))
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _xml(text: str) -> str:
    """Return a text that XML can hold: no control characters, no halves of pairs, nothing that is no character."""
    return _NOT_IN_XML.sub("\ufffd", escape_control_characters(text))


def check_markdown(found: Checked) -> str:
    """Return a check as a section of Markdown, such as a job summary shows."""
    lines = [
        f"### lingraft check: {found.answer}",
        "",
        f"Of {_markdown(f'{found.model} against {found.against}')}:",
        "",
    ]
    lines += _markdown_table(ABILITY, found.abilities)
    if found.tasks:
        lines += [f"{_markdown(found.task_title)}:", "", *_markdown_table(TASK, found.tasks)]
    lines += [f"- {_markdown(one)}" for one in (*found.sentences(), *found.left_out())]
    return "\n".join(lines) + "\n"


def _markdown_table(title: str, losses: Sequence[AbilityLoss]) -> list[str]:
    if not losses:
        return []
    rows = [[_markdown(cell) for cell in cells_of(one)] for one in losses]
    rule = ["---", *("---:" for _ in COLUMNS)]
    return [*(f"| {' | '.join(row)} |" for row in ([title, *COLUMNS], rule, *rows)), ""]


def _markdown(text: str) -> str:
    """Return a text of one line that Markdown and the HTML in it show as it is."""
    return _MARKDOWN.sub(r"\\\1", escape_control_characters(text, keep=""))
