"""Options that several commands have, each with one wording: a command names them by these types, with its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SuiteOption = Annotated[str, typer.Option(help="Suite of tasks; `lingraft ls suites` lists them.")]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[TAG=]NAME",
        help="Ask only this task: of the suite, any harness task, or a YAML file. Repeatable.",
    ),
]
DataDirOption = Annotated[
    str | None,
    typer.Option(help="Folder with local copies of data sets; missing ones come from the hub."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Most items of each task.")]
MaxNewTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of an answer; default: each task's own.")
]
BatchSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Most answers generated together; default: as many as fit.")
]
PrecisionOption = Annotated[
    str, typer.Option(help="auto, bf16 or float32; auto takes bf16 where it is clearly faster.")
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ENGINE",
        help="What generates: transformers, generate (no continuous batching), server=URL (OpenAI's completions, as of "
        "vLLM) or command='vllm serve {model} --port {port}'; repeat it for further fields, such as model=NAME.",
    ),
]
ChatOption = Annotated[bool, typer.Option("--chat/--no-chat", help="Apply the chat template to prompts.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that models and YAML tasks bring along; read it first.",
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes of this machine: as many train a phase together, and share an evaluation's items and replay's "
        "prompts. Default: one trains, and one a GPU answers.",
    ),
]
AnsweringOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        help="Processes of this machine that share the items or prompts, each with the whole model; default: one a "
        "GPU, without one 1.",
    ),
]
ShardedOption = Annotated[bool, typer.Option("--sharded", help="Shard the model over the processes (FSDP2).")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a model that lingraft wrote into that folder.")
]
PushOption = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Upload the model to the Hugging Face hub.")
]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make that repository a private one.")]
GgufOption = Annotated[
    str | None, typer.Option(metavar="TYPE", help="Also convert it for llama.cpp, such as q8_0.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FontsOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Fonts for PDF and PNG in other scripts, such as Noto's."),
]
