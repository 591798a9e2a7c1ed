"""Do the `reference` scores equal the public Spectrum scanner's, and how long do the two take?

    python benchmarks/snr.py --scanner SPECTRUM_PY [--model embedded:smollm2-135m]

SPECTRUM_PY is spectrum.py of https://github.com/cognitivecomputations/spectrum, fetched by whoever runs this. Its class
is used as it is; the dialogs in which it asks for module types are passed by. Both scan the same seven types of the
same checkpoint, in processes of their own, alternating; loading counts for both. Writes benchmarks/results/snr.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import runpy
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

RESULTS = Path(__file__).parent / "results" / "snr.json"
TYPES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROUNDS = 3


def scan_with_the_scanner(script: Path, folder: Path) -> dict[str, float]:
    """Return the public scanner's score of each module."""
    shortcuts: Any = ModuleType("prompt_toolkit.shortcuts")
    shortcuts.checkboxlist_dialog = shortcuts.input_dialog = None
    sys.modules["prompt_toolkit"] = ModuleType("prompt_toolkit")
    sys.modules["prompt_toolkit.shortcuts"] = shortcuts
    modifier = runpy.run_path(str(script))["ModelModifier"](model_name=str(folder))
    modifier.assess_layers_snr(list(TYPES))
    return {name: float(info["snr"]) for name, info in modifier.layer_snr.items()}


def scan_with_lingraft(folder: Path, estimator: Any) -> dict[str, float]:
    """Return lingraft's score of each module."""
    from lingraft.weights.signal_to_noise import signal_to_noise

    scan = signal_to_noise(folder, estimator=estimator)
    return {one.name.removesuffix(".weight"): one.snr for one in scan.modules}


def child(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one scan in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--part",
        part,
        "--scanner",
        str(options.scanner),
        "--model",
        options.model,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return a scan's scores and its seconds."""
    import torch  # noqa: F401  # both need it: not part of the scan

    from lingraft.models.loading import model_folder

    folder = model_folder(options.model)
    started = time.perf_counter()
    scores = (
        scan_with_the_scanner(options.scanner, folder)
        if part == "scanner"
        else scan_with_lingraft(folder, part)
    )
    return {"seconds": time.perf_counter() - started, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scanner", type=Path, required=True)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_part(options.part, options)))
        return
    rounds = [
        {part: child(part, options) for part in ("scanner", "reference", "median")} for _ in range(ROUNDS)
    ]
    theirs, ours = rounds[0]["scanner"]["scores"], rounds[0]["reference"]["scores"]
    if theirs.keys() != ours.keys():
        raise SystemExit(f"other modules: {sorted(theirs.keys() ^ ours.keys())[:5]}")
    result = {
        "question": "do the reference scores equal the public scanner's, and how long do the two take",
        "model": options.model,
        "modules": len(ours),
        "largest_relative_error": max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in ours),
        **{
            f"time_of_{part}_over_scanner": _spread(
                [one[part]["seconds"] / one["scanner"]["seconds"] for one in rounds]
            )
            for part in ("reference", "median")
        },
        "rounds": ROUNDS,
        "versions": {name: version(name) for name in ("lingraft", "torch", "transformers")},
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


if __name__ == "__main__":
    main()
