"""Whether the model is loaded: begun at start, in the background, and reported on request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from llavakit.backend import Backend, ModelInfo
from llavakit.serving.errors import Refusal
from llavakit.values import SamplingParams

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "stopping"]


class Readiness:
    """Loads a backend's model and remembers how that went.

    Args:
        backend: whose model is loaded.
        warm_up: answer one token, which loads the weights and shows that they work, and let the
            backend warm up; ``"load"`` leaves out the last, and False asks for its facts only.
        reported: called with the error, or with None when the model is ready; on another thread,
            and not if the server was stopped meanwhile.
        progress: called during the warm-up as :meth:`~llavakit.backend.Backend.warm_up` calls it.

    Attributes:
        state: how it stands.
        info: facts about the model, once they are known.
        since: when loading ended, in seconds since 1970.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        warm_up: bool | Literal["load"],
        reported: Callable[[BaseException | None], None] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._backend = backend
        self._warm_up = warm_up
        self._reported = reported or _log
        self._progress = progress
        self._thread: threading.Thread | None = None
        self.state: State = "loading"
        self.info: ModelInfo | None = None
        self.since = 0

    def begin(self) -> None:
        """Start loading; once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._load, name="llavakit-load", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No more requests."""
        self.state = "stopping"

    def check(self, retry_after: int = 5) -> ModelInfo:
        """Facts about the model, once it is ready.

        Raises:
            Refusal: 503.
        """
        if self.state == "ready" and self.info is not None:
            return self.info
        messages = {
            "loading": "The model is being loaded; try again in a few seconds.",
            "failed": "The model could not be loaded; the server's log says why.",
        }
        raise Refusal(
            503,
            messages.get(self.state, "The server is going down; try another one."),
            code=f"model_{self.state}" if self.state in messages else "stopping",
            headers={"Retry-After": str(retry_after)},
            unread=True,
        )

    def _load(self) -> None:
        error: BaseException | None = None
        try:
            self.info = self._backend.info
            if self._warm_up:
                self._backend.generate("Hi", SamplingParams(max_tokens=1, temperature=0.0))
            if self._warm_up is True:
                self._backend.warm_up(self._progress)
        except BaseException as reason:
            error = reason
        self.since = int(time.time())
        if self.state == "loading":  # else the end of the server is what ended it
            self.state = "ready" if error is None else "failed"
            self._reported(error)


def _log(error: BaseException | None) -> None:
    if error is not None:
        log.error("the model could not be loaded", exc_info=error)
