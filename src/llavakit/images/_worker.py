"""The process at the other end of :mod:`llavakit.images.isolated`: it decodes images.

A request is a line of JSON, followed by a file's bytes; a reply is a line of JSON, followed by
the RGB pixels. It ends with its standard input. What bounds it is set here and not by the
parent, so that it holds when the parent is gone: its niceness, a clock of processor time for each
image, on which the kernel ends it, and a cap on memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any, BinaryIO

from llavakit.errors import ImageTooLargeError, LlavaKitError
from llavakit.images.decode import decode
from llavakit.sources.policy import SourcePolicy

MAX_MEMORY = 4 * 2**30
"""Bytes of address space; 40 million pixels take at most 1 GiB with all their copies."""
_NICENESS = 10


def main() -> None:
    """Answer requests until there are no more."""
    _bound()
    _warm_up()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["bytes"])
        _clock(request["seconds"])
        try:
            policy = SourcePolicy(max_pixels=request["pixels"], max_side=request["side"])
            image = decode(data, policy)
            head, pixels = {"size": image.size}, image.tobytes()
        except LlavaKitError as error:
            head, pixels = _failure(error), b""
        except MemoryError:
            head, pixels = _failure(ImageTooLargeError(_MEMORY)), b""
        _clock(0)
        _reply(replies, head, pixels)


_MEMORY = "The image needs more memory than there is; shrink it."


def _failure(error: LlavaKitError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error), "public": error.public}


def _reply(replies: BinaryIO, head: dict[str, Any], pixels: bytes) -> None:
    replies.write(json.dumps(head).encode() + b"\n")
    replies.write(pixels)
    replies.flush()


def _clock(seconds: float) -> None:
    import signal

    if hasattr(signal, "setitimer"):  # not on Windows, where the parent's timer must do
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _warm_up() -> None:
    """Import what decoding needs, which is not in an image's time."""
    from PIL import Image as PILImage

    for form in ("PNG", "JPEG", "TIFF"):
        file = io.BytesIO()
        PILImage.new("L", (1, 1)).save(file, form)
        decode(file.getvalue(), SourcePolicy())


def _bound() -> None:
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows, or a lower cap already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
