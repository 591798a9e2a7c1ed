"""How often is what `lingraft adapt` promises about English kept?

    python benchmarks/adapt_promise.py [--run runs/NAME ...] [--divisions 1000] [--simulations 500]

recorded (with `--run`: run folders of `lingraft adapt`, or of studies that interpolate, such as
benchmarks/studies/adapt_promise_*.yaml): the answers that
real models gave are divided into a selection and a report part at random, by cluster, `--divisions` times. On the one
the walk of `adapt` chooses a model, on the other the chosen one is looked at. What is counted is how often it lost
more than the limit there: by the estimate, by the interval, and of all items together. The models are those that were
trained once; what is drawn anew is who is asked what.

simulated: models whose true losses are known and lie at the limit or beyond, the worst case of the guarantee, on items
that are right or wrong, alone or in clusters of 1 to 3 of which half go alike. Every choice of a model that truly lost
the limit or more is an error, of which the guarantee allows 5 %.

Both call `lingraft.adapt.walk.walk`. Writes benchmarks/results/adapt_promise.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lingraft.adapt import promise as promise_module
from lingraft.adapt import walk as walk_module
from lingraft.adapt.promise import AbilityLoss, Gain, gain_in_scores, items_needed, loss_of
from lingraft.adapt.walk import Candidate, Compared, Look, Promise, alphas, judged, walk
from lingraft.evaluate.predictions import Ability, Prediction, read_predictions
from lingraft.records import read_json
from lingraft.study.result import read_result
from lingraft.study.stages.evaluate import PREDICTIONS

RESULTS = Path(__file__).parent / "results" / "adapt_promise.json"
LIMITS = (0.02, 0.05, 0.1, 0.2)
STEPS = alphas(5)
GROUPS = ("0-9", "10-19", "20-29")

# ---- recorded answers


@dataclass(frozen=True)
class Recorded:
    """What the models of one study answered to the same items.

    Attributes:
        name: The study's.
        languages: That are learnt.
        start: Answers of the Phase 1 model.
        models: By alpha, those of the model there.
    """

    name: str
    languages: tuple[str, ...]
    start: tuple[Prediction, ...]
    models: Mapping[float, tuple[Prediction, ...]]

    def part(self, chosen: Callable[[Prediction], bool], alpha: float) -> Compared:
        """Return the answers of the start and of the model at `alpha` to the items that are chosen."""

        def of(ability: Ability) -> tuple[list[Prediction], list[Prediction]]:
            before, after = (
                [one for one in own if one.ability == ability and chosen(one)]
                for own in (self.start, self.models[alpha])
            )
            return before, after

        return Compared({"en": of("task_ability")}, of("language_ability"), ([], []))


def recorded(run: Path) -> Recorded:
    """Return what a study recorded, whose strategies are plain and interpolate; or an adaptation, of all weights."""
    if not (run / "result.json").is_file():
        return of_adaptation(run)
    result = read_result(run)
    models = {}
    for cell in result.done:
        alpha = 1.0 if cell.strategy == "plain" else float(cell.strategy.removeprefix("interpolate-"))
        models[alpha] = read_predictions(run / cell.predictions)
    start = read_predictions(run / result.done[0].phase_one_predictions)
    return Recorded(run.name, languages_of(start), start, dict(sorted(models.items())))


def of_adaptation(run: Path) -> Recorded:
    """Return what an adaptation's models answered to the selection part; the trained one must be among them."""
    alphas: dict[str, float] = {}
    for path in (run / "stages").glob("combine-*/record.json"):
        (part,) = read_json(path)["inputs"]["strategy"]
        if not part["options"]["layers"]:
            alphas[path.parent.name.removeprefix("combine-")] = part["options"]["alpha"]
    start: tuple[Prediction, ...] = ()
    models: dict[float, tuple[Prediction, ...]] = {}
    for path in (run / "stages").glob("evaluate-*/record.json"):
        inputs = read_json(path)["inputs"]
        if inputs["manifest"]["split"] != "selection":
            continue
        stage = inputs["model"].get("stage")
        if stage in alphas:
            models[alphas[stage]] = read_predictions(path.parent / PREDICTIONS)
        elif "weights" in inputs["model"]:
            start = read_predictions(path.parent / PREDICTIONS)
    return Recorded(run.name, languages_of(start), start, dict(sorted(models.items())))


def languages_of(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """Return the languages that are learnt."""
    return tuple(sorted({one.language for one in predictions if one.ability == "language_ability"}))


def divided(seed: int) -> tuple[Callable[[Prediction], bool], Callable[[Prediction], bool]]:
    """Return what says of an item whether it is in the selection part, and whether in the report part."""

    @cache
    def is_reported(cluster: str) -> bool:
        return sha256(f"{seed}\0{cluster}".encode()).digest()[0] % 2 == 1

    return lambda one: not is_reported(one.cluster), lambda one: is_reported(one.cluster)


def once(of: Callable[..., AbilityLoss]) -> Callable[..., AbilityLoss]:
    """Return `loss_of` that reckons the interval of two lists of scores once, whatever the limit."""
    known: dict[tuple[int, int], tuple[AbilityLoss, object]] = {}

    def found(name: str, before: Any, after: Any, max_loss: float) -> AbilityLoss:
        key = (id(before), id(after))
        if key not in known:
            known[key] = of(name, before, after, max_loss), (before, after)  # which keeps their ids theirs
        one = known[key][0]
        if one.loss is None or one.low is None or one.high is None or one.certifiable_loss is None:
            return replace(one, max_loss=max_loss)
        return replace(
            one,
            max_loss=max_loss,
            answer="held" if one.high <= max_loss else "broken" if one.low > max_loss else "undecided",
            items_needed=items_needed(one.n, one.certifiable_loss, max_loss, one.before.value),
        )

    return found


def asked_of(part: Mapping[float, Compared]) -> Look:
    """Return what asks a candidate of the walk: its recorded answers to one part of the items."""
    return lambda candidate: (part[candidate.alpha], "", "")


def of_recorded(answers: Recorded, divisions: int) -> dict[str, Any]:
    """Return what the walk chose in each division and what the report part says of it, by limit."""
    steps = tuple(answers.models)
    whole = {alpha: judged(Promise(0.0), answers.part(lambda _: True, alpha)) for alpha in steps}
    rows: dict[float, list[dict[str, Any]]] = {limit: [] for limit in LIMITS}
    sizes = []
    for seed in range(divisions):
        chosen, reported = divided(seed)
        selection = {alpha: answers.part(chosen, alpha) for alpha in steps}
        report = {alpha: answers.part(reported, alpha) for alpha in steps}
        sizes.append([len(one[1.0].abilities["en"][0]) for one in (selection, report)])
        cached = once(loss_of)
        with (
            mock.patch.object(walk_module, "loss_of", cached),
            mock.patch.object(promise_module, "loss_of", cached),
        ):
            plain_gain = judged(Promise(0.0), report[1.0])[1]
            assert plain_gain is not None
            for limit in LIMITS:
                promise = Promise(limit, learnt=answers.languages)
                found = walk(promise, asked_of(selection), steps=steps, groups=())
                if found.chosen is None:
                    rows[limit].append({"answer": found.answer})
                    continue
                losses, gain = judged(promise, report[found.chosen.alpha])
                assert gain is not None
                rows[limit].append(
                    {
                        "answer": found.answer,
                        "alpha": found.chosen.alpha,
                        "over": (losses[0].loss or 0.0) > limit,
                        "report": losses[0].answer,
                        "truly over": (whole[found.chosen.alpha][0][0].loss or 0.0) > limit,
                        "gain": gain.value,
                        "plain": plain_gain.value,
                    }
                )
    return {
        "run": answers.name,
        "divisions": divisions,
        "items": {"selection": _middle(sizes, 0), "report": _middle(sizes, 1)},
        "models": [
            {
                "alpha": alpha,
                "loss": [_rounded(losses[0].loss), _rounded(losses[0].low), _rounded(losses[0].high)],
                "gain": None if gain is None else [round(gain.value, 4), gain.answer],
                "score of the start": round(losses[0].before.value, 4),
                "certifiable loss": _rounded(losses[0].certifiable_loss),
            }
            for alpha, (losses, gain) in whole.items()
        ],
        "limits": [_summary(limit, own, steps) for limit, own in rows.items()],
    }


def _summary(limit: float, rows: Sequence[Mapping[str, Any]], steps: Sequence[float]) -> dict[str, Any]:
    found = [one for one in rows if "alpha" in one]

    def share(test: Callable[[Mapping[str, Any]], bool]) -> float:
        return round(sum(map(test, found)) / len(rows), 4)

    gains = [sum(one[key] for one in found) for key in ("gain", "plain")]
    return {
        "limit": limit,
        "found": round(len(found) / len(rows), 4),
        "alphas": {f"{alpha:g}": sum(one["alpha"] == alpha for one in found) for alpha in steps},
        "over by the estimate": share(lambda one: one["over"]),
        "broken by the interval": share(lambda one: one["report"] == "broken"),
        "held by the interval": share(lambda one: one["report"] == "held"),
        "over of all items": share(lambda one: one["truly over"]),
        "gain of plain's": round(gains[0] / gains[1], 4) if found else None,
    }


def _middle(sizes: Sequence[Sequence[int]], place: int) -> int:
    return int(np.median([one[place] for one in sizes]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# ---- simulated answers


@dataclass(frozen=True)
class Setting:
    """Models whose true losses are known.

    Attributes:
        name: What lies where.
        clusters: Independent units of English.
        rate: The start's score.
        limit: What may be lost.
        losses: True loss at each alpha, of the whole model and with a group of layers kept back alike.
        groups: Groups of layers that are walked.
        gained: Share of the items that a model gets right and the start does not, beside what it loses.
        is_clustered: Clusters of 1 to 3 items, of which half go alike; else each is one item.
    """

    name: str
    clusters: int
    rate: float
    limit: float
    losses: tuple[float, ...]
    groups: tuple[str, ...] = GROUPS
    gained: float = 0.02
    is_clustered: bool = False


def settings() -> Iterator[Setting]:
    for clusters, rate, limit in ((100, 0.4, 0.1), (300, 0.4, 0.1), (300, 0.8, 0.05), (1000, 0.5, 0.02)):
        at = (limit,) * 5
        yield Setting("all at the limit", clusters, rate, limit, at)
        yield Setting(
            "the third at the limit", clusters, rate, limit, (0.0, limit / 2, limit, 2 * limit, 3 * limit)
        )
    yield Setting("all at the limit", 300, 0.4, 0.1, (0.1,) * 5, is_clustered=True)
    yield Setting("all at the limit, whole model only", 300, 0.4, 0.1, (0.1,) * 5, groups=())
    yield Setting("all at the limit, nothing gained", 300, 0.8, 0.05, (0.05,) * 5, gained=0.0)


_WRONG = [Prediction("task_ability", "", "en", "", "", 0.0, "", "", "")]
NO_LOSS = loss_of("en", _WRONG, _WRONG, 0.0)


def _items(right: Sequence[float], clusters: Sequence[int], language: str) -> list[Prediction]:
    ability: Ability = "task_ability" if language == "en" else "language_ability"
    return [
        Prediction(ability, "task", language, str(cluster), str(number), float(score), "", "", "")
        for number, (score, cluster) in enumerate(zip(right, clusters, strict=True))
    ]


def of_simulated(setting: Setting, seed: int, simulations: int) -> dict[str, Any]:
    """Return how often a model that truly lost the limit or more was chosen."""
    generator = np.random.default_rng(seed)
    sizes = np.ones(setting.clusters, dtype=int)
    if setting.is_clustered:
        sizes = generator.integers(1, 4, setting.clusters)
    clusters = np.repeat(np.arange(setting.clusters), sizes)
    learnt = [_items([float(i < 10 * step) for i in range(60)], range(60), "th") for step in range(6)]
    gains: dict[int, Gain] = {}  # by what is compared with the start, which is the same in every simulation

    def judge_gain(_: Promise, pair: Compared) -> tuple[tuple[AbilityLoss, ...], Gain]:
        """Return the gain alone: what is certified is decided by `is_certified`, which reckons the losses itself."""
        after = pair.learnt[1]
        if id(after) not in gains:
            gains[id(after)] = gain_in_scores(*pair.learnt)
        return (NO_LOSS,), gains[id(after)]

    wrong = found_any = 0
    for _ in range(simulations):
        goes_alike = generator.random(len(clusters)) < (0.5 if setting.is_clustered else 0.0)

        def draw(goes_alike: Any = goes_alike) -> Any:  # uniform numbers, shared in half of a cluster's items
            own, shared = generator.random(len(clusters)), generator.random(setting.clusters)[clusters]
            return np.where(goes_alike, shared, own)

        known = draw() < setting.rate
        before = _items(known, clusters.tolist(), "en")
        # Each chain draws by itself which items it changes; along a chain the same ones go first.
        paths = {group: (draw(), draw()) for group in (None, *setting.groups)}

        def look(one: Candidate, known: Any = known, before: Any = before, paths: Any = paths) -> Any:
            step = STEPS.index(one.alpha)
            lost, won = paths[one.kept_back]
            gained = setting.gained / (1 - setting.rate)
            lost_share = setting.losses[step] + setting.gained / setting.rate
            after = np.where(known, lost >= lost_share, won < gained)
            english = (before, _items(after, clusters.tolist(), "en"))
            return Compared({"en": english}, (learnt[0], learnt[step + 1]), ([], [])), "", ""

        with mock.patch.object(walk_module, "judged", judge_gain):
            found = walk(Promise(setting.limit, learnt=("th",)), look, steps=STEPS, groups=setting.groups)
        if found.chosen is not None:
            found_any += 1
            wrong += setting.losses[STEPS.index(found.chosen.alpha)] >= setting.limit
    return {
        "setting": setting.name,
        "simulations": simulations,
        "seed": seed,
        "clusters": setting.clusters,
        "items": len(clusters),
        "score": setting.rate,
        "limit": setting.limit,
        "groups": len(setting.groups),
        "clustered": setting.is_clustered,
        "gained": setting.gained,
        "found": round(found_any / simulations, 4),
        "wrong": round(wrong / simulations, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument("--divisions", type=int, default=1000)
    parser.add_argument("--simulations", type=int, default=500)
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    result["versions"] = {name: version(name) for name in ("lingraft", "numpy", "scipy")}
    result["python"] = platform.python_version()

    def keep(key: str, found: list[dict[str, Any]]) -> None:
        """Print the last of what was found, and write all: the whole takes long."""
        print(json.dumps(found[-1]), flush=True)
        result[key] = found
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    found: list[dict[str, Any]] = []
    for run in options.run:
        found.append(of_recorded(recorded(run), options.divisions))
        keep("recorded", found)
    found = []
    for seed, setting in enumerate(settings() if options.simulations else ()):
        found.append(of_simulated(setting, seed, options.simulations))
        keep("simulated", found)


if __name__ == "__main__":
    main()
