"""Draws figures in a process of their own.

The engine (vl-convert, which is V8) reserves gigabytes of address space; where a limit forbids that, it does not raise
but dies, and takes its process with it. Here only the pictures are lost, and the reason is returned.

    python -m lingraft.report.drawing     reads a list of jobs from stdin, writes a list of drawings to stdout, as JSON
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from lingraft.errors import escape_control_characters
from lingraft.report.formats import Form

SECONDS: Final = 120.0  # that the engine may take; a page's figures take a few

ENGINE: Final = """
window.drawFigure = (place, spec) =>
  vegaEmbed(place, spec, {
    ast: true, renderer: "svg", logLevel: 1, actions: false,
    defaultStyle: false, tooltip: { disableDefaultStyle: true },
  });
"""
"""What the engine of a browser offers: a function that draws a figure in a place, without `eval` and styles of its own,
and returns a promise of what can be finalised."""


@dataclass(frozen=True)
class Job:
    """A figure to draw: what it becomes, and its Vega-Lite specification; or why it has none, and is not drawn.

    Control characters of names in the specification are made visible: in an SVG, or in the expressions that Vega-Lite
    makes of an axis's order, they would end the engine or the figure.
    """

    form: Form
    spec: Mapping[str, Any]
    problem: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", _visible(self.spec))


def _visible(value: Any) -> Any:
    """Return JSON values with the control characters of all texts, also of names, made visible."""
    if isinstance(value, str):
        # Vega keeps groups by name in objects, of which this name is no name but the parent.
        return "__proto__ " if value == "__proto__" else escape_control_characters(value)
    if isinstance(value, Mapping):
        return {_visible(key): _visible(one) for key, one in value.items()}
    return [_visible(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn, or why it was not.

    Attributes:
        content: Of the file; None: it was not drawn.
        problem: Why not; empty where it was.
        boxes: Scripts that no font has, of a PDF or PNG: boxes stand in their place.
        crowded: Scripts whose signs overlap there.
    """

    content: bytes | None
    problem: str = ""
    boxes: tuple[str, ...] = ()
    crowded: tuple[str, ...] = ()


def draw(jobs: Sequence[Job], seconds: float | None = None, fonts: Path | None = None) -> list[Drawing]:
    """Return the drawing of each job; whatever becomes of the engine, this process goes on.

    Args:
        jobs: The figures.
        seconds: That all of them may take; None: `SECONDS`.
        fonts: Folder of fonts that PDF and PNG may use besides the system's.
    """
    if any(job.problem for job in jobs):
        drawn = iter(draw([job for job in jobs if not job.problem], seconds, fonts))
        return [Drawing(None, job.problem) if job.problem else next(drawn) for job in jobs]
    if not jobs:
        return []
    limit = SECONDS if seconds is None else seconds
    asked = {
        "jobs": [asdict(job) for job in jobs],
        "fonts": None if fonts is None else str(fonts.resolve()),
    }
    # The engine is looked for where this process would, and nowhere else: not in the working directory.
    places = os.pathsep.join(place for place in sys.path if place)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=json.dumps(asked).encode(),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": places},
            timeout=limit,
            check=False,
            start_new_session=True,  # Ctrl-C is this process's to answer
        )
    except subprocess.TimeoutExpired:
        return _failed(jobs, f"the picture engine gave no answer in {limit:g} seconds")
    except (OSError, MemoryError) as error:
        return _failed(jobs, f"the picture engine could not be started ({error or 'no memory'})")
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-done.returncode).name
            return _failed(
                jobs, f"the picture engine died of {name}; a limit on memory (ulimit -v) does that"
            )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        return _failed(jobs, f"the picture engine failed ({said[-1][:200]})")
    try:
        found = json.loads(done.stdout)
        drawings = [
            Drawing(
                base64.b64decode(one["content"]) or None,
                one["problem"],
                tuple(one["boxes"]),
                tuple(one["crowded"]),
            )
            for one in found
        ]
    except (ValueError, KeyError, TypeError):
        drawings = []
    if len(drawings) != len(jobs):
        return _failed(jobs, "the picture engine gave no pictures")
    return [
        one if one.content or one.problem else Drawing(None, "the picture engine gave no picture")
        for one in drawings
    ]


def _failed(jobs: Sequence[Job], problem: str) -> list[Drawing]:
    return [Drawing(None, problem)] * len(jobs)


def reason_of(error: Exception) -> str:
    """Return why a figure is not drawn, in a line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _ForScript(json.JSONEncoder):
    """JSON inside a page's script: names of models and data are untrusted, and `</script>` would end it."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def _drawn(form: Form, spec: dict[str, Any], fonts: Path | None) -> Drawing:
    if form == "engine":
        import vl_convert

        # Advice to the author of a figure is not for the console of its readers.
        quiet = "const console = { ...window.console, warn() {} };"
        return Drawing(f"{{{quiet}\n{vl_convert.javascript_bundle(ENGINE)}\n}}".encode())
    if form == "html":
        import altair as alt

        config = dict(spec.get("config") or {})
        legend = dict(config.get("legend") or {})
        legend.pop("layout", None)  # altair's schema has no layout of legends by side, which Vega-Lite takes
        spec = spec | {"config": config | {"legend": legend}}
        chart = alt.Chart.from_dict(spec)  # validated: else a chart of layers is taken for a simple one
        return Drawing(str(chart.to_html(inline=True, json_kwds={"cls": _ForScript})).encode())
    svg = _svg(json.dumps(spec))
    if form in ("page", "svg"):
        return Drawing(svg.encode())
    import vl_convert

    from lingraft.report.fonts import fit_fonts

    fitted = fit_fonts(svg, fonts)
    content = (
        vl_convert.svg_to_pdf(fitted.svg) if form == "pdf" else vl_convert.svg_to_png(fitted.svg, scale=2)
    )
    return Drawing(content, boxes=fitted.boxes, crowded=fitted.crowded)


@cache
def _svg(spec: str) -> str:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(spec)
    if not (isinstance(svg, str) and svg.lstrip().startswith("<svg") and svg.rstrip().endswith("</svg>")):
        raise ValueError("it drew something else than an SVG")
    return svg


def main() -> None:
    """Draw what stdin asks for; nothing that the engine prints reaches stdout."""
    with contextlib.suppress(ImportError):  # of Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an engine that dies leaves no file behind
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    fonts = None if asked["fonts"] is None else Path(asked["fonts"])
    if fonts is not None:
        import vl_convert

        vl_convert.register_font_directory(str(fonts))
    found = []
    for job in asked["jobs"]:
        try:
            drawing = _drawn(job["form"], job["spec"], fonts)
        except ImportError:
            raise  # then none can be drawn
        except Exception as error:  # of one figure; the others are drawn
            drawing = Drawing(None, reason_of(error))
        found.append(asdict(drawing) | {"content": base64.b64encode(drawing.content or b"").decode()})
    json.dump(found, answers)
    answers.close()


if __name__ == "__main__":
    main()
