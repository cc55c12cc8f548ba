"""Runs the app with uvicorn: signals, a bounded end, and connections that say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from llavakit._checks import check_number, checked
from llavakit.errors import ParameterError

HEAD_SECONDS = 10.0
"""A connection that began a request must have sent its head by then."""
_KEEP_SECONDS = 30
"""An idle connection is kept for longer than clients keep theirs (httpx: 5), or a request and
the end of its connection might cross."""
_CUT_SECONDS = 5.0
"""Seconds for sending streams their end, before connections are cut."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    Raises:
        ParameterError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(
            f"{host} port {port} cannot be listened on ({reason}); use --host and --port."
        ) from error


def uvicorn_config(app: ASGIApp, *, access_log: bool, **settings: Any) -> uvicorn.Config:
    """Return uvicorn's settings for an application of ours; ``settings`` are further ones."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=access_log,
        server_header=False,
        **settings,
    )


class ObeyingServer(uvicorn.Server):
    """uvicorn's server, but the signal that ended it is not raised again: it was obeyed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the owner of the process
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Server(ObeyingServer):
    """uvicorn's server, ended in peace and within a bounded time; ``run(sockets=[...])`` runs it.

    The first SIGTERM or SIGINT stops accepting and lets running answers finish; those that are
    not complete after ``grace`` seconds end with an error. Then ``run`` returns, and the signal
    is over. A second signal ends the process at once.

    Args:
        app: made by :func:`llavakit.serving.create_app`.
        grace: seconds for running answers.
        access_log: log each request.
        listening: called when connections and signals are taken.
    """

    @checked
    def __init__(
        self,
        app: FastAPI,
        grace: float,
        access_log: bool = False,
        listening: Callable[[], None] = lambda: None,
    ) -> None:
        check_number("grace", grace, least=0)
        super().__init__(
            uvicorn_config(
                app,
                access_log=access_log,
                timeout_keep_alive=_KEEP_SECONDS,
                timeout_graceful_shutdown=int(grace + _CUT_SECONDS) + 1,
            )
        )
        self._app = app
        self._grace = grace
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and reports that the server listens."""
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends in peace, the second at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops accepting; answers that are not complete in time end with an error."""
        service = self._app.state.service
        service.readiness.stop()
        end = asyncio.get_running_loop().call_later(self._grace, service.answers.close_all)
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()


class BoundedProtocol(H11Protocol):
    """Cuts connections that do not come to the point: the head of a request has its time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio does this only for sockets that were made with the number of TCP. Without it,
        # each small piece of an answer waits 40 ms for the one before to be acknowledged.
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._idle:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._cut)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._deadline = None
        if self._idle and not self.transport.is_closing():
            self.transport.close()


def log_to_stderr(level: int) -> None:
    """Logs of the server and of llavakit go to stderr; answers go to clients alone."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("llavakit", "uvicorn"):
        logging.getLogger(name).setLevel(level)
