"""`lingraft ls`: the names that a study file can use."""

from __future__ import annotations

from typing import Annotated

import typer

from lingraft.cli.output import print_json, print_result
from lingraft.errors import ConfigError, did_you_mean

KINDS = ("recipes", "clusters", "strategies", "models", "suites", "tasks", "measures", "worldbook")


def ls(
    kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}; default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List recipes, files for clusters, strategies, embedded models, suites, tasks, measures and worldbook's parts."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{kind!r} cannot be listed. {did_you_mean(kind, KINDS)}")
    listed = {name: _names(name) for name in ([kind] if kind else KINDS)}
    if json:
        print_json(listed)
        return
    for name, entries in listed.items():
        print_result(f"{name}:")
        for entry, meaning in entries.items():
            print_result(f"  {entry:<24} {meaning}".rstrip())


def _names(kind: str) -> dict[str, str]:
    if kind == "recipes":
        from lingraft.config.recipes import recipes

        return {name: str(path) for name, path in recipes().items()}
    if kind == "clusters":
        from lingraft.config.recipes import cluster_files

        return {name: meaning for name, (_, meaning) in cluster_files().items()}
    if kind == "strategies":
        from lingraft.strategies import REGISTRY

        documented = {name: REGISTRY.get(name).__doc__ or "" for name in REGISTRY}
        return {name: text.strip().partition("\n")[0] for name, text in documented.items()}
    if kind == "models":
        from lingraft.models.embedded import EMBEDDED

        return {f"embedded:{name}": model.meaning for name, model in EMBEDDED.items()}
    if kind == "measures":
        from lingraft.measures import REGISTRY as MEASURES

        return {name: MEASURES.get(name).meaning for name in MEASURES}
    if kind == "suites":
        from lingraft.evaluate.catalogue import suites

        return {name: f"{suite.meaning} ({', '.join(suite.names)})" for name, suite in suites().items()}
    from lingraft.data.worldbook import FAMILIES, LANGUAGES

    if kind == "tasks":
        from lingraft.evaluate.catalogue import catalogue
        from lingraft.evaluate.task_names import OWN_TASKS

        named = {"worldbook": "both families"} | {f"worldbook:{family}": "" for family in FAMILIES}
        named |= {name: catalogue()[name].meaning if name in catalogue() else "" for name in OWN_TASKS}
        return named | {"NAME": "any lm-evaluation-harness task", "FILE.yaml": "a harness task of your own"}
    return {f"worldbook:{family}/{language}": "" for family in FAMILIES for language in LANGUAGES}
