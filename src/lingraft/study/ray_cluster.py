"""Being connected to a cluster of Ray: one that is started here and ends with this process, or one that is there.

`ray` is imported inside of functions: beside this module only `ray_engine` knows it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psutil

from lingraft import stopping
from lingraft.config.ray_address import RAY_LOCAL
from lingraft.errors import ConfigError, in_one_line

_SECONDS_TO_ANSWER = 5.0  # that a cluster has, before it is none
_SETTINGS = b"\x04"  # a kind of frame of HTTP/2
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + bytes(5)  # how a client begins
# Ends what outlives a driver that was killed: Ray's own agents end by a SIGTERM, which they do not hear here.
_REAPER = """
import os, signal, sys
for process in [int(one) for one in sys.argv[1:] if not sys.stdin.read()]:
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        pass
"""
_OBJECT_STORE_BYTES = 128 << 20  # of a local cluster: what is sent is small, and memory is the stages'


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster, inside; one that was started here ends then.

    Raises:
        ConfigError: There is none at the address, or this machine is no node of it.
    """
    import ray

    if ray.is_initialized():  # by a script that calls lingraft: its cluster, and it ends it
        yield
        return
    target = address if address == RAY_LOCAL else _found(address)
    before = set(psutil.Process().children())
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == RAY_LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    with _silent():
        try:
            with _signals_kept():
                ray.init(target, **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            ray.shutdown()
            if address == RAY_LOCAL:
                raise ConfigError(
                    f"--ray {address}: Ray cannot be started on this machine ({in_one_line(error)}); take --workers."
                ) from None
            raise ConfigError(
                f"--ray {address}: this machine cannot use the cluster at {target} ({in_one_line(error)}). It has to "
                f"be a node of it, with the same versions of Ray and Python: ray start --address={target}"
            ) from None
        try:
            with _reaped(before) if address == RAY_LOCAL else nullcontext():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _reaped(others: Collection[psutil.Process]) -> Iterator[None]:
    """Let no process that this one has started, but `others`, outlive it, however it ends inside."""
    started = [one for one in psutil.Process().children() if one not in others]
    processes = [str(one.pid) for each in started for one in (each, *each.children(recursive=True))]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _REAPER, *processes],
        stdin=subprocess.PIPE,  # whose end it reads when this process is gone
        start_new_session=True,
    ) as reaper:
        try:
            yield
        finally:
            reaper.kill()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers that Ray replaces; what it starts inside hears no SIGTERM and SIGHUP.

    Schedulers send these to all processes, and Ray's own must not end before the stages have saved.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {one: signal.getsignal(one) for one in stopping.SIGNALS} if is_main else {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # one that came meanwhile is heard now


def check_answers(address: str) -> None:
    """Refuse an address where no cluster answers; asked before data are read, which may take minutes.

    Raises:
        ConfigError: None does.
    """
    import ray

    if address != RAY_LOCAL and not ray.is_initialized():
        _found(address)


def _found(address: str) -> str:
    """Return the HOST:PORT of a cluster that answers.

    Raises:
        ConfigError: None does.
    """
    from ray._private.services import canonicalize_bootstrap_address

    where: str | None = None
    with suppress(ConnectionError, ValueError):  # none is found; RAY_ADDRESS is of another kind
        where = canonicalize_bootstrap_address(address)
    if where is None:
        named = os.environ.get("RAY_ADDRESS")
        why = f"and RAY_ADDRESS is {named}, which is no HOST:PORT" if named else "and RAY_ADDRESS is not set"
        raise ConfigError(
            f"--ray {address}: this machine is no node of a cluster, {why}. Start one by `ray start --head`, give its "
            "HOST:PORT, or take `--ray local` for this machine alone."
        )
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER) as connection:
            why = "" if _speaks_grpc(connection) else "what listens there is something else"
    except (OSError, OverflowError) as error:
        why = in_one_line(error)
    if why:
        raise ConfigError(
            f"--ray {address}: no cluster answers at {where} ({why}). `ray start --head` prints the address of a new "
            "one, which is not that of its dashboard; `--ray local` needs none."
        )
    return where


def _speaks_grpc(connection: socket.socket) -> bool:
    """Return whether a server may be Ray's: by HTTP/2, it answers the first bytes by its settings.

    Ray itself would ask any other one for a quarter of an hour.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True  # nothing is known before certificates are shown
    connection.sendall(_HTTP2)
    return connection.recv(9)[3:4] == _SETTINGS


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the terminal what Ray logs and prints; its own files have all of it."""
    import ray._private.worker as printing

    logger = logging.getLogger("ray")
    before = logger.level, logger.propagate, getattr(printing, "print_to_stdstream", None)
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    printing.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        printing.print_to_stdstream = before[2]


def session_logs() -> str:
    """Return the folder of Ray's own logs on the driver's node."""
    import ray

    node = ray._private.worker._global_node
    return f"{node.get_session_dir_path()}/logs"


def starts_nodes() -> bool:
    """Return whether the cluster has an autoscaler that may start nodes of other kinds."""
    from ray._private.state import state

    return bool(state.get_max_resources_from_cluster_config())
