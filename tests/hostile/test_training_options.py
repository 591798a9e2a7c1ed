"""Training options that make no sense are refused when the study is loaded, wherever they are written."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from lingraft.config.load import load_study
from lingraft.errors import ConfigError

STUDY = """\
name: small
model: some/model
phases:
  - {{name: one, data: {{en: {{source: "worldbook:lookup/en"}}}}, training: {{{phase}}}}}
  - name: two
    data: {{de: {{source: "worldbook:lookup/de"}}}}
    strategies: [{{plain: {{training: {{{strategy}}}}}}}]
training: {{{study}}}
"""
SENSELESS = [
    *(
        (field, value)
        for field in ("learning_rate", "max_gradient_norm", "weight_decay", "warmup_share", "save_minutes")
        for value in (".inf", "-.inf", ".nan", "-1", "1e300", "on", "[1]", "{}", "x")
    ),
    *(
        (field, value)
        for field in ("epochs", "tokens_per_batch", "accumulation", "max_length", "save_every")
        for value in (".inf", ".nan", "-1", "1000000000000", "1.5", "on", "[1]", "x")
    ),
    *((field, "0") for field in ("learning_rate", "max_gradient_norm", "epochs", "tokens_per_batch")),
    *((field, "0") for field in ("accumulation", "max_length")),
    ("learning_rate", "1e-300"),
    ("max_gradient_norm", "1e-300"),
    ("precision", "fp16"),
    ("scheduler", "exponential"),
]


@pytest.mark.parametrize(("field", "value"), SENSELESS)
def test_a_senseless_option_is_refused_with_its_line(tmp_path: Path, field: str, value: str) -> None:
    for place, line in (("study", 8), ("phase", 4), ("strategy", 7)):
        written = dict.fromkeys(("study", "phase", "strategy"), "") | {place: f"{field}: {value}"}
        path = tmp_path / "study.yaml"
        path.write_text(dedent(STUDY.format(**written)))
        with pytest.raises(ConfigError, match=rf"study.yaml:{line}: .*{field}"):
            load_study(path)
