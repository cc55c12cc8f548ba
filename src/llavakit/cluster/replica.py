"""One of several servers of the same model: the whole app in a process, reached without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import llavakit
from llavakit.cluster.wire import Piece, WireRequest, response
from llavakit.errors import EngineError, LlavaKitError
from llavakit.serving.app import create_app
from llavakit.serving.settings import ServerSettings

_POLL_SECONDS = 0.05


class Replica:
    """The app of :func:`~llavakit.serving.create_app` with a model of its own.

    Args:
        model: as for :func:`llavakit.load`.
        load: its further arguments.
        settings: names and limits. Keys and host names are for the door of the cluster, which
            is the only one who calls.
        name: what the replica is called.
    """

    def __init__(
        self, model: str, load: Mapping[str, Any], settings: ServerSettings, name: str = ""
    ) -> None:
        settings = replace(settings, api_keys=(), allowed_hosts=())
        self.name = name
        self.backend = llavakit.load(model, **load)
        self._ended: BaseException | None = None
        self._app = create_app(self.backend, settings, loaded=self._loaded)
        self._service = self._app.state.service

    async def start(self) -> None:
        """Loads the model.

        Raises:
            LlavaKitError: it cannot be loaded.
        """
        self._service.readiness.begin()
        while self._service.readiness.state == "loading":
            await asyncio.sleep(_POLL_SECONDS)
        if self._ended is not None:
            raise self._ended

    async def answer(
        self, call: WireRequest, wish: Sequence[str] = (), avoid: Sequence[str] = ()
    ) -> AsyncGenerator[list[Piece], None]:
        """The response to a call; ``wish`` and ``avoid`` are for the router."""
        yield [("from", self.name)]
        async with aclosing(response(self._app, call)) as batches:
            async for batch in batches:
                yield batch

    def check_health(self) -> None:
        """Whether it can answer.

        Raises:
            EngineError: its engine has ended, and so should the replica.
        """
        if self.backend.closed:
            raise EngineError("The engine of this replica has ended.")

    def stop(self) -> None:
        """Ends what is open, and frees the model."""
        self._service.stop()
        self.backend.close()

    def _loaded(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, LlavaKitError):
            error = EngineError(f"The model could not be loaded: {type(error).__name__}: {error}")
        self._ended = error
