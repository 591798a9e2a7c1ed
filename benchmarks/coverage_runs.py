"""What benchmarks of coverage share: every setting is measured, printed, and written with sizes and versions."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

Setting = TypeVar("Setting")


def write_coverage(
    description: str | None,
    settings: Iterable[Setting],
    measured: Callable[[Setting, int, int], Mapping[str, Any]],
    results: Path,
    simulations: int,
) -> None:
    """Measure each setting by its number as the seed, and `--simulations` draws; write all into `results`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=simulations)
    options = parser.parse_args()
    started = time.perf_counter()
    found = []
    for seed, setting in enumerate(settings):
        found.append(measured(setting, seed, options.simulations))
        print(json.dumps(found[-1]), flush=True)
    result = {
        "simulations": options.simulations,
        "standard_error": round((0.95 * 0.05 / options.simulations) ** 0.5, 4),
        "seconds": round(time.perf_counter() - started),
        "versions": {name: version(name) for name in ("lingraft", "numpy", "scipy")},
        "python": platform.python_version(),
        "cells": found,
    }
    results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
