"""Serves the page of a run as it stands, with a part that follows the run: `lingraft report RUN --watch`.

    GET /         the page; drawn anew, by a process of its own, when the results have changed
        /status   how far the run is, as JSON; the page asks for it again and again

Only the run folder is read, and nothing is written: ending the server stops nothing. It listens on this machine's own
address alone, and answers nobody who calls it by another name.

    python -m lingraft.report.watch VERSION     reads a run (a Named as JSON) from stdin, writes its page to stdout;
                                                with a further argument, without results
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from lingraft.config.named import Named
from lingraft.config.paths import user_path
from lingraft.errors import ConfigError
from lingraft.records import Stamp, from_json, stamps_of, to_json
from lingraft.study.result import RESULT
from lingraft.study.status import RunStatus, status_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADDRESS: Final = "127.0.0.1"
_NAMES: Final = (
    "127.0.0.1",
    "localhost",
)  # by which a page of another site, renamed to this address, does not call
_PAGE_SHARE: Final = 0.1  # of the time, at most, pages are drawn
_SECONDS_ALIKE: Final = 0.5  # in which all who ask get the same status
_MOST_CONNECTIONS: Final = 200
_SECONDS_TO_END: Final = 2
_POLICY: Final = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_HEADERS: Final = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Watched:
    """What the page is given again and again.

    Attributes:
        status: How far the run is; None: its folder cannot be read.
        problem: Why not, or why the page does not have the newest results; empty: all is well.
        page: Version of the newest page that was drawn; another one than the reader's has other results.
        format: Version of this object as JSON.
    """

    status: RunStatus | None
    problem: str
    page: str
    format: Literal[2] = 2


@dataclass(frozen=True)
class _Drawn:
    """A page, and what it was drawn of."""

    version: str
    content: str
    basis: object


class _Run:
    """A run that is watched; lives in the server's event loop, but for `end`."""

    def __init__(self, named: Named) -> None:
        self._named = named
        self._folder = user_path(named.value)
        self._looking = asyncio.Lock()
        self._looked: tuple[float, RunStatus | None, str] | None = None
        self._drawn: _Drawn | None = None
        self._drawing: asyncio.Task[_Drawn] | None = None
        self._next = 0.0  # when a page may be drawn again
        self._problem = ""  # why the newest results are not on the page
        self._count = 0
        self._drawer: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def end(self) -> None:
        """Draw no more."""
        self._is_over = True
        if self._drawer is not None:
            self._drawer.kill()

    async def watched(self) -> Watched:
        """Return how far the run is, and let a page be drawn where there is something new."""
        async with self._looking:  # whoever else asks meanwhile gets the same
            if self._looked is None or time.monotonic() - self._looked[0] > _SECONDS_ALIKE:
                status, problem = await asyncio.to_thread(self._look)
                self._looked = time.monotonic(), status, problem
        _, status, problem = self._looked
        basis = self._basis(status)
        is_over = status is not None and status.state != "under way"
        is_due = is_over or time.monotonic() >= self._next
        if self._drawing is None and is_due and (self._drawn is None or self._drawn.basis != basis):
            self._drawing = asyncio.create_task(self._draw(basis))
        version = "" if self._drawn is None else self._drawn.version
        return Watched(status, problem or self._problem, version)

    async def page(self) -> str:
        """Return the newest page; the first one is waited for."""
        await self.watched()
        if self._drawn is None and self._drawing is not None:
            await asyncio.shield(self._drawing)
        assert self._drawn is not None
        return self._drawn.content

    def _look(self) -> tuple[RunStatus | None, str]:
        try:
            return status_of(self._folder), ""
        except (ConfigError, OSError) as error:  # it was removed, or is out of reach
            return None, f"The run cannot be read: {error}"

    def _basis(self, status: RunStatus | None) -> tuple[Stamp | None, str]:
        """Return what a page depends on; one that was drawn of the same is not drawn again."""
        path = self._folder / RESULT
        return stamps_of([path])[path], "" if status is None else status.state

    async def _draw(self, basis: object) -> _Drawn:
        started = time.monotonic()
        self._count += 1
        version = str(self._count)
        try:
            self._drawn = _Drawn(version, await asyncio.to_thread(self._page, version), basis)
            self._problem = ""
        except (OSError, _DrawingError) as error:
            if self._is_over:
                raise
            self._problem = (
                f"The results cannot be drawn ({error}); lingraft report {self._named.value} says more."
            )
            before = self._drawn  # which stays; it is tried again when something changes
            if before is None:
                content = await asyncio.to_thread(self._page, version, without_results=True)
                self._drawn = _Drawn(version, content, basis)
            else:
                self._drawn = _Drawn(before.version, before.content, basis)
        finally:
            self._drawing = None
            if (self._folder / RESULT).exists():  # else there was next to nothing to draw
                self._next = started + (time.monotonic() - started) / _PAGE_SHARE
        return self._drawn

    def _page(self, version: str, *, without_results: bool = False) -> str:
        """Return the page, drawn by a process of its own: it takes seconds and memory, and may fail.

        Raises:
            _DrawingError: It did.
            OSError: No process can be started.
        """
        places = os.pathsep.join(place for place in sys.path if place)
        with subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, version, *(["without"] if without_results else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": places},
            start_new_session=True,  # Ctrl-C is this process's to answer
        ) as self._drawer:
            if self._is_over:
                self._drawer.kill()
            content, said = self._drawer.communicate(json.dumps(to_json(self._named)).encode())
        if self._drawer.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            raise _DrawingError(lines[-1][:500] if lines else f"exit code {self._drawer.returncode}")
        return content.decode()


class _DrawingError(Exception):
    """The process that draws a page failed; the message is the last line that it wrote."""


class _WithHeaders:
    """Sends with every answer, refusals included, what a browser may do with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message["headers"])
                message["headers"] = [
                    *given.items(),
                    *(one for one in _HEADERS.items() if one[0] not in given),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _application(run: _Run) -> ASGIApp:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    async def page(_: Request) -> Response:
        content = await run.page()
        policy = _POLICY.search(content)
        allowed = "default-src 'none'" if policy is None else html.unescape(policy[1])
        return HTMLResponse(
            content, headers={"content-security-policy": f"{allowed}; frame-ancestors 'none'"}
        )

    async def status(_: Request) -> Response:
        content = json.dumps(to_json(await run.watched()), ensure_ascii=True)
        return Response(content, media_type="application/json")

    return _WithHeaders(
        Starlette(
            routes=[Route("/", page), Route("/status", status)],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(_NAMES), www_redirect=False)],
        )
    )


@contextmanager
def serving(named: Named, port: int = 0) -> Iterator[str]:
    """Serve a run's page while the block runs, in a thread; yields the address.

    Args:
        named: The run folder, and what the page calls it.
        port: On this machine's own address; 0: a free one.

    Raises:
        ConfigError: The folder is no run's, or the port cannot be had.
    """
    import uvicorn

    status_of(user_path(named.value))
    run = _Run(named)
    with contextlib.closing(socket.socket()) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, port))
            listening.listen()  # who connects before the thread is there waits
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot be had ({(error.strerror or str(error)).lower()}); leave --port out for a free "
                "one, or name another."
            ) from None
        server = uvicorn.Server(
            uvicorn.Config(
                _application(run),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_SECONDS_TO_END,
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://{ADDRESS}:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            run.end()
            thread.join(2 * _SECONDS_TO_END)


def main() -> None:
    """Write the page of the run that stdin names; without results it says so, and shows what is under way."""
    from lingraft.report.page import Page, render, render_page
    from lingraft.report.runs import read_report

    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints is taken for the page
    named: Named = from_json(Named, json.load(sys.stdin))
    version = sys.argv[1]
    folder = user_path(named.value)
    try:
        written = f"{named.name}={named.value}" if named.is_given else named.value
        content = render_page(read_report([written]), live=version)
    except ConfigError as error:
        notice = (
            str(error) if (folder / RESULT).exists() else "There are no results yet; they come by themselves."
        )
        name = named.name if named.is_given else folder.absolute().name
        content = render(Page(name, "A lingraft study", (), (notice,), ()), live=version)
    answer.write(content)
    answer.close()


if __name__ == "__main__":
    main()
