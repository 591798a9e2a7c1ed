"""What a YAML task of the user's may do: it is data, unless the user trusts its code.

A task file can name Python functions, metrics and data formats that run code, and the files that it includes can too.
All of these are found in the text of the files, before anything of them is imported. (Its templates are rendered in a
sandbox, trusted or not: see `lm_eval_compat`.) The harness's own files and lingraft's may name functions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lingraft.config import yaml_text
from lingraft.errors import ConfigError
from lingraft.evaluate.task_names import TASKS_FOLDER, harness_folder

FUNCTION = "!function"
# Formats of the datasets library that hold data alone, of those that are no hub id.
_DATA_FORMATS = frozenset(("arrow", "csv", "json", "parquet", "text"))
_OTHER_FORMATS = frozenset(
    ("audiofolder", "cache", "conll", "eval", "fasta", "fastq", "folder_based_builder", "genbank", "generator",
     "harbor", "hdf5", "iceberg", "imagefolder", "lance", "meshfolder", "mmcif", "niftifolder", "pandas", "pdb",
     "pdffolder", "spark", "sql", "tsfile", "videofolder", "vortex", "webdataset", "xml")
)  # fmt: skip
_PROTOCOLS = frozenset(("", "gs", "hf", "http", "https", "s3"))
# Options of `load_dataset` that say which data are read.
_DATASET_OPTIONS = frozenset(
    ("data_dir", "data_files", "delimiter", "encoding", "field", "name", "revision", "sep", "split", "streaming",
     "trust_remote_code", "verification_mode")
)  # fmt: skip


class TaskLoader(yaml_text.Loader):
    """Reads task files, a function as the name that it has there."""


TaskLoader.add_constructor(FUNCTION, lambda _, node: str(node.value))


def check_task_file(path: Path, *, trust_remote_code: bool) -> None:
    """Refuse a YAML task that cannot be read, or that would run code without being trusted.

    Args:
        path: The file.
        trust_remote_code: Whether the user has read its code; functions may then be named.

    Raises:
        ConfigError: One line for each reason, with file and line.
    """
    problems = list(_problems(path, trust_remote_code, ()))
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))


def read_task_file(path: Path) -> dict[str, Any]:
    """Return what a task file holds with what it includes, functions as the names that they have there.

    Raises:
        ConfigError: A file cannot be read.
    """
    return _merged(path, ())


def own_content(path: Path) -> dict[str, Any]:
    """Return what a task file itself holds, without what it includes; see `read_task_file`."""
    content = _content(_compose(path), path)
    wrong = list(_wrong_shapes(content, path))
    if wrong:
        raise ConfigError(wrong[0])
    return content


def included_files(content: Mapping[str, Any], path: Path, before: tuple[Path, ...] = ()) -> list[Path]:
    """Return the files that a task file includes.

    Raises:
        ConfigError: One of them includes the file itself.
    """
    named = content.get("include") or []
    files = [path.parent / name for name in (named if isinstance(named, list) else [named])]
    for file in files:
        if file.resolve() in (one.resolve() for one in (*before, path)):
            raise ConfigError(f"{path}: includes itself, by way of {file.name}.")
    return files


def _is_ours(path: Path) -> bool:
    full = path.resolve()
    return full.is_relative_to(harness_folder().resolve()) or full.is_relative_to(TASKS_FOLDER)


def _compose(path: Path) -> yaml.MappingNode:
    root = yaml_text.compose(yaml_text.read_text(path), str(path), tags=frozenset({FUNCTION}))
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: is no task: a task file is a mapping (task:, dataset_path:, ...).")
    return root


def _content(root: yaml.MappingNode, path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml_text.content_of(root, str(path), TaskLoader)
    return content


def _wrong_shapes(content: Mapping[str, Any], path: Path) -> Iterator[str]:
    named = content.get("include") or []
    if not all(isinstance(one, str) for one in (named if isinstance(named, list) else [named])):
        yield f"{path}: include is {named!r:.80}: it names a file, or a list of files."
    options = content.get("dataset_kwargs") or {}
    if not isinstance(options, dict):
        yield f"{path}: dataset_kwargs is {options!r:.80}: write options and their values ({{data_files: rows.jsonl}})."
        return
    groups = options.get("data_files") or []
    for files in groups.values() if isinstance(groups, dict) else [groups]:
        if not all(isinstance(one, str) for one in (files if isinstance(files, list) else [files])):
            yield f"{path}: data_files is {groups!r:.80}: it names a file, a list of files, or either by split."


def _merged(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    content = own_content(path)
    merged: dict[str, Any] = {}
    for file in included_files(content, path, before):
        merged |= {key: one for key, one in _merged(file, (*before, path)).items() if key != "task_list"}
    return merged | {key: one for key, one in content.items() if key != "include"}


def _problems(path: Path, trusted: bool, before: tuple[Path, ...]) -> Iterator[str]:
    root = _compose(path)
    for odd in yaml_text.odd_values(root):
        yield f"{path}:{yaml_text.line_of(odd.node)}: {odd.problem}"
    content = _content(root, path)
    wrong = list(_wrong_shapes(content, path))
    yield from wrong
    if wrong:
        return
    if not trusted and not _is_ours(path):
        advice = "is run only if you have read it and say so: `trust_remote_code: true` (--trust-remote-code)"
        for node in _functions(root):
            yield (
                f"{path}:{yaml_text.line_of(node)}: `{FUNCTION} {node.value}` names Python code, which {advice}."
            )
        for key, reason in _runs_code(content):
            line = next(yaml_text.line_of(one) for one, _ in root.value if one.value == key)
            yield f"{path}:{line}: {key}: {reason}, which {advice}."
    for file in included_files(content, path, before):
        if not file.is_file():
            yield f"{path}: includes {file}, and there is no such file."
        else:
            yield from _problems(file, trusted, (*before, path))


def _functions(node: yaml.Node) -> Iterator[yaml.Node]:
    if node.tag == FUNCTION:
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _functions(one)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _functions(value)


def _runs_code(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of a task by which the harness would run code that no function of it names, and what it is."""
    metrics = content.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else []:
        name = metric.get("metric") if isinstance(metric, dict) else None
        # Of a metric that it does not know, the harness runs the code that the library evaluate finds here or there.
        if isinstance(metric, dict) and (metric.get("hf_evaluate") or name not in harness_metrics()):
            close = difflib.get_close_matches(str(name), harness_metrics(), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close and close[0] != name else ""
            yield (
                "metric_list",
                f"the metric {name!r} is none of the harness's{hint} but code of a folder or of the hub",
            )
    if content.get("unsafe_code"):
        yield "unsafe_code", "its metric runs what the model writes"
    if ".yaml" in str(content.get("use_prompt") or "") or "promptsource" in str(
        content.get("use_prompt") or ""
    ):
        yield "use_prompt", "its prompts are made by another file"
    if content.get("dataset_path") in _OTHER_FORMATS:
        yield (
            "dataset_path",
            f"{content['dataset_path']!r} may hold code (take {', '.join(sorted(_DATA_FORMATS))})",
        )
    options = content.get("dataset_kwargs")
    if isinstance(options, dict):
        for name in sorted(set(map(str, options)) - _DATASET_OPTIONS):
            yield "dataset_kwargs", f"the option {name!r} is more than which data are read"
        if options.get("trust_remote_code"):
            yield "dataset_kwargs", "its data set runs code"
        for place in _texts([options.get("data_files"), options.get("data_dir")]):
            protocol = place.partition("://")[0] if "://" in place else ""
            if "::" in place or protocol not in _PROTOCOLS:
                yield "dataset_kwargs", f"{place!r} is no file and no ordinary address"


def _texts(value: Any) -> Iterator[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, str):
        yield value
    for part in parts:
        yield from _texts(part)


@cache
def harness_metrics() -> frozenset[str]:
    """Return the metrics that the harness has, read from its source: to import them takes seconds."""
    source = (harness_folder().parent / "api" / "metrics.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"@register_metric\(\s*metric=\"([^\"]+)\"", source))
