"""A large run, written in the real formats by the project's own writers: nothing is trained, all figures are computed.

`large_run(folder, sets, strategies, seeds)` has a cell for each of them, a Phase 1 model for each seed, and the base
model. Each model answers the same items in the given languages; how well depends on the cell. The same arguments give
the same run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from example_result import TRAINED, done_cell, failed_cell, matrix, result
from pydantic import JsonValue

from lingraft.config.load import save_study
from lingraft.config.schema import Study
from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.evaluate.predictions import Prediction, write_predictions
from lingraft.evaluate.results import BitsPerCharacter, EvaluationRecord, Forgetting, Scores
from lingraft.evaluate.scores import difference_over_seeds, differences, retention, score_summary
from lingraft.measures.base import FROM_PHASE_ONE, Figure, Found, Measured
from lingraft.records import fingerprint_of, to_json
from lingraft.stage_record import StageRecord, artefact_of
from lingraft.study.result import (
    CellResult,
    FailedCell,
    PhaseOneResult,
    SeedDifferences,
    StudyResult,
    write_result,
)

# Letters of each language's words; a comma is none of them.
LETTERS: Final = {
    "en": "etaoinshrdlucmfwypvbgk",
    "de": "enirstahdulcgmobwfkzäöüß",
    "es": "eaosrnidlctumpbgñáéí",
    "fr": "esaitnruolcdmpéàèç",
    "ru": "оеаинтсрвлкмдпуяыьгзб",
    "ar": "المنتيوبردعسفقحكجشصخ",
    "he": "היומלאתבשרנחדקצפכג",
    "hi": "करनतसयमलपदवहबचिाीेों",
    "th": "การนเมอยทลสวดคตบปหพจ",
    "zh": "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出",
    "ja": "のにはをたがでてとしれさあいうえおかきくけこ日本人",
    "ko": "이다가는을의에서하고한지도로사기어나자리",
}
UNSPACED: Final = ("th", "zh", "ja")
TASKS: Final = ("worldbook:lookup", "belebele")  # the second is one of likelihoods
SPOKEN = (
    "plain",
    "mixed",
    "english_replay",
    "generative_replay",
    "interpolate",
    "l2_anchor",
    "ewc",
    "lora",
    "ssu",
)


@dataclass(frozen=True)
class Size:
    """How large the run is; each model answers `items` items, a third of them in English."""

    sets: int = 5
    strategies: int = 20
    seeds: int = 5
    items: int = 198
    steps: int = 200
    layers: int = 32


def large_run(folder: Path, size: Size, written: Callable[[int], None] = lambda _: None) -> StudyResult:
    """Write the run folder, and return its result; `written` is called with the number of models so far."""
    folder.mkdir(parents=True)
    words = {tag: _words(tag) for tag in LETTERS}
    items = list(_items(size.items, words))
    base_path, _, base_scores = _model(folder, "base", 0.15, items, words)
    starts = {seed: _model(folder, f"phase 1, seed {seed}", 0.6, items, words) for seed in range(size.seeds)}
    sets = [f"set_{number}" for number in range(size.sets)]
    names = [
        SPOKEN[n % len(SPOKEN)] + (f"-{n // len(SPOKEN)}" if n >= len(SPOKEN) else "")
        for n in range(size.strategies)
    ]
    cells: list[CellResult] = []
    pooled: list[SeedDifferences] = []
    for place, data in enumerate(sets):
        for number, strategy in enumerate(names):
            skill = 0.35 + 0.5 * ((7 * number + 3 * place) % 20) / 20
            pairs = []
            for seed, (start_path, start, start_scores) in starts.items():
                path, own, scores = _model(folder, f"{data} / {strategy} / {seed}", skill, items, words)
                pairs.append((start, own))
                kept = _Model(path, start_path, scores, (base_scores, start_scores))
                cells.append(_cell(data, strategy, seed, kept, start, own, size))
                written(len(cells))
            if size.seeds > 1:
                pooled.append(
                    SeedDifferences(
                        data=data,
                        strategy=strategy,
                        seeds=len(pairs),
                        task_ability=difference_over_seeds(pairs, "task_ability"),
                        language_ability=difference_over_seeds(pairs, "language_ability"),
                        retention=retention(pairs),
                        limits={},
                    )
                )
    cells_with_failure: list[CellResult | FailedCell] = [
        *cells,
        failed_cell(sets[0], "lora-of-rank-512", reason="out of memory: 81 GB are asked for"),
    ]
    found = replace(
        result(folder, cells_with_failure),
        base=base_scores,
        base_predictions=base_path,
        phase_ones=tuple(
            PhaseOneResult(
                data="english", strategy="plain", seed=seed, scores=scores, predictions=path, checkpoint=None
            )
            for seed, (path, _, scores) in starts.items()
        ),
        over_seeds=tuple(pooled),
        tokenizer_cost={f"two/{data}": {tag: _cost(tag) for tag in LETTERS} for data in sets},
    )
    write_result(found)
    save_study(_study(sets, names, size.seeds), folder / "study.yaml")
    return found


@dataclass(frozen=True)
class _Model:
    """Where a cell's answers and those of its Phase 1 are, its scores, and those of base and Phase 1."""

    path: str
    start_path: str
    scores: Scores
    before: tuple[Scores, Scores]


def _cell(
    data: str,
    strategy: str,
    seed: int,
    model: _Model,
    start: Sequence[Prediction],
    own: Sequence[Prediction],
    size: Size,
) -> CellResult:
    generator = random.Random(f"{data}/{strategy}/{seed}")
    plain = done_cell(strategy, seed)
    found = differences(start, own)
    ability, taught = model.scores.task_ability, model.scores.language_ability
    layers: list[JsonValue] = [
        {
            "layer": layer,
            "mean_cosine": 1 - 0.004 * layer * generator.random(),
            "cka": None,
            "trace_change": None,
            "variance_change": None,
            "covariance_change": 0.01 * layer * generator.random(),
        }
        for layer in range(size.layers)
    ]
    drift = Found({"covariance": Figure(0.1 + 0.1 * generator.random())}, {"layers": layers})
    rows = {
        name: [one.task_ability.value, one.language_ability.value]
        for name, one in zip(("base", "one", "two"), (*model.before, model.scores), strict=True)
        if one.task_ability is not None and one.language_ability is not None
    }
    phase = replace(
        plain.phases[0],
        data=data,
        strategy=strategy,
        scores=model.scores,
        losses=tuple(
            (step, 2.5 / (step + 1) ** 0.2 + 0.1 * generator.random()) for step in range(size.steps)
        ),
        measures=plain.phases[0].measures | {"drift": Measured({FROM_PHASE_ONE: drift})},
    )
    return (
        replace(
            plain,
            data=data,
            retention=retention([(start, own)]),
            gain=found.language_ability.value,
            difference=found,
            scores=model.scores,
            predictions=model.path,
            phase_one_predictions=model.start_path,
            forgetting=Forgetting(matrix(("one", "two"), rows, found.task_ability.value), None),
            phases=(phase,),
            training=TRAINED,
            cost=replace(plain.cost, training_seconds=20 + 10 * generator.random()),
            checkpoint=f"stages/train-{fingerprint_of([data, strategy, seed])}/checkpoint",
        )
        if ability is not None and taught is not None
        else plain
    )


def _model(
    folder: Path, name: str, skill: float, items: Sequence[Prediction], words: Mapping[str, Sequence[str]]
) -> tuple[str, list[Prediction], Scores]:
    """Write the stage of a model's evaluation; return the path of its answers, the answers and its scores."""
    generator = random.Random(name)
    answers = [_answer(one, skill, generator, words) for one in items]
    bits = {
        tag: BitsPerCharacter(value, value - 0.1, value + 0.1, 50, 5000)
        for tag, value in ((tag, 2 - skill + 0.2 * generator.random()) for tag in LETTERS)
    }
    scores = score_summary(answers, bits)
    inputs = {"model": name}
    stage = folder / "stages" / f"evaluate-{fingerprint_of({'kind': 'evaluate', **inputs})}"
    stage.mkdir(parents=True)
    path = stage / "predictions.parquet"
    write_predictions(path, answers)
    record = EvaluationRecord(scores, {}, "bf16", {}, {})
    StageRecord("evaluate", inputs, to_json(record), {path.name: artefact_of(path)}).write(stage)
    return f"stages/{stage.name}/{path.name}", answers, scores


def _items(count: int, words: Mapping[str, Sequence[str]]) -> Iterator[Prediction]:
    """Yield the items, with their right answers in place of responses."""
    generator = random.Random(0)
    others = [tag for tag in LETTERS if tag != "en"]
    for number in range(count):
        tag = "en" if number % 3 == 0 else others[number // 3 % len(others)]
        task = TASKS[number // 3 % 7 == 0]
        reference = _text(tag, generator, words, 12, 40)
        name = f"{task.partition(':')[2] or task}/{tag}/{number}"
        yield Prediction(
            ability="task_ability" if tag == "en" else "language_ability",
            task=task,
            language=tag,
            cluster=name,
            item=name,
            score=1.0,
            prompt="<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
            f"{_text(tag, generator, words, 30, 80)}<|im_end|>\n<|im_start|>assistant\n",
            response=reference,
            reference=reference if task == TASKS[0] else str(generator.randrange(4)),
            asked=fingerprint_of(name),
        )


def _answer(
    item: Prediction, skill: float, generator: random.Random, words: Mapping[str, Sequence[str]]
) -> Prediction:
    """Return a model's answer: the right one, one that goes another way after its beginning, or another language's."""
    is_right = generator.random() < skill
    if item.task != TASKS[0]:
        chances = [-3 - 5 * generator.random() for _ in range(4)]
        return replace(item, score=float(is_right), response=str([(f"{one}", "False") for one in chances]))
    tag = "en" if not is_right and generator.random() < 0.2 else item.language
    response = item.reference
    if not is_right:
        kept = item.reference[: generator.randrange(len(item.reference))]
        response = kept + _text(tag, generator, words, 8, 40)
    return replace(
        item,
        score=float(is_right) if generator.random() < 0.8 else 0.5,
        response=response,
        form=1.0,
        content=float(is_right),
        chrf=0.9 if is_right else 0.4,
        wrong_language=tag != item.language,
        language_judged=True,
        empty=False,
        looping=False,
        truncated=False,
    )


def _words(tag: str) -> list[str]:
    generator = random.Random(tag)
    letters = LETTERS[tag]
    longest = 3 if tag in UNSPACED else 9
    return ["".join(generator.choices(letters, k=generator.randint(1, longest))) for _ in range(3000)]


def _text(
    tag: str, generator: random.Random, words: Mapping[str, Sequence[str]], fewest: int, most: int
) -> str:
    """Return words, of which a few are most of the text, as in every language."""
    own = words[tag]
    chosen = [own[int(len(own) * generator.random() ** 3)] for _ in range(generator.randint(fewest, most))]
    return ("" if tag in UNSPACED else " ").join(chosen)


def _cost(tag: str) -> LanguageCost:
    factor = 1 + len(tag.encode()) + len(LETTERS[tag].encode()) / len(LETTERS[tag])
    return LanguageCost(
        *(900, 900, int(30_000 * factor), None if tag in UNSPACED else 1.3 * factor, 0.3 * factor, 0.1),
        *(None if tag in UNSPACED else factor, factor, factor, "worldbook", 40),
    )


def _study(sets: Sequence[str], strategies: Sequence[str], seeds: int) -> Study:
    return Study.model_validate(
        {
            "name": "large",
            "model": "embedded:smollm2-135m",
            "phases": [
                {"name": "one", "data": {"english": {"source": "worldbook:lookup/en"}}},
                {
                    "name": "two",
                    "data": {name: {"source": f"worldbook:lookup/{','.join(LETTERS)}"} for name in sets},
                    "strategies": [{name.partition("-")[0]: {"name": name}} for name in strategies],
                },
            ],
            "seeds": list(range(seeds)),
        }
    )
