"""The process at the other end of :mod:`llavakit.documents._isolated`: it draws pages of PDFs.

A request is a line of JSON, followed by the document's bytes when one is opened; a reply is a
line of JSON, followed by the pixels of a page. It ends with its standard input. Two fuses are
set here and not by the parent, so that they hold when the parent is gone: an alarm for each
request, which the kernel answers by ending the process, and a cap on memory.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, BinaryIO

from llavakit.documents._pdf import PdfReader
from llavakit.documents.limits import PageLimit
from llavakit.errors import LlavaKitError

MAX_MEMORY = 4 * 2**30
"""Bytes of address space; a page of 16 million pixels takes some 200 MB with all its copies."""


def main() -> None:
    """Answers requests until there are no more."""
    _cap_memory()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    reader: PdfReader | None = None
    while line := requests.readline():
        request = json.loads(line)
        _alarm(request["seconds"])
        try:
            if "bytes" in request:
                if reader is not None:
                    reader.close()
                reader = None
                data = requests.read(request["bytes"])
                reader = _opened(data, request)
                _reply(replies, {"count": reader.count()})
            elif "attachments" in request:
                assert reader is not None
                _reply(replies, {"names": reader.attachments()})
            elif "attachment" in request:
                assert reader is not None
                content = reader.attachment(request["attachment"])
                _reply(replies, {"length": len(content)}, content)
            else:
                assert reader is not None
                _reply_page(replies, reader, request["number"])
        except (LlavaKitError, MemoryError) as error:
            _reply(replies, {"error": type(error).__name__, "message": str(error)})
        _alarm(0)


def _opened(data: bytes, request: dict[str, Any]) -> PdfReader:
    limit = PageLimit(request["pixels"], request["side"])
    name, dpi, text = request["name"], request["dpi"], request["text"]
    return PdfReader(data, name, dpi, limit, text, request["password"])


def _reply_page(replies: BinaryIO, reader: PdfReader, number: int) -> None:
    found = reader.page(number)
    if found is None:
        _reply(replies, {"size": None})
        return
    image, layer = found
    _reply(replies, {"size": image.size, "layer": layer and layer.to_dict()}, image.tobytes())


def _reply(replies: BinaryIO, head: dict[str, Any], pixels: bytes = b"") -> None:
    replies.write(json.dumps(head).encode() + b"\n")
    replies.write(pixels)
    replies.flush()


def _alarm(seconds: float) -> None:
    import signal

    if hasattr(signal, "setitimer"):  # not on Windows, where the parent's timer must do
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _cap_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows, or a lower cap already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
