"""A run whose every name and text tries to be something else than text.

`hostile_run(folder)` writes a run folder that could have come from elsewhere: the scores are those of a small study,
all words are hostile. Code of theirs that runs in a browser sets `window.hostile`; in LaTeX or a shell it makes the
file `/tmp/hostile-was-here`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from example_result import done_cell, failed_cell, phase_one, result, scores
from pyarrow import parquet
from pydantic import JsonValue

from lingraft.evaluate.predictions import Ability, Prediction, read_predictions, write_predictions
from lingraft.evaluate.results import AnswerCounts, Scores
from lingraft.measures.base import FROM_PHASE_ONE, Figure, Found, Measured
from lingraft.study.result import CellResult, PendingCell, StudyResult, write_result
from lingraft.study.unused import UnusedStage

SCRIPT = "</script><script>window.hostile=1</script>"
HANDLER = '<img src=x onerror="window.hostile=1"><svg/onload=window.hostile=1>'
CLOSING = "</style></title></textarea></details></template><!-- --><script>window.hostile=1</script><!--"
LINK = "[a](javascript:window.hostile=1) javascript:window.hostile=1 http://127.0.0.1:9/hostile.png"
TEMPLATE = "{{ 7 * 7 }}{% include '/etc/passwd' %}{# comment #}${window.hostile=1}"
VEGA = '{"expr": "window.hostile=1"}'
VEGA_FIELD = "datum.x[0]['\\'] + scale('x', 1).$a"
VEGA_DATA = '{"url": "http://127.0.0.1:9/hostile.json"}'
LATEX = r"\input{/etc/passwd}\write18{touch /tmp/hostile-was-here}\end{tabular} $x_1^2$ & 5% #1 {~} \\"
SHEET = "=cmd|'/C calc'!A0"
MARKDOWN = "a | b\n# forged heading\n```\n| --- |"
FORMAT = "%s %(x)s {0} {x} $$ \\1 \\u003c &lt; &#60; &amp;"
RIGHT_TO_LEFT = "\u05e9\u05dc\u05d5\u05dd (abc) 12, \u0645\u0631\u062d\u0628\u0627!"
OVERRIDE = "\u202eesrever\u202c \u2066isolate\u2069 \u2067left open"
EMOJI = "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1f9\U0001f1ed 1\ufe0f\u20e3 e\u0301\u0323\u0302"
CONTROLS = (
    "a\x00b\x1b[31mred\x07\x08\x7f\x85\x9b2J tab\there\r\nnew line\u2028line\u2029paragraph \ufeff\ufffe"
)
SCRIPTS = (
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u4e2d\u6587 "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8 \u1200\u1208"
)
CHAT_MARKS = "<|im_start|>user\n[INST] <<SYS>> \u27e6x\u27e7 </s><|im_end|>\n<|im_start|>assistant\n"
LONG_WORD = "w" * 100_000
LONG_LINE = "many words " * 10_000
COMBINING = "e" + "\u0301" * 2_000
BLANK = " \t\n "
TEXTS = (
    *(SCRIPT, HANDLER, CLOSING, LINK, TEMPLATE, VEGA, VEGA_FIELD, VEGA_DATA, LATEX, SHEET, MARKDOWN, FORMAT),
    *(
        RIGHT_TO_LEFT,
        OVERRIDE,
        EMOJI,
        CONTROLS,
        SCRIPTS,
        CHAT_MARKS,
        LONG_WORD,
        LONG_LINE,
        COMBINING,
        BLANK,
        "",
    ),
    "__proto__",
    "constructor",
    "undefined",
    "-",
    "NaN",
)
"""What prompts, references and answers say, one after the other."""
LANGUAGES = ("en", "de", "ar", "th")
BASE, FIRST = "stages/evaluate-base/predictions.parquet", "stages/evaluate-one/predictions.parquet"
# Data set and strategy of each cell that is done; the last but one has answers that are no text, the last has none.
CELLS = (
    (SCRIPT, f"plain {HANDLER}"),
    (VEGA_FIELD, f"{VEGA} {LATEX}"),
    (f"{RIGHT_TO_LEFT} {OVERRIDE}", f"{EMOJI} {CONTROLS}"),
    (f"{SHEET} {MARKDOWN}", f"{TEMPLATE} {CLOSING} {SCRIPTS}"),
    ("__proto__", f"broken {LINK}"),
    (LONG_WORD[:300], f"gone {FORMAT} {VEGA_DATA}"),
)


def hostile_run(folder: Path) -> Path:
    """Write the run folder with its result and predictions, and return it; the folder need not be there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = hostile_result(folder)
    _write(folder / BASE, [_answers(number, model=0) for number in range(3 * len(TEXTS))])
    _write(folder / FIRST, [_answers(number, model=1) for number in range(3 * len(TEXTS))])
    for model, cell in enumerate(found.done[:-1], start=2):
        _write(folder / cell.predictions, [_answers(number, model) for number in range(3 * len(TEXTS))])
    _make_invalid(folder / found.done[-2].predictions)
    write_result(found)
    return folder


def hostile_result(folder: Path) -> StudyResult:
    """Return the result alone."""
    cells: list[CellResult] = []
    for number, (data, strategy) in enumerate(CELLS):
        plain = done_cell("plain", task=0.3 + 0.1 * number)
        figures: dict[str, JsonValue] = {"mean_cosine": 0.9, "cka": None, "trace_change": None}
        layers: list[JsonValue] = [
            figures | {"layer": n, "variance_change": None, "covariance_change": 0.1 * n} for n in range(3)
        ]
        measures = plain.measures | {
            "des": Measured({}, reason=f"{SCRIPT} {VEGA}"),
            "drift": Measured({FROM_PHASE_ONE: Found({"covariance": Figure(0.2)}, {"layers": layers})}),
        }
        training = replace(
            plain.training,
            data=tuple(
                replace(one, source=f"{SCRIPT}/{LATEX}", first_broken=(CLOSING,), filtered={HANDLER: 4})
                for one in plain.training.data
            ),
            handled={f"{SCRIPT} {CONTROLS}": 3},
            replay_dropped={MARKDOWN: 2},
            first_dropped=(HANDLER, OVERRIDE),
        )
        phase = replace(
            plain.phases[0],
            phase=f"two {HANDLER}",
            data=data,
            strategy=strategy,
            options={VEGA: SCRIPT, "path": [LATEX, CONTROLS]},
            measures=measures,
            scores=_scores(0.4),
            training=training,
        )
        cells.append(
            replace(
                plain,
                data=data,
                strategy=strategy,
                options={VEGA: SCRIPT, HANDLER: {CONTROLS: [LATEX]}},
                scores=_scores(0.4),
                training=training,
                phases=(phase,),
                predictions=f"stages/evaluate-{number}/predictions.parquet",
                phase_one_predictions=FIRST,
                checkpoint=f"stages/{SCRIPT}{CONTROLS}",
                not_paired={SCRIPT: CLOSING},
                unpaired={HANDLER: 3},
            )
        )
    failed = failed_cell(f"data {CLOSING}", f"lora {SCRIPT}", reason="\n".join(TEXTS))
    pending = PendingCell(data=TEMPLATE, strategy=CONTROLS, seed=0, options={LINK: LINK})
    one = replace(phase_one(SCRIPT, 0, _scores(0.5)), strategy=HANDLER, predictions=FIRST, checkpoint=LINK)
    found = result(folder, [*cells, failed])
    return replace(
        found,
        cells=(*found.cells, pending),
        base=_scores(0.2),
        base_predictions=BASE,
        phase_ones=(one,),
        language_notes=(f"{SCRIPT} {CONTROLS}", OVERRIDE),
        unused=(
            UnusedStage(
                name=SCRIPT, kind=f"train {HANDLER}", path=f"stages/{CLOSING}", bytes=10, is_finished=False
            ),
        ),
    )


def _scores(task: float) -> Scores:
    plain = scores(task, 0.6)
    (one,) = plain.tasks.values()
    german = plain.per_language["de"]
    return replace(
        plain,
        per_language=plain.per_language | {SCRIPT: german, VEGA_FIELD: german, "ar": german},
        tasks={"worldbook:lookup/en": one, SCRIPT: one, f"{VEGA_FIELD}/de": one, RIGHT_TO_LEFT: one},
        answers=AnswerCounts(40, 1, 2, 3),
        left_out=(HANDLER, f"{CONTROLS} {OVERRIDE}"),
        truncated={SCRIPT: 2},
        truncated_prompts={CLOSING: 3},
    )


def _answers(number: int, model: int) -> Prediction:
    """Return a model's answer to an item; what is lost, gained and in the wrong language differs by model."""
    text, other = (TEXTS[(number + shift) % len(TEXTS)] for shift in (0, 3 * model))
    language = LANGUAGES[number % len(LANGUAGES)]
    ability: Ability = "task_ability" if language == "en" else "language_ability"
    task = (SCRIPT, "worldbook:lookup", VEGA_FIELD)[number % 3]
    generates = number % 5 > 0
    return Prediction(
        ability=ability,
        task=task,
        language=language,
        cluster=f"{text[:50]}/{number}",
        item=f"{text[:200]}/{number}",
        score=float((number + model) % 3 == 0) if number % 7 else 0.25,
        prompt=f"{CHAT_MARKS}{text}",
        response=other if generates else "[('-1.5', 'False'), ('-0.25', 'True')]",
        reference=text if generates else "1",
        wrong_language=(number + model) % 4 == 0 if generates else None,
        language_judged=generates,
        empty=not other.strip() if generates else None,
        looping=False if generates else None,
        truncated=len(other) > 5_000 if generates else None,
        asked=f"{number:016x}",
    )


def _write(path: Path, predictions: Sequence[Prediction]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(path, predictions)


def _make_invalid(path: Path) -> None:
    """Put halves of surrogate pairs, which are no UTF-8, into the answers: Arrow writes and reads what is no text."""
    answers = [b"\xed\xa0\x80 </script> \xff" for _ in read_predictions(path)]
    table = parquet.read_table(path)
    text = pa.array(answers, pa.binary()).view(pa.string())
    place = table.column_names.index("response")
    parquet.write_table(table.set_column(place, "response", text), path)
