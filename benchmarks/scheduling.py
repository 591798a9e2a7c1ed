"""How long do the paper's 88 cells take on 1, 8 and 64 cards, how busy are these, and what limits it?

    python benchmarks/scheduling.py [--seed 0] [--cards 1 8 64] [--failures 500]
    python benchmarks/scheduling.py --measure RUNS      # when benchmarks/studies/stage_costs.yaml was run there

An event simulation. The stages are those that the planner makes of the paper's four recipes (36 + 36 + 8 + 8 cells, a
small model and small data in place of the real ones: the graph is the same), run at once on one cluster. What begins
next and how many cards it takes is decided by the functions that a run calls (`lingraft.study.schedule`); nodes have
eight cards, and a stage goes to the fullest node that has room. Two sets of costs:

- measured: what kinds of stages took for their FLOPs, or for a model's bytes, of what a processor can do, in a real run
  of the embedded model (benchmarks/results/stage_costs.json), taken to be the same share of a card's peak. Answering
  token by token reaches a smaller share of a card's, so these evaluations are short: they test a graph in which
  trainings weigh more.
- stated: 10 to 15 minutes on eight cards for a training of an 8B model on 52,002 rows, 3 to 6 card-hours for an
  evaluation, and other kinds as measured.

Each stage's time is multiplied by a lognormal factor (sigma 0.2). Cards fail at random; a node takes nothing new for
ten minutes then, a training begins again, an evaluation goes on from its answers. Printed for each: makespan, share of
the cards' time in which stages held them (and of it what failures threw away), the longest way through the graph stage
by stage, what limits. Results go into benchmarks/results/scheduling.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from tiny_study import make_model

from lingraft.config.schema import StrategyChoice
from lingraft.measures.des import Similarity
from lingraft.models.compute import compute_for
from lingraft.models.peak import known_flops, peak_of
from lingraft.models.shape import ModelShape
from lingraft.records import write_json_atomically
from lingraft.stage import Needs, StageSpec
from lingraft.study.checks import load_study
from lingraft.study.events import Watcher
from lingraft.study.plan import consumers_of
from lingraft.study.run import forecast_study, prepare_study
from lingraft.study.schedule import Node, cards_for, is_held_back, order, ranks
from lingraft.study.stages.evaluate import ITEMS_OF_A_PROCESS, Evaluate
from lingraft.study.stages.job import shape_in
from lingraft.study.stages.train import Train
from lingraft.study.store import Store
from lingraft.train.processes import Processes

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
COSTS, FOUND = RESULTS / "stage_costs.json", RESULTS / "scheduling.json"
STUDY = HERE / "studies" / "stage_costs.yaml"
RECIPES = ("paper_llama_3_8b", "paper_mistral_7b", "paper_llama_3_8b_instruct", "paper_mistral_7b_instruct")
CARD = "NVIDIA H100 80GB HBM3"
PER_NODE = 8
# What the recipes work through. Rows as the recipes limit them; tokens of a row as Alpaca's 52,002 have on average.
ROWS, ROW_TOKENS, LEARNED_SHARE = 52_002, 128, 0.6
# Items of suite:paper in eleven languages: number, tokens that are read, tokens that are generated or scored.
ITEMS = {"summaries": (48_000, 700, 64), "choices": (164_000, 150, 40), "questions": (28_000, 350, 16)}
REPLAYED_TOKENS, GENERATED_SHARE = 200, 0.8  # of a replayed answer; of an evaluation's time that generates
SIMILARITY_ROWS = 2000  # of each set: the most that its precision took (benchmarks/results/similarity.json)
LOAD_SECONDS = 60.0  # of an 8B model in each process
TRAINING_SECONDS = (600.0, 900.0)  # on eight cards
EVALUATION_SECONDS = (3 * 3600.0, 6 * 3600.0)  # on one
SIGMA = 0.2
REPAIR_SECONDS = 600.0


@dataclass(frozen=True)
class KindCost:
    """What a kind of stage took in the measured run.

    Attributes:
        stages: How many were measured.
        seconds: All of them.
        work: FLOPs of all; where none are counted, rows of both sets (similarity), or bytes of a model in float32.
        unit: `flops`, `rows` or `bytes`.
        share: Of the processor's peak, where FLOPs are counted; else rows or bytes a second.
    """

    stages: int
    seconds: float
    work: float
    unit: str
    share: float


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        seconds: On one card, or on a processor.
        fixed_seconds: Of these, those that more cards do not shorten.
    """

    seconds: float
    fixed_seconds: float

    def on(self, cards: int) -> float:
        """Return the seconds on so many cards."""
        return self.fixed_seconds + (self.seconds - self.fixed_seconds) / max(1, cards)


@dataclass(frozen=True)
class Outcome:
    """What a simulated run came to.

    Attributes:
        cards: In nodes of eight.
        hours: From the first stage to the last.
        busy: Share of the cards' time in which stages held them.
        lost: Share of the cards' time that failures threw away.
        failures: Cards that failed under a stage.
        critical_path: The stages of the longest way through the graph: kind, label, hours on as many cards of a node as
            make it faster, and the hour at which it was done.
        critical_hours: The hours of these.
        work_hours: Hours in which the cards would do all work, were they never idle.
        by_kind: Card-hours.
        most_on_disk: Models that lay on the disk at a time.
        limit: What the makespan follows from.
    """

    cards: int
    hours: float
    busy: float
    lost: float
    failures: int
    critical_path: tuple[tuple[str, str, float, float], ...]
    critical_hours: float
    work_hours: float
    by_kind: Mapping[str, float]
    most_on_disk: int
    limit: str


def main() -> None:
    """Measure, or simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seeds", type=int, default=3, help="Runs with other noise; the median makespan's is shown."
    )
    parser.add_argument("--failures", type=float, default=500, help="Card-hours between two failures.")
    parser.add_argument(
        "--measure", type=Path, metavar="RUNS", help="Read what a finished run took, and end."
    )
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    with TemporaryDirectory() as folder:
        stages = paper_stages(Path(folder))
        trainings = sum(isinstance(one, Train) for one in stages)
        print(f"{len(stages)} stages of 88 cells: {dict(Counter(one.kind for one in stages))}")
        assert trainings, "no recipe trains anything"
        found: dict[str, list[Any]] = {}
        for name in ("stated", "measured"):
            for cards in options.cards:
                runs = []
                for seed in range(options.seed, options.seed + options.seeds):
                    costs = stage_costs(stages, name, random.Random(seed))
                    runs.append(simulate(stages, costs, cards, options.failures, random.Random(seed + 1000)))
                runs.sort(key=lambda one: one.hours)
                middle = runs[len(runs) // 2]
                show(name, middle, runs)
                found.setdefault(name, []).append(
                    {**asdict(middle), "least_busy": min(one.busy for one in runs)}
                )
    write_json_atomically(
        FOUND,
        {
            "made_by": "python benchmarks/scheduling.py",
            "options": {key: value for key, value in vars(options).items() if key != "measure"},
            "card": CARD,
            "stages": dict(Counter(one.kind for one in stages)),
            "found": found,
        },
    )


def paper_stages(folder: Path) -> list[StageSpec]:
    """Return the stages of the paper's four recipes, as the planner makes them, of a small model and small data."""
    processes = Processes(PER_NODE, sharded=True, answering=1)
    found: dict[str, StageSpec] = {}
    cells = 0
    for number, recipe in enumerate(RECIPES):
        model = folder / f"model-{number % 2}"
        if not model.exists():
            make_model(model, seed=number % 2)
        written = yaml.safe_load((HERE.parent / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
        study = load_study(_with_small_data(written, model, folder))
        prepared = prepare_study(study, Path(), Watcher())
        plan = prepared.plan(Store(folder / recipe), Path(), processes)
        cells += len(plan.cells)
        found |= {stage.fingerprint: stage for stage in plan.stages}
    assert cells == 88, cells
    return list(found.values())


def _with_small_data(study: dict[str, Any], model: Path, folder: Path) -> dict[str, Any]:
    """Return a recipe with rows that are here: as many sets with the same strategies, so that its graph is the same."""
    study["model"] = str(model)
    study["encoder"] = "embedded"
    study["held_out"] = 2
    for phase in study["phases"]:
        if "checkpoint" in phase:
            phase["checkpoint"] = str(_other_model(folder, model))
        for place, name in enumerate(phase.get("data", {})):
            family = ("lookup", "counting")[place]
            language = "en" if phase["name"] == "one" else "de"
            phase["data"][name] = {
                "source": f"worldbook:{family}/{language}",
                "limit": 16,
                **({"english": f"worldbook:{family}/en"} if language == "de" else {}),
            }
    study["evaluate"] = {
        "task_ability": [{"task": "worldbook:lookup", "limit": 2}],
        "language_ability": [{"task": "worldbook:lookup", "limit": 2}],
        "precision": "float32",
    }
    study["training"]["precision"] = "float32"
    return study


def _other_model(folder: Path, model: Path) -> Path:
    path = folder / f"{model.name}-instruct"
    if not path.exists():
        make_model(path, seed=10 + int(model.name[-1]))
    return path


def stage_costs(stages: Sequence[StageSpec], name: str, chance: random.Random) -> dict[str, Cost]:
    """Return by fingerprint what each stage takes at full size, by one of the two sets of costs, with its noise."""
    measured = json.loads(COSTS.read_text(encoding="utf-8"))
    kinds = {kind: KindCost(**own) for kind, own in measured["kinds"].items()}
    peak = known_flops(CARD, torch.bfloat16, is_tf32=False)
    assert peak is not None
    plain = _training_flops(_shape_of("plain"), ROWS)
    reading = _answering_flops(_shape_of("plain"))
    found = {}
    for stage in stages:
        if isinstance(stage, Train):
            rows = ROWS * max(1, len(stage.job.data))
            replayed = sum(
                float(getattr(part, "share", 0.0)) for part in stage.job.composition.parts if part.mixes
            )
            rows = round(rows / (1 - replayed))
            shape = shape_in(HERE / "models" / "llama-3-8b", stage.job.choice)
            assert shape is not None
            flops = _training_flops(shape, rows)
            seconds = PER_NODE * chance.uniform(*TRAINING_SECONDS) * flops / plain
            if name == "measured":
                seconds = flops / (peak * kinds["train"].share)
            fixed = LOAD_SECONDS
            if any("previous" in part.needs for part in stage.job.composition.parts):
                answers = ROWS * replayed / (1 - replayed) * REPLAYED_TOKENS
                rate = (
                    sum(EVALUATION_SECONDS)
                    / 2
                    * GENERATED_SHARE
                    / sum(n * out for n, _, out in ITEMS.values())
                )
                if name == "measured":
                    rate = 2 * shape.matrices / (peak * kinds["evaluate"].share)
                seconds += answers * rate
        elif isinstance(stage, Evaluate):
            seconds = chance.uniform(*EVALUATION_SECONDS)
            if name == "measured":
                seconds = reading / (peak * kinds["evaluate"].share)
            fixed = LOAD_SECONDS
        else:
            own = kinds.get(stage.kind)
            assert own is not None, f"{stage.kind} was not measured"
            work = 2.0 * SIMILARITY_ROWS if own.unit == "rows" else 4.0 * _shape_of("plain").parameters
            seconds, fixed = work / own.share, 0.0  # on a processor, as measured
            if stage.needs.device == "accelerator":
                seconds, fixed = seconds * float(measured["peak"]) / peak, LOAD_SECONDS
        factor = chance.lognormvariate(0.0, SIGMA)
        found[stage.fingerprint] = Cost(fixed + seconds * factor, fixed)
    return found


def _shape_of(strategy: str) -> ModelShape:
    shape = shape_in(HERE / "models" / "llama-3-8b", StrategyChoice.model_validate(strategy))
    assert shape is not None
    return shape


def _training_flops(shape: ModelShape, rows: float) -> float:
    tokens = rows * ROW_TOKENS
    return shape.training_flops(tokens, tokens * ROW_TOKENS, tokens * LEARNED_SHARE, checkpointing=True)


def _answering_flops(shape: ModelShape) -> float:
    return sum(
        number * shape.forward_flops(read + out, (read + out) ** 2, out)
        for number, read, out in ITEMS.values()
    )


@dataclass
class _Node:
    free: int
    down_until: float = 0.0


@dataclass(frozen=True)
class _Running:
    stage: StageSpec
    node: _Node
    cards: int
    began: float


class Cluster:
    """Nodes of cards on which the stages of a plan run, by the clock of a simulation."""

    def __init__(
        self,
        stages: Sequence[StageSpec],
        costs: Mapping[str, Cost],
        cards: int,
        card_hours_between_failures: float,
        chance: random.Random,
    ) -> None:
        self.stages, self.costs, self.cards, self.chance = stages, costs, cards, chance
        self.machine = Node(min(cards, PER_NODE), 8 * min(cards, PER_NODE))
        self.nodes = [_Node(self.machine.cards) for _ in range(cards // self.machine.cards)]
        self.seconds_between_failures = 3600 * card_hours_between_failures
        self.needs = {one.fingerprint: _needs_of(one, self.machine.cards) for one in stages}
        self.left = dict.fromkeys(self.needs, 1.0)  # share of the work that is to be done
        self.queue = order(stages, {key: self.seconds(key, own.processes) for key, own in self.needs.items()})
        self.readers = consumers_of(stages)
        self.waits_for = {one.fingerprint: len({p.fingerprint for p in one.parents}) for one in stages}
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.at_work: dict[int, _Running] = {}
        self.events: list[tuple[float, int, str]] = []
        self.held = defaultdict[str, float](float)  # card-seconds by kind
        self.lost, self.failures, self.number, self.now = 0.0, 0, 0, 0.0
        self.on_disk: set[str] = set()
        self.most_on_disk = 0

    def can_share(self, key: str) -> bool:
        """Return whether a stage answers, and so may take more cards than it needs."""
        return self.needs[key].most_processes > self.needs[key].processes

    def seconds(self, key: str, cards: int) -> float:
        """Return what a stage, or what is left of it, takes on so many cards."""
        own = self.costs[key]
        return own.fixed_seconds + (own.on(cards) - own.fixed_seconds) * self.left[key]

    def begin_what_can(self) -> None:
        """Begin stages in their order, each on the fullest node that has room for it."""
        answering = sum(map(self.can_share, self.needs))
        busy = {one.stage.fingerprint for one in self.at_work.values()}
        waiting: list[int] = []
        for stage in self.queue:
            key = stage.fingerprint
            if key in self.ended or key in busy or self.waits_for[key]:
                continue
            cards = cards_for(self.needs[key], self.machine, self.cards, answering)
            room = [one for one in self.nodes if one.free >= cards and one.down_until <= self.now]
            if not room or is_held_back(cards, waiting):
                waiting.append(cards)
                continue
            node = min(room, key=lambda one: one.free)
            node.free -= cards
            self.number += 1
            self.at_work[self.number] = _Running(stage, node, cards, self.now)
            self.began.setdefault(key, self.now)
            seconds = self.seconds(key, cards)
            fails = self.chance.expovariate(cards / self.seconds_between_failures) if cards else math.inf
            event = "fails" if fails < seconds else "ends"
            heapq.heappush(self.events, (self.now + min(fails, seconds), self.number, event))
            if stage.is_discardable:
                self.on_disk.add(key)
                self.most_on_disk = max(self.most_on_disk, len(self.on_disk))

    def next_event(self) -> None:
        """Go on to the next event."""
        assert self.events, "stages wait and none is at work"
        self.now, number, event = heapq.heappop(self.events)
        if event == "repaired":
            return
        one = self.at_work.pop(number)
        one.node.free += one.cards
        self.held[one.stage.kind] += one.cards * (self.now - one.began)
        if event == "fails":
            self._fail(one)
            return
        self.ended[one.stage.fingerprint] = self.now
        for reader in self.readers[one.stage.fingerprint]:
            self.waits_for[reader.fingerprint] -= 1
        for parent in one.stage.parents:
            if all(reader.fingerprint in self.ended for reader in self.readers[parent.fingerprint]):
                self.on_disk.discard(parent.fingerprint)

    def _fail(self, one: _Running) -> None:
        key, took = one.stage.fingerprint, self.now - one.began
        useful = 0.0
        if self.can_share(key):  # its answers are kept
            fixed = self.costs[key].fixed_seconds
            useful = max(0.0, took - fixed)
            self.left[key] *= 1 - useful / max(self.seconds(key, one.cards) - fixed, 1e-9)
        self.failures += 1
        self.lost += one.cards * (took - useful)
        one.node.down_until = self.now + REPAIR_SECONDS
        heapq.heappush(self.events, (one.node.down_until, 0, "repaired"))


def simulate(
    stages: Sequence[StageSpec],
    costs: Mapping[str, Cost],
    cards: int,
    card_hours_between_failures: float,
    chance: random.Random,
) -> Outcome:
    """Return what a run on so many cards comes to; see the module."""
    cluster = Cluster(stages, costs, cards, card_hours_between_failures, chance)
    while len(cluster.ended) < len(stages):
        cluster.begin_what_can()
        cluster.next_event()
    ended, needs = cluster.ended, cluster.needs
    makespan, held = max(ended.values()), sum(cluster.held.values())
    fastest = {
        key: costs[key].on(max(own.processes, min(own.most_processes, cluster.machine.cards)))
        for key, own in needs.items()
    }
    longest = ranks(stages, fastest)
    critical_hours, work_hours = max(longest.values()) / 3600, (held - cluster.lost) / cards / 3600
    is_short = work_hours > critical_hours
    return Outcome(
        cards=cards,
        hours=makespan / 3600,
        busy=held / cards / makespan,
        lost=cluster.lost / cards / makespan,
        failures=cluster.failures,
        critical_path=tuple(
            (one.kind, one.label, fastest[one.fingerprint] / 3600, ended[one.fingerprint] / 3600)
            for one in _longest_path(stages, longest)
        ),
        critical_hours=critical_hours,
        work_hours=work_hours,
        by_kind={kind: seconds / 3600 for kind, seconds in cluster.held.items()},
        most_on_disk=cluster.most_on_disk,
        limit="the number of cards"
        if is_short
        else "the longest way through the graph: more cards do not help",
    )


def _needs_of(stage: StageSpec, node_cards: int) -> Needs:
    """Return a stage's needs at full size, on nodes of so many cards."""
    needs = stage.needs
    if isinstance(stage, Train):
        return replace(needs, processes=node_cards, most_processes=node_cards)
    if isinstance(stage, Evaluate):
        return replace(needs, most_processes=sum(n for n, _, _ in ITEMS.values()) // ITEMS_OF_A_PROCESS)
    return needs


def _longest_path(stages: Sequence[StageSpec], longest: Mapping[str, float]) -> list[StageSpec]:
    """Return the stages of the longest way through the graph, the first one first."""
    readers = consumers_of(stages)
    path = [max(stages, key=lambda one: longest[one.fingerprint])]
    while readers[path[-1].fingerprint]:
        path.append(max(readers[path[-1].fingerprint], key=lambda one: longest[one.fingerprint]))
    return path


def show(name: str, one: Outcome, runs: Sequence[Outcome]) -> None:
    """Print what a simulated run came to."""
    print(
        f"\n{name} costs, {one.cards} cards: {one.hours:.1f} h ({runs[0].hours:.1f} to {runs[-1].hours:.1f}), "
        f"{one.busy:.1%} busy (at least {min(run.busy for run in runs):.1%}), {one.lost:.1%} lost by "
        f"{one.failures} failures, at most {one.most_on_disk} models and states on the disk"
    )
    print("  card-hours: " + ", ".join(f"{kind} {hours:.1f}" for kind, hours in one.by_kind.items() if hours))
    print(f"  all work {one.work_hours:.1f} h, longest way {one.critical_hours:.1f} h; limit: {one.limit}")
    print("  the longest way (hours on as many cards of a node as help; hour at which it was done):")
    for kind, label, hours, ended in one.critical_path:
        print(f"    {kind:10} {hours:6.2f} h  {ended:6.1f}  {label}")


def measure(runs: Path) -> None:
    """Write what the kinds of stages of a finished run took for their work."""
    study = load_study(STUDY)
    found = forecast_study(study, runs=runs)
    unfinished = [one.label for one in found.stages if not one.is_finished]
    if unfinished:
        raise SystemExit(f"{runs / study.name}: {len(unfinished)} stages are not finished: {unfinished[0]}.")
    store = Store(runs / study.name)
    prepared = prepare_study(study, Path(), Watcher())
    plan = prepared.plan(store, Path())
    timings = {one.fingerprint: store.find(one).timing for one in plan.stages}  # type: ignore[union-attr]
    base = prepared.materials.base
    assert base is not None
    peak = peak_of(compute_for("float32")).flops
    peaks = [timing["peak"]["flops"] for timing in timings.values() if timing.get("peak")]
    if peaks:
        peak = sorted(peaks)[len(peaks) // 2]
    kinds = {}
    for kind in sorted({one.kind for one in found.stages}):
        own = [one for one in found.stages if one.kind == kind]
        seconds = sum(one.seconds or 0.0 for one in own)
        if all(one.flops for one in own):
            work, unit = sum(one.flops or 0.0 for one in own), "flops"
            share = work / seconds / peak
        else:
            work, unit = 4.0 * base.parameters * len(own), "bytes"
            if kind == "similarity":
                specs = [one for one in plan.stages if isinstance(one, Similarity)]
                work, unit = float(sum(len(s.first.rows) + len(s.second.rows) for s in specs)), "rows"
            share = work / seconds
        kinds[kind] = KindCost(len(own), seconds, work, unit, share)
    threads = {timing["threads"] for timing in timings.values()}
    write_json_atomically(
        COSTS,
        {
            "made_by": "lingraft run benchmarks/studies/stage_costs.yaml --runs RUNS; "
            "python benchmarks/scheduling.py --measure RUNS",
            "model": study.model,
            "parameters": base.parameters,
            "machine": next(iter(timings.values()))["machine"],
            "threads": sorted(threads),
            "peak": peak,
            "kinds": {kind: asdict(own) for kind, own in kinds.items()},
        },
    )
    print(COSTS.read_text())


if __name__ == "__main__":
    main()
