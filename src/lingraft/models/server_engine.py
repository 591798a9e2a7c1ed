"""Which engine a server is, of which version, and what it offers: known before anything else is read.

Records and fingerprints have it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from lingraft.config.schema import ServerChoice
from lingraft.endpoint import key_of
from lingraft.errors import ConfigError, EvaluationError, in_one_line
from lingraft.models.completions import (
    NOT_TAKEN,
    OTHER_FORM,
    SCORING,
    SERVER,
    ServerEndpoint,
    completion,
    connection_to,
    endpoint_of,
    log_probabilities,
    models_at,
)

_VERSION_SECONDS = 120.0  # `vllm --version` imports torch
# Where engines say their version, and what they are called unless their list of models says it.
_VERSIONS = (
    ("/version", "version", "vllm"),
    ("/server_info", "version", "sglang"),
    ("/get_server_info", "version", "sglang"),
    ("/props", "build_info", "llama.cpp"),
    ("/info", "version", "tgi"),
)


def check_server(choice: ServerChoice, *, of_many: bool = False) -> None:
    """Refuse a server that cannot be one, before anything is read; none is asked.

    Args:
        choice: The server.
        of_many: Whether it is to serve several models, one after the other.

    Raises:
        ConfigError: Its URL or key is none, its program is not installed, or it serves one model alone.
    """
    key_of(SERVER)
    if choice.server is not None:
        ServerEndpoint(choice.server, choice.model or "", choice.timeout, choice.attempts)
        if of_many and "{model}" not in (choice.model or ""):
            raise ConfigError(
                f"the server at {choice.server} serves one model, and several are evaluated; let one be started for "
                "each: {command: 'vllm serve {model} --port {port}'}. For one that loads whatever folder it is asked "
                "for: add `model: '{model}'`."
            )
    else:
        program = shlex.split(choice.command or "")[0]
        if shutil.which(program) is None:
            raise ConfigError(
                f"command {choice.command!r}: there is no program {program!r} here; install it, or write its path."
            )


@lru_cache
def engine_of(choice: ServerChoice) -> str:
    """Return engine, version and what else of a server decides answers, as records and fingerprints have it.

    The version is what `version` says; else a server is asked for it, and the program of a command with `--version`.

    Raises:
        ConfigError: It cannot be found out.
        EvaluationError: The server cannot be reached, does not take the key, or is none.
    """
    if choice.version is not None:
        name = choice.version
    elif choice.server is not None:
        name = _asked_version(choice, choice.server)
    else:
        name = _version_of_program(choice)
    parts = [name, *([choice.command] if choice.command else [])]
    return "; ".join([*parts, *(["likelihoods too"] if scores_likelihoods(choice) else [])])


@lru_cache
def scores_likelihoods(choice: ServerChoice) -> bool:
    """Return whether a server scores likelihood tasks: as `likelihoods` says, with `auto` where it offers that.

    A server that is yet to be started (`command`) is not known to offer it.

    Raises:
        ConfigError: `likelihoods: server`, and the server does not offer it.
        EvaluationError: See `engine_of`.
    """
    if choice.likelihoods == "transformers" or (choice.server is None and choice.likelihoods == "auto"):
        return False
    if choice.server is None:
        return True  # found out when it has started
    name = choice.model
    if name is None:
        listed = models_at(choice, choice.server)
        name = listed[0].id if len(listed) == 1 else None
    reason = "its model is only known when it is asked"
    if name is not None and "{model}" not in name:
        endpoint = ServerEndpoint(choice.server, name, choice.timeout, choice.attempts)
        reason = _why_no_likelihoods(endpoint)
    if reason and choice.likelihoods == "server":
        raise ConfigError(
            f"{endpoint_of(choice, choice.server).place} does not offer the log-probabilities of prompts in "
            f"token ids (`echo` with `logprobs`): {reason}; write `likelihoods: transformers`."
        )
    return not reason


def _asked_version(choice: ServerChoice, url: str) -> str:
    import httpx
    import openai

    listed = models_at(choice, url)
    owner = listed[0].owner.casefold() if listed else ""
    root = re.sub(r"/v\d+/*$", "", url.rstrip("/"))
    connection = connection_to(endpoint_of(choice, url))
    try:
        for path, field, engine in _VERSIONS:
            with suppress(openai.APIError, *OTHER_FORM):
                found = connection.exchange(
                    lambda path=path: connection.client.get(  # type: ignore[misc]
                        root + path, cast_to=httpx.Response, options={"headers": connection.headers}
                    )
                )
                if isinstance(found, httpx.Response):
                    version = json.loads(found.text)[field]
                    if isinstance(version, str) and version:
                        return (
                            f"{owner if owner in ('vllm', 'sglang') else engine} {connection.clean(version)}"
                        )
    finally:
        connection.close()
    raise ConfigError(
        f"{connection.place} does not say which engine it is: add its name and version, such as `version: vllm 0.33.0` "
        "(--backend version='vllm 0.33.0'); records and fingerprints have it."
    )


def _version_of_program(choice: ServerChoice) -> str:
    """Return what a command's program is, and its version: that of its Python package, else what `--version` says."""
    check_server(choice)
    program, *others = shlex.split(choice.command or "")
    name, python = Path(program).name, None
    if name.startswith("python") and others[:1] == ["-m"] and len(others) > 1:
        name, python = others[1].partition(".")[0], program
    else:
        with suppress(OSError), Path(shutil.which(program) or program).open("rb") as file:
            first = file.readline(4096)  # of a package's script: the Python that has the package
            python = first[2:].decode(errors="replace").strip() if b"python" in first[:4096] else None
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    ways = [[*shlex.split(python), "-c", code, name]] if python else []
    for asked in (*ways, [program, "--version"]):
        with suppress(OSError, subprocess.TimeoutExpired):
            found = subprocess.run(  # the user's own command
                asked, capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
            )
            version = re.search(r"\d+(?:\.\d+)+[\w.+-]*", found.stdout if found.returncode == 0 else "")
            if version is not None:
                return f"{name} {version[0]}"
    raise ConfigError(
        f"command {choice.command!r}: neither a package {name!r} nor `{program} --version` says a version; add "
        f"`version`, such as `version: {name} 1.0` (--backend version='{name} 1.0')."
    )


def _why_no_likelihoods(endpoint: ServerEndpoint) -> str:
    """Return why a server cannot score prompts; "": it can.

    Raises:
        EvaluationError: It cannot be reached, does not take the key, or is busy in all its `attempts`.
    """
    import openai

    connection = connection_to(endpoint)
    prompt = [5, 6, 7]  # any vocabulary has them

    def send() -> Any:
        try:
            return connection.exchange(lambda: completion(connection, endpoint, prompt, **SCORING))
        except openai.APIStatusError as error:
            return error if error.status_code in (*NOT_TAKEN, 500) else connection.failure(error)

    try:
        reply = connection.until_answered(send)
        if isinstance(reply, openai.APIStatusError):
            return f"{reply.status_code}: {connection.reason_of(reply)}"
        try:
            log_probabilities(reply.text, len(prompt), connection)
        except EvaluationError as error:
            return in_one_line(error)
    finally:
        connection.close()
    return ""
