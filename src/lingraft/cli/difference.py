"""`lingraft difference`: how far two models' weights lie apart, and where."""

from __future__ import annotations

import math
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

_LISTED = 5  # tensors named in a line; all are in the object


def difference(
    first: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]M1",
            help="Folder, hub id, embedded:NAME or LoRA adapter; NAME is what is printed and drawn.",
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="[NAME=]M2", help="The other one.")],
    base: Annotated[
        str | None, typer.Option(help="The model that both come from; compares their updates as well.")
    ] = None,
    adapter_base: Annotated[
        str | None, typer.Option(help="Base of a LoRA adapter, where the one that it names is missing.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write a map of the layers as .svg, .png, .pdf or .html.")
    ] = None,
    fonts: FontsOption = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and its inputs as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the model parameter difference (MPD) of two models, by layer and by module type.

    With --base also whether the two updates agree: their cosine, and the share of parameters that both move one way.
    """
    from lingraft.report.formats import check_figure

    check_figure(figure, fonts)
    check_folder(record)

    import time
    from functools import partial

    from lingraft.cli.progress import StepBars
    from lingraft.models.adapters import open_weights
    from lingraft.report.diagnostics import (
        difference_figure,
        difference_table,
    )
    from lingraft.report.files import write_figure
    from lingraft.study.cell_names import named_models
    from lingraft.train.memory import peak_bytes
    from lingraft.weights.difference import parameter_difference

    named = named_models([first, second, *([] if base is None else [base])])
    started = time.perf_counter()
    models = [open_weights(one.value, adapter_base) for one in named]
    with StepBars() as bars:
        found = parameter_difference(*models, on_progress=partial(bars.progressed, "tensors"))
    title = f"{named[1].name} - {named[0].name}"
    of = {"models": [{"name": one.name, "path": one.value} for one in named]}
    result = found.to_json() | of | {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    if record is not None:
        paths = dict(zip(("first", "second", "base"), (one.value for one in named), strict=False))
        inputs = {"base": None, **paths, "adapter_base": adapter_base}
        write_record(record, "difference", inputs, result)
    if json:
        print_json(result)
    else:
        updates = found.has_updates
        print_table(difference_table(found.by_layer(), "layer", with_updates=updates), f"{title}, by layer")
        print_table(
            difference_table(found.by_module(), "module", with_updates=updates), f"{title}, by module type"
        )
        relative = "-" if found.relative is None else f"{found.relative:.6f}"
        print_result(
            f"MPD {found.mpd:.6f} over {len(found.tensors)} tensors; relative change of all weights {relative}"
        )
        whole = found.whole()
        if updates and whole.update_cosine is None:
            print_result("One of the models does not differ from the base.")
        elif updates and whole.update_cosine is not None:
            angle = math.degrees(math.acos(whole.update_cosine))
            agreement = "-" if whole.sign_agreement is None else f"{whole.sign_agreement:.1%}"
            print_result(
                f"The two updates from the base: cosine {whole.update_cosine:.4f} (an angle of {angle:.1f} degrees); "
                f"of the parameters that both move, {agreement} move one way"
            )
        for what, names in (
            ("Only one model has", found.missing),
            ("Compared in the rows that both have", found.resized),
            ("Not in the base, so their updates are not compared", found.without_base),
        ):
            if names:
                more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                print_result(f"{what}: {', '.join(names[:_LISTED])}{more}")
    if figure is not None:
        for warning in write_figure(difference_figure(found).properties(title=title), figure, fonts):
            print_message(warning, "yellow")
