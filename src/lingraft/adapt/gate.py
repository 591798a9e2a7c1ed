"""What a check is given: two models, and what may be lost. Loads nothing heavy, as wrong input is refused first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lingraft.config.paths import user_path
from lingraft.errors import ConfigError, ModelError, did_you_mean
from lingraft.models.model_names import model_problem
from lingraft.text.language_tags import ENGLISH, canonical_tag, is_english


@dataclass(frozen=True, kw_only=True)
class MaxLosses:
    """What may be lost: shares of the score before, in [0, 1).

    Attributes:
        default: Of what has no limit of its own; None: all that decides must have one.
        named: By BCP-47 tag (`en`: task ability), or by task and language, such as `ifeval/en`.
    """

    default: float | None
    named: Mapping[str, float]

    @classmethod
    def of(cls, default: float | None, named: Mapping[str, float]) -> MaxLosses:
        """Return checked limits.

        Raises:
            ConfigError: There is none, one lies outside of [0, 1), or one is named twice.
        """
        if not isinstance(named, Mapping):
            raise ConfigError(f"limits {named!r:.80}: name what each is of, such as {{'th': 0.05}}.")
        if default is None and not named:
            raise ConfigError("--max-loss: say what may be lost, such as 0.02 for 2 % of the score before.")
        for value in (default, *named.values()):
            is_number = isinstance(value, int | float)
            if value is not None and not (is_number and 0 <= value < 1):
                hint = f" {value:g} % is {value / 100:g}." if is_number and 1 <= value < 100 else ""
                raise ConfigError(
                    f"--max-loss {value}: is a share of the score before, from 0 to below 1.{hint}"
                )
        found: dict[str, float] = {}
        for written, value in named.items():
            name = limit_name(written)
            if name in found:
                raise ConfigError(f"--max-loss {written}={value:g}: {name} has a limit already; keep one.")
            found[name] = value
        return cls(default=default, named=found)

    @classmethod
    def parsed(cls, written: Sequence[str]) -> MaxLosses:
        """Return the limits of `--max-loss`, each `0.02` or `NAME=0.02`.

        Raises:
            ConfigError: One is no number, or named twice; see `of`.
        """
        default: float | None = None
        named: dict[str, float] = {}
        for one in written:
            name, separator, number = one.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                raise ConfigError(
                    f"--max-loss {one!r}: write a share such as 0.02, or NAME=0.02 for one language or task."
                ) from None
            if (name in named) if separator else (default is not None):
                raise ConfigError(f"--max-loss {one}: {name or 'the default'} has a limit already; keep one.")
            if separator:
                named[name] = value
            else:
                default = value
        return cls.of(default, named)

    def of_ability(self, *names: str) -> float | None:
        """Return the limit of the first of the names that has one, else the default."""
        return next((self.named[name] for name in names if name in self.named), self.default)

    def check_against(self, abilities: Sequence[str], tasks: Sequence[str]) -> None:
        """Refuse limits of what is not asked, and abilities without one.

        Args:
            abilities: BCP-47 tags of the languages that are asked.
            tasks: By name and language, what is asked in them.

        Raises:
            ConfigError: Naming the limits or the abilities.
        """
        for name in self.named:
            if name not in (*abilities, *tasks):
                raise ConfigError(
                    f"--max-loss {name}={self.named[name]:g}: is nothing that is asked. "
                    f"{did_you_mean(name, (*abilities, *tasks))}"
                )
        without = [tag for tag in abilities if self.of_ability(tag) is None]
        if without:
            raise ConfigError(
                f"--max-loss: nothing is said of {', '.join(without)}, which is asked as well; add a limit for all "
                f"others, such as --max-loss 0.02, or its own, --max-loss {without[0]}=0.02."
            )


def limit_name(written: str) -> str:
    """Return what a limit is of, with its language as lingraft writes it: `iw` is `he`, `en-US` is `en`."""
    task, separator, language = written.rpartition("/")
    tag = canonical_tag(language) or language
    return f"{task}{separator}{ENGLISH if is_english(tag) else tag}"


def check_pair(model: str, against: str) -> None:
    """Check names and folders alone, which takes no time.

    Raises:
        ModelError: There can be no such model.
        ConfigError: Both are the same.
    """
    for name in (model, against):
        if (problem := model_problem(name)) is not None:
            raise ModelError(problem)
    if model == against or user_path(model).resolve() == user_path(against).resolve():
        raise ConfigError(
            f"{model}: would be checked against itself, and so never lose anything; --against names the model from "
            "before."
        )
