"""Does `lingraft difference` read models far larger than its memory, and how near to the bare reading of them?

    python benchmarks/difference.py [--gigabytes 4.3] [--folder FOLDER]

Writes two sharded models of that size (bf16, a LLaMA of width 4096 with a vocabulary of 128,256, random numbers),
then runs in processes of their own, alternating: the difference as users run it; a bare warm pass, which holds each
tensor in memory, converts it to float64 and sums it; and a bare cold pass, which reads the files' bytes and does
nothing with them. "Cold" empties the page cache of these files before (POSIX_FADV_DONTNEED). Memory is the kernel's
peak of resident memory (VmHWM). The MPD is compared with the naive one, both tensors whole in float64. Writes
benchmarks/results/difference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "difference.json"
WIDTH, INNER, VOCABULARY = 4096, 14336, 128_256
ROUNDS = 3
SHARD_BYTES = 1 << 30


def shapes(gigabytes: float) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model of at least that size in bf16."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    layer = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH // 4, WIDTH),
        "self_attn.v_proj": (WIDTH // 4, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    number = 0
    while 2 * sum(_count(shape) for shape in found.values()) < gigabytes * 1e9:
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        number += 1
    return found


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def write_models(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """Write two models in shards; the second is the first, moved a little."""
    import torch
    from safetensors.torch import save_file

    paths = (folder / "one", folder / "other")
    places: dict[str, str] = {}
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes(gigabytes).items():
        if size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * _count(shape)
    for path in paths:
        path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(names, file)
        one = {
            name: torch.randn(shapes(gigabytes)[name], generator=generator).mul_(0.02).bfloat16()
            for name in names
        }
        save_file(one, paths[0] / file)
        save_file(
            {name: (w.float() + 0.001 * w.float().flip(0)).bfloat16() for name, w in one.items()},
            paths[1] / file,
        )
    for path in paths:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (path / "config.json").write_text('{"model_type": "llama"}')
    return paths


def bare_warm(paths: list[Path]) -> float:
    """Hold every tensor in memory, then convert it to float64 and sum it; return the seconds of that alone."""
    import torch
    from safetensors import safe_open

    seconds = 0.0
    for path in paths:
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    tensor = opened.get_tensor(name).clone()
                    started = time.perf_counter()
                    for piece in torch.split(tensor.view(-1), 1 << 17):
                        piece.double().sum()
                    seconds += time.perf_counter() - started
    return seconds


def bare_cold(paths: list[Path]) -> float:
    """Read the files' bytes; return the seconds."""
    started = time.perf_counter()
    buffer = bytearray(8 << 20)
    for path in paths:
        for file in sorted(path.glob("*.safetensors")):
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass
    return time.perf_counter() - started


def naive_mpd(paths: list[Path]) -> float:
    """Return the MPD with both tensors whole in float64."""
    from safetensors import safe_open

    distances = []
    for file in sorted(paths[0].glob("*.safetensors")):
        with safe_open(file, framework="pt") as one, safe_open(paths[1] / file.name, framework="pt") as other:
            names = list(one.keys())
            distances += [
                float((one.get_tensor(n).double() - other.get_tensor(n).double()).norm()) for n in names
            ]
    return sum(distances) / len(distances)


def forget_cache(paths: list[Path]) -> None:
    """Ask the kernel to drop the files from its cache."""
    for path in paths:
        for file in path.glob("*.safetensors"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def child(part: str, paths: list[Path]) -> dict[str, Any]:
    """Run one part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--paths", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_part(part: str, paths: list[Path]) -> dict[str, Any]:
    """Return what one part took."""
    from lingraft.train.memory import peak_bytes

    if part == "naive":
        return {"mpd": naive_mpd(paths)}
    if part in ("warm", "cold"):
        return {"seconds": bare_warm(paths) if part == "warm" else bare_cold(paths)}
    from lingraft.weights.difference import parameter_difference

    started = time.perf_counter()
    found = parameter_difference(*paths)
    return {"seconds": time.perf_counter() - started, "mpd": found.mpd, "peak_bytes": peak_bytes()}


def measure(paths: list[Path]) -> dict[str, Any]:
    """Return the rounds' ratios, the memory and the error."""
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(ROUNDS):
        one: dict[str, dict[str, Any]] = {}
        for name, part in (("cold", "cold"), ("difference, cold", "difference")):
            forget_cache(paths)
            one[name] = child(part, paths)
        child("cold", paths)  # into the cache, as far as it holds them
        one["difference, warm"] = child("difference", paths)
        one["warm"] = child("warm", paths)
        print(f"round {len(rounds) + 1}: {one}", file=sys.stderr)
        rounds.append(one)
    naive = child("naive", paths)["mpd"]
    found = rounds[0]["difference, warm"]["mpd"]
    return {
        "rate_against_bare_cold": _spread(
            [r["cold"]["seconds"] / r["difference, cold"]["seconds"] for r in rounds]
        ),
        "rate_against_bare_warm": _spread(
            [r["warm"]["seconds"] / r["difference, warm"]["seconds"] for r in rounds]
        ),
        "peak_gigabytes": max(r[name]["peak_bytes"] for r in rounds for name in r if "difference" in name)
        / 1e9,
        "relative_error_of_mpd": abs(found - naive) / naive,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.3)
    parser.add_argument(
        "--folder", type=Path, help="where the models are written; default: a temporary folder"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_part(options.part, options.paths)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = list(write_models(Path(folder), options.gigabytes))
        sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e9 for path in paths]
        result = {
            "question": "how near does the difference of two large models come to the bare reading of them",
            "gigabytes": sizes,
            "rounds": ROUNDS,
            **measure(paths),
            "cores": os.cpu_count(),
            "versions": {name: version(name) for name in ("lingraft", "torch", "safetensors")},
            "python": platform.python_version(),
        }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
