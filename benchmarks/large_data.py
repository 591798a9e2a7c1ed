"""Do 10 million rows fit in 2 GB of memory, from the file to planned batches, and how fast does it go?

    python benchmarks/large_data.py [--rows 10000000] [--folder FOLDER] [--parts show_data study]

Writes a jsonl file of about 200 bytes a row (five languages, deterministic), then runs what users run, each in a
process of its own: `lingraft show data FILE`, and the data's way through a study (read, check, split, encode into a
table, plan an epoch's batches). Memory is the resident memory of the process and its children, summed, sampled every
0.2 s; files that are mapped count while their pages are resident. Writes benchmarks/results/large_data.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results" / "large_data.json"
LANGUAGES = ("en", "de", "es", "fr", "th")
ROWS_PER_GROUP = 4
MODEL = "embedded:smollm2-135m"
SECONDS_BETWEEN_SAMPLES = 0.2

# Syllables make words of the right length that no two rows share as a whole; Thai has no spaces between words.
SYLLABLES = {
    "en": "the ing er and tion re on at for est wor ld peo ple na ture hou se wa ter",
    "de": "der ung ein sch en ge ver lich keit über straß haus wasser leb en mensch",
    "es": "el ción de la que es mente ar ñan jos per son agua casa vi da hom bre",
    "fr": "le tion de la que ment é tait eau mai son per sonne vie hom me ê tre",
    "th": "การ ความ ที่ ใน เป็น ของ และ ได้ มี ไม่ ว่า ให้ คน น้ำ บ้าน ชีวิต",
}
CHARACTERS = {"th": (18, 28)}  # three bytes each in UTF-8
OTHER_CHARACTERS = (45, 75)  # of question and answer


def write_rows(path: Path, rows: int) -> None:
    """Write the file; the same rows for the same number."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            language = LANGUAGES[number % len(LANGUAGES)]
            question, answer = CHARACTERS.get(language, OTHER_CHARACTERS)
            row = {
                "instruction": _text(language, question, generator),
                "output": _text(language, answer, generator),
                "language": language,
                "group": f"g{number // ROWS_PER_GROUP}",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _text(language: str, characters: int, generator: random.Random) -> str:
    gap = "" if language == "th" else " "
    text, syllables = "", SYLLABLES[language].split()
    while len(text) < characters:
        text += "".join(generator.choices(syllables, k=generator.randrange(1, 4))) + gap
    return text.strip()


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command at the end of which stdout holds JSON; return that, its seconds and its peak memory."""
    started, peak, before = time.monotonic(), 0, os.times()
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output) as process:
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
        output.seek(0)
        result: Any = json.load(output)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "peak_bytes": peak,
        "result": result,
    }


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def study_way(path: Path) -> dict[str, Any]:
    """Take the data the way a study does before its first step; return seconds per step and counts."""
    from lingraft.config.schema import DataSource, Training
    from lingraft.data.batching import padded_tokens, token_budget_batches
    from lingraft.data.chat import encode_examples
    from lingraft.data.sources import load_data, split_data
    from lingraft.models.loading import load_tokenizer

    training = Training()
    seconds, last = {}, time.monotonic()

    def done(step: str) -> None:
        nonlocal last
        seconds[step], last = round(time.monotonic() - last, 1), time.monotonic()

    tokenizer = load_tokenizer(MODEL)
    done("load the tokenizer")
    loaded = load_data(DataSource(source=str(path)))
    done("read and check")
    split = split_data(loaded, limit=None, held_out_groups=100, seed=0)
    done("split")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        encoded = encode_examples(split.train, tokenizer, training.max_length, folder=Path(folder)).examples
        done("encode")
        batches = token_budget_batches(encoded.lengths, training.tokens_per_batch, seed=0, epoch=0)
        padded = padded_tokens(batches, encoded.lengths)
        done("plan batches")
    return {
        "seconds_per_step": seconds,
        "rows": loaded.n_rows,
        "train": len(split.train),
        "held_out": len(split.held_out),
        "tokens": encoded.tokens,
        "batches": len(batches),
        "padding": round(padded / encoded.tokens - 1, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--parts", nargs="+", choices=("show_data", "study"), default=("show_data", "study"))
    parser.add_argument("--study-way", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.study_way is not None:
        print(json.dumps(study_way(options.study_way)))
        return
    path = options.folder / f"large-{options.rows}.jsonl"
    if not path.exists():
        write_rows(path, options.rows)
    result = {
        "question": "peak memory (process and children, summed) and rows per second from file to planned batches",
        "rows": options.rows,
        "file_bytes": path.stat().st_size,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {
            name: version(name) for name in ("lingraft", "tokenizers", "transformers", "numpy", "torch")
        },
    }
    lingraft = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]
    commands = {
        "show_data": [*lingraft, "show", "data", str(path), "--model", MODEL, "--json"],
        "study": [sys.executable, __file__, "--study-way", str(path)],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    for part in options.parts:
        result[part] = _figures(watched(commands[part]), options.rows)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _figures(run: dict[str, Any], rows: int) -> dict[str, Any]:
    told = run["result"]
    return {
        "seconds": run["seconds"],
        "processor_seconds": run["processor_seconds"],
        "rows_per_second": round(rows / run["seconds"]),
        "peak_bytes": run["peak_bytes"],
        "tokens": told["lengths"]["total"] if "lengths" in told else told["tokens"],
        "load_average": os.getloadavg()[0],
        **{key: told[key] for key in ("seconds_per_step", "train", "batches", "padding") if key in told},
    }


if __name__ == "__main__":
    main()
