"""On which threads work is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image as PILImage


@contextmanager
def pixels_touched() -> Iterator[list[threading.Thread]]:
    """The threads on which pixels were loaded, as all that opens, turns or hashes images does."""
    threads: list[threading.Thread] = []
    load = PILImage.Image.load

    def watched(image: PILImage.Image) -> object:
        threads.append(threading.current_thread())
        return load(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PILImage.Image, "load", watched)
        yield threads
