"""The study files that come with lingraft, and what submits them to clusters: where they lie, and which there are.

`lingraft copy`, `lingraft ls recipes` and `lingraft ls clusters` stand on this module. An installed wheel carries
them inside the package; a checkout (also an editable install) has them in `recipes/` beside `src/`.
"""

from __future__ import annotations

from pathlib import Path

from lingraft.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe_folder() -> Path:
    """Return the folder of the recipes: the wheel's copy, else the one of the checkout.

    Raises:
        ConfigError: Neither exists, so the installation is incomplete.
    """
    candidates = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")
    for folder in candidates:
        if folder.is_dir():
            return folder
    places = " nor ".join(str(folder) for folder in candidates)
    raise ConfigError(f"lingraft's recipes are missing: neither {places} exists. Install lingraft again.")


def recipes() -> dict[str, Path]:
    """Return every recipe's study file by its name (the file's name without `.yaml`), sorted by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def cluster_files() -> dict[str, tuple[Path, str]]:
    """Return what hands a study to a cluster: by the file's whole name, its path and a sentence on what it is."""
    meanings = {
        "slurm_ray.sh": "SLURM: a study on several nodes, its stages shared out by Ray",
        "slurm_torchrun.sh": "SLURM: a study whose trainings take all cards of several nodes, by torchrun",
        "kuberay_job.yaml": "Kubernetes: a cluster of Ray for one study, by KubeRay",
        "skypilot.yaml": "spot machines of a cloud, by SkyPilot",
    }
    return {name: (recipe_folder() / "clusters" / name, meaning) for name, meaning in meanings.items()}


def recipe(name: str) -> Path:
    """Return the study file of the recipe `name`, or a file for clusters by its whole name.

    `quickstart` and `quickstart.yaml` both name the recipe.

    Raises:
        ConfigError: There is no such recipe; the message names the closest one.
    """
    known, clusters = recipes(), cluster_files()
    if name in clusters:
        return clusters[name][0]
    stem = name.removesuffix(".yaml")
    if stem not in known:
        raise ConfigError(f"{name!r} is not a recipe of lingraft. {did_you_mean(name, [*known, *clusters])}")
    return known[stem]
