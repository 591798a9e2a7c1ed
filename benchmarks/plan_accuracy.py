"""How near does `lingraft plan --measure` come to the time and the memory that the run then takes?

    python benchmarks/plan_accuracy.py [--precision float32] [--rows 80] [--items 24] [--cpu-seconds] [--output FILE]

The embedded model learns German counting questions: plain, with LoRA and with half of its matrices frozen, and every
model answers worldbook's questions. First the plan is made in a process of its own, then the study is run in another;
of every training and evaluation, both are printed, with the ratio of what was planned to what it took. Other work on
the machine falls on the two alike only by chance: with --cpu-seconds both take the processor time of their own threads
for the clock (set OMP_NUM_THREADS=1), which is the time on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

_RUN = "from lingraft.cli.main import main; main()"
_BY_CPU = "import time; time.perf_counter = time.monotonic = time.process_time; "


def study(precision: str, rows: int, items: int, tokens: int) -> dict[str, Any]:
    """Return the study."""
    asked = [{"task": "worldbook", "limit": items, "max_new_tokens": 40}]
    return {
        "name": "accuracy",
        "phases": [
            {"name": "one", "checkpoint": "embedded:smollm2-135m"},
            {
                "name": "two",
                "data": {"german": {"source": "worldbook:counting/de", "limit": rows}},
                "strategies": ["plain", "lora", "half"],
            },
        ],
        "training": {
            "learning_rate": 2e-4,
            "tokens_per_batch": tokens,
            "precision": precision,
            "save_minutes": 0,
        },
        "measures": [],
        "held_out": 4,
        "contamination": None,
        "evaluate": {"task_ability": asked, "language_ability": asked, "precision": precision},
        "keep": "none",
    }


def lingraft(folder: Path, by_cpu: bool, *arguments: str) -> str:
    """Run a command of lingraft in a folder; return what it printed."""
    code = _BY_CPU * by_cpu + _RUN
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "LINGRAFT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def main() -> None:
    """Make the plan, run the study, and print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--cpu-seconds", action="store_true")
    parser.add_argument("--folder", type=Path, help="Where to work, to be kept; default: a temporary folder.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        asked = study(options.precision, options.rows, options.items, options.tokens)
        (folder / "study.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
        planned = json.loads(
            lingraft(folder, options.cpu_seconds, "plan", "study.yaml", "--measure", "--json")
        )
        (folder / "planned.json").write_text(json.dumps(planned), encoding="utf-8")
        unmeasured = json.loads(lingraft(folder, options.cpu_seconds, "plan", "study.yaml", "--json"))
        lingraft(folder, options.cpu_seconds, "run", "study.yaml", "--json")
        found = [
            compared(one, other, folder)
            for one, other in zip(planned["stages"], unmeasured["stages"], strict=True)
            if one["kind"] in ("train", "evaluate")
        ]
    seconds, took = (sum(one[key] for one in found) for key in ("seconds", "took_seconds"))
    print(
        f"{'stage':34} {'planned':>9} {'took':>9} {'ratio':>6}  memory: by sizes, measured, took; both ratios"
    )
    for one in found:
        print(
            f"{one['stage']:34} {one['seconds']:7.1f} s {one['took_seconds']:7.1f} s {one['time_ratio']:6.2f} "
            f"{one['sized_bytes'] / 1e6:7.0f} MB {one['bytes'] / 1e6:7.0f} MB {one['took_bytes'] / 1e6:7.0f} MB "
            f"{one['sized_ratio']:6.2f} {one['memory_ratio']:5.2f}"
        )
    print(f"{'all':34} {seconds:7.1f} s {took:7.1f} s {seconds / took:6.2f}")
    if options.output is not None:
        written = {"options": {key: str(one) for key, one in vars(options).items()}, "stages": found}
        options.output.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def compared(one: dict[str, Any], other: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what was planned for a stage (measured, and by sizes alone), beside what it took."""
    stage = folder / "runs" / "accuracy" / "stages" / f"{one['kind']}-{one['fingerprint']}"
    timing = json.loads((stage / "timing.json").read_text(encoding="utf-8"))
    return {
        "stage": f"{one['kind']} {one['label']}",
        "seconds": one["seconds"],
        "took_seconds": timing["seconds"],
        "time_ratio": one["seconds"] / timing["seconds"],
        "bytes": one["memory_bytes"],
        "sized_bytes": sum(other["memory"].values()),
        "took_bytes": timing["peak_bytes"],
        "memory_ratio": one["memory_bytes"] / timing["peak_bytes"],
        "sized_ratio": sum(other["memory"].values()) / timing["peak_bytes"],
    }


if __name__ == "__main__":
    main()
