r"""A table as LaTeX: a `tabular` of booktabs, in a file that a paper takes with \input.

What names of models and data hold is untrusted: it is set as text, and runs no command.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from lingraft.errors import escape_control_characters
from lingraft.report.tables import ABSENT, Entry, Table
from lingraft.text.folding import composed
from lingraft.text.scripts import script_name

_COMMANDS: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\(<\)", ">": r"\(>\)", "|": r"\(|\)",
        '"': r"{\char34}", "`": r"\`{}",
        "▲": r"\(\blacktriangle\)", "▼": r"\(\blacktriangledown\)", "±": r"\(\pm\)", "−": r"\(-\)", "≤": r"\(\leq\)",  # noqa: RUF001
        "≥": r"\(\geq\)", "≈": r"\(\approx\)", "×": r"\(\times\)", "→": r"\(\to\)",  # noqa: RUF001
    }
)  # fmt: skip
_LIGATURE: Final = re.compile(
    r"([-'?!,])(?=[-',`])"
)  # a dash of two hyphens, a quotation mark of two apostrophes
_OPTIONAL: Final = re.compile(r"^[\[*]")  # the \\ of the row before would take it for its argument
_MINUS: Final = re.compile(r"-(?=\d)")
_BRACKETS: Final = re.compile(r"( \[[^]]*\]| \([^)]*\))")
# Of what is not ASCII pdfLaTeX knows the signs above, and the accents of its default encoding: letters with another
# one, or of another script, would stop it.
_KNOWN: Final = "▲▼±−≤≥≈×→·–—‘’“”…À-ÏÑ-Ýß-ïñ-ýÿ-ăĆ-ďĒ-ėĚ-ĥĨ-ĭİ-ķĹ-ľŁ-ňŌ-ťŨ-űŴ-žȘ-ț"  # noqa: RUF001
_FOREIGN: Final = re.compile(rf"[^ -~{_KNOWN}]+(?: +[^ -~{_KNOWN}]+)*")
_PLAIN_LETTER: Final = re.compile(r"LATIN (SMALL|CAPITAL) LETTER ([A-Z])\b")
_FOREIGN_MACRO: Final = (
    "% Names hold {scripts}. XeLaTeX and LuaLaTeX print them in a font that has them: define, before \\input, such as\n"
    "%   \\newcommand{{\\lingraftforeign}}[2]{{{{\\fontspec{{Noto Sans}}#1}}}}  % with \\usepackage{{fontspec}}\n"
    "% pdfLaTeX prints the second argument in their place.\n"
    "\\providecommand{{\\lingraftforeign}}[2]{{\\ifdefined\\Umathcode#1\\else#2\\fi}}"
)


def latex_table(table: Table, title: str = "", caption: str = "", *, wide: bool = False) -> str:
    """Return a table as the text of a .tex file.

    It needs `booktabs`, and `amssymb` for the signs. The best figures are bold, with all that are as good as them. A
    name in a script that pdfLaTeX cannot set stands in a macro of its own, which keeps it for XeLaTeX and LuaLaTeX.

    Args:
        table: What is written.
        title: Of a comment at the top.
        caption: How to read it, likewise.
        wide: All columns; else the essential ones, and a comment names the others.
    """
    shown = table if wide else table.essential
    kept = [column.title for column in shown.columns]
    left_out = [column.title for column in table.columns if column not in shown.columns]
    meanings: dict[str, list[str]] = {}
    for column in shown.columns:
        meanings.setdefault(column.meaning, []).append(column.title)
    comments = [
        title,
        caption,
        *shown.marks,
        *(f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items()),
        f"Left out (--wide writes them, CSV has them): {', '.join(left_out)}." if left_out else "",
        r"Needs \usepackage{booktabs}, and \usepackage{amssymb} for the signs. Too wide: "
        r"\resizebox{\linewidth}{!}{\input{...}}, with \usepackage{graphicx}.",
    ]
    heading = " & ".join(latex_text(name) for name in kept)
    lines = []
    for number, row in enumerate(shown.rows):
        if number and table.n_keys > 2 and row[:2] != shown.rows[number - 1][:2]:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(map(_cell, row)) + r" \\")
    foreign = _FOREIGN.findall(_one_line("\n".join((*kept, *(cell for row in shown.rows for cell in row)))))
    scripts = dict.fromkeys(script_name(letter) for run in foreign for letter in run if letter != " ")
    sides = "".join("r" if shown.is_of_figures(i) else "l" for i in range(len(kept)))
    return "\n".join(
        (
            *(f"% {_one_line(one)}" for one in comments if one),
            *([_FOREIGN_MACRO.format(scripts=", ".join(scripts))] if foreign else ()),
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            heading + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        )
    )


def latex_text(text: str) -> str:
    r"""Return a text as LaTeX sets it: no character of it is a command, also not at the beginning of a row."""

    def set_foreign(found: re.Match[str]) -> str:
        return rf"\lingraftforeign{{{found[0]}}}{{{_in_its_place(found[0])}}}"

    separate = _LIGATURE.sub(lambda found: f"{found[1]}\0", _one_line(text)).translate(_COMMANDS)
    return _OPTIONAL.sub(r"{\g<0>}", _FOREIGN.sub(set_foreign, separate.replace("\0", "{}")))


def _one_line(text: str) -> str:
    """Return a text without line breaks, and with what steers an editor made visible."""
    return escape_control_characters(composed(text), keep="")


def _in_its_place(run: str) -> str:
    """Return what pdfLaTeX prints of a run of characters: Latin letters without their accents, else a script's name."""
    letters = []
    for character in unicodedata.normalize("NFKD", run):
        named = _PLAIN_LETTER.match(unicodedata.name(character, ""))
        if named is not None:
            letters.append(named[2] if named[1] == "CAPITAL" else named[2].lower())
        elif not unicodedata.combining(character):
            letters.append(character)
    plain = "".join(letters)
    if plain.isascii() and plain.replace(" ", "").isalnum():
        return plain
    return f"({', '.join(dict.fromkeys(script_name(one) for one in run if one != ' '))})"


def _cell(cell: str) -> str:
    """Return an entry: minus signs as such, intervals and ranges in small type, the best in bold."""
    if cell == ABSENT:
        return "--"
    if not isinstance(cell, Entry) or cell.value is None:
        return latex_text(cell)
    first, *rest = _BRACKETS.split(_MINUS.sub("−", cell))  # noqa: RUF001
    figure = latex_text(first)
    parts = (
        rf" {{\scriptsize {part[1]}{latex_text(part[2:])}}}" if _BRACKETS.fullmatch(part) else _after(part)
        for part in rest
    )
    return (rf"\textbf{{{figure}}}" if cell.is_best else figure) + "".join(parts)


def _after(part: str) -> str:
    return f" {latex_text(part)}" if part.strip() else ""
