"""`lingraft similarity`: are these data sets the same kind of instructions?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft.cli.options import FontsOption
from lingraft.cli.output import (
    check_folder,
    print_json,
    print_message,
    print_result,
    print_table,
    write_record,
)
from lingraft.errors import ConfigError


def similarity(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]A [NAME=]B ...",
            help="Files, hub ids, or worldbook:FAMILY/LANGUAGES; NAME is what tables call it.",
        ),
    ],
    encoder: Annotated[
        str, typer.Option(help="embedded, labse (the paper's), or a sentence-transformers id or folder.")
    ] = "embedded",
    precision: Annotated[
        float,
        typer.Option(help="Encode rows until 95 % intervals reach at most this far from the estimate."),
    ] = 0.005,
    encode_all: Annotated[bool, typer.Option("--all", help="Encode every row.")] = False,
    closeness: Annotated[
        float, typer.Option(help="Cosine from which an instruction's nearest neighbour counts as close.")
    ] = 0.8,
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="[SOURCE=]TAG", help="Language of a source's rows that do not state it."),
    ] = None,
    max_broken_share: Annotated[
        float | None,
        typer.Option(help="Accept up to this share of broken rows in a source; default: 0.01."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample of rows.")] = 0,
    figure: Annotated[
        Path | None, typer.Option(help="Write the matrix as .svg, .png, .pdf or .html.")
    ] = None,
    fonts: FontsOption = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and its inputs as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the dataset embedding similarity (DES) of two or more data sets' instructions.

    des is the paper's value, which is too small for small sets; corrected is without that bias, with a 95 % interval.
    """
    from lingraft.report.formats import check_figure

    check_figure(figure, fonts)
    check_folder(record)

    from functools import partial

    from lingraft.cli.progress import StepBars
    from lingraft.config.load import data_source
    from lingraft.config.named import all_named
    from lingraft.data.sources import load_data
    from lingraft.report.diagnostics import (
        language_similarity_table,
        similarity_figure,
        similarity_table,
        task_type_similarity_table,
    )
    from lingraft.report.files import write_figure
    from lingraft.similarity.comparison import compare_sets
    from lingraft.similarity.encoders import load_encoder

    if len(sources) < 2:
        raise ConfigError(f"{sources[0]}: is the only data set; name two or more to compare.")
    named = all_named(sources)
    values = [one.value for one in named]
    for source in values:
        if values.count(source) > 1:
            raise ConfigError(
                f"{source}: is named {values.count(source)} times; the similarity of a set to itself is 1."
            )
    if not 0 < precision < 1:
        raise ConfigError(
            f"--precision is {precision}: it must lie between 0 and 1; --all encodes every row."
        )
    if not -1 <= closeness <= 1:
        raise ConfigError(f"--closeness is {closeness}: it is a cosine, from -1 to 1.")
    languages: dict[str, str] = {}
    for one in language or []:
        of, separator, tag = one.rpartition("=")
        meant = (
            [own.name for own in named if of in (own.name, own.value)]
            if separator
            else [own.name for own in named]
        )
        if not meant:
            raise ConfigError(f"--language {one!r}: {of!r} is none of the sources ({', '.join(values)}).")
        languages |= dict.fromkeys(meant, tag)
    chosen = load_encoder(encoder)
    most_broken = {} if max_broken_share is None else {"max_broken_share": max_broken_share}
    with StepBars() as bars:
        loaded = {}
        for own in named:
            spec = data_source(own.value, language=languages.get(own.name), **most_broken)
            loaded[own.name] = load_data(
                spec, on_progress=partial(bars.progressed, f"read {own.name}"), answered=False
            )
        found = compare_sets(
            {name: data.examples for name, data in loaded.items()},
            chosen,
            precision=None if encode_all else precision,
            closeness=closeness,
            seed=seed,
            on_progress=bars.progressed,
        )
    result = found.to_json([len(loaded[name].broken) for name in found.names])
    for one, own in zip(result["sets"], named, strict=True):
        one["source"] = own.value
    if record is not None:
        inputs = {"sources": values, "encoder": encoder, "language": language, "seed": seed}
        write_record(record, "similarity", inputs, result)
    if json:
        print_json(result)
    else:
        print_table(similarity_table(found))
        if found.by_language:
            print_table(language_similarity_table(found), "By language")
        if found.by_task_type:
            print_table(task_type_similarity_table(found), "By task type")
        for name in found.too_many_task_types:
            print_result(f"{name}: has too many task types to compare them one by one.")
        for name, rows, encoded in zip(found.names, found.rows, found.encoded, strict=True):
            broken = len(loaded[name].broken)
            left_out = f"; {broken} of {loaded[name].n_rows} rows are broken and left out" if broken else ""
            print_result(f"{name}: {encoded} of {rows} instructions encoded{left_out}")
        print_result(f"Encoder: {found.encoder}; values of two encoders are not comparable.")
    if figure is not None:
        for warning in write_figure(similarity_figure(found), figure, fonts):
            print_message(warning, "yellow")
