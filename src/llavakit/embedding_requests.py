"""What callers give to be embedded, and how much of it is in the engine's queue at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from llavakit._checks import check_instance
from llavakit.errors import ParameterError, QueueFullError, RequestCancelledError
from llavakit.values import Image

if TYPE_CHECKING:
    from llavakit.embeddings import Embedding

WINDOW = 16
"""Embeddings of one call that are queued at once: enough to fill a step, so that other requests
wait for few, and only so many images are decoded."""


class Pending(Protocol):
    """An embedding that was queued."""

    def get(self) -> Embedding:
        """Wait for it."""

    def cancel(self) -> None:
        """Give it up."""


def embedding_contents(
    images: Iterable[Any] | None, texts: Iterable[str] | None
) -> list[Image | str]:
    """Check what is to be embedded.

    Raises:
        ParameterError: not exactly one of both is given, or a text is none.
        InputError: an image is none.
    """
    if (images is None) == (texts is None):
        raise ParameterError("Give images= or texts=, one of both.")
    if images is not None:
        if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
            raise ParameterError("images is a list of images; put a single one into a list.")
        return [one if isinstance(one, Image) else Image(one) for one in images]
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ParameterError("texts is a list of strings; put a single one into a list.")
    found: list[Image | str] = []
    for text in texts:
        check_instance("A text", text, str, "a string")
        if not text.strip():
            raise ParameterError("A text is empty; give at least one word.")
        found.append(text)
    return found


class EmbeddingWindow:
    """Some embeddings, a window of them in the queue at a time; made in one thread.

    Args:
        contents: what is embedded.
        submit: queues one of them.
    """

    def __init__(
        self, contents: Iterable[Image | str], submit: Callable[[Image | str], Pending]
    ) -> None:
        self._contents = contents
        self._submit = submit
        self._pending: deque[Pending] = deque()
        self._done: list[Embedding] = []
        self._is_cancelled = False

    def run(self) -> list[Embedding]:
        """Embed all, in their order; an error gives up the rest.

        Raises:
            RequestCancelledError: it was cancelled.
        """
        try:
            for content in self._contents:
                if len(self._pending) >= WINDOW:
                    self._take()
                self._queue(content)
            while self._pending:
                self._take()
        finally:
            for one in self._pending:
                one.cancel()
        return self._done

    def cancel(self) -> None:
        """Give up what is queued, and queue no more; from any thread, and safe to call twice."""
        self._is_cancelled = True
        for one in list(self._pending):
            one.cancel()

    def _queue(self, content: Image | str) -> None:
        while True:
            try:
                self._pending.append(self._submit(content))
                break
            except QueueFullError:
                if not self._pending:
                    raise
                self._take()
        if self._is_cancelled:  # perhaps before it was in the queue for ``cancel`` to see
            raise RequestCancelledError("The embeddings were given up by their caller.")

    def _take(self) -> None:
        # It stays in the queue while it is waited for, so that it can be cancelled.
        self._done.append(self._pending[0].get())
        self._pending.popleft()
