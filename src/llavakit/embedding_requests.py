"""What callers give to be embedded, and how much of it is in the engine's queue at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from llavakit._checks import check_instance
from llavakit.errors import ParameterError, QueueFullError
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


def in_window(
    contents: Iterable[Image | str], submit: Callable[[Image | str], Pending]
) -> list[Embedding]:
    """Embed all, a window of them at a time, in their order; an error gives up the rest."""
    pending: deque[Pending] = deque()
    done: list[Embedding] = []
    try:
        for content in contents:
            if len(pending) >= WINDOW:
                done.append(pending.popleft().get())
            while True:
                try:
                    pending.append(submit(content))
                    break
                except QueueFullError:
                    if not pending:
                        raise
                    done.append(pending.popleft().get())
        while pending:
            done.append(pending.popleft().get())
    finally:
        for one in pending:
            one.cancel()
    return done
