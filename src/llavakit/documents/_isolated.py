"""PDFs drawn in a process of their own, which may hang, swell or crash there.

A page of ten short objects, each drawing the next one ten times, keeps pdfium busy for hours,
and nothing in this process could stop it. So a stranger's documents are drawn in another one
(:mod:`llavakit.documents._worker`), which is ended when its time is over. It is started at the
first PDF and serves all that follow, until it dies.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from llavakit import errors
from llavakit.errors import DocumentError, EngineError, RenderError

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.limits import PageLimit

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
_START += "from llavakit.documents._worker import main; main()"
_GRACE = 5.0  # seconds that the worker's own alarm has before it is ended from outside


class Renderer:
    """The process, for one caller at a time.

    Args:
        seconds: most seconds for opening a document, and for each page.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._holder: IsolatedPdf | None = None

    def open(self, data: bytes, name: str, dpi: float, limit: PageLimit, text: bool) -> IsolatedPdf:
        """An open PDF (see :class:`~llavakit.documents.pages.PageReader`).

        Raises:
            RenderError: opening it took too long.
            DocumentError: encrypted, damaged or empty.
            MissingDependencyError: PDFs need ``llavakit[documents]``.
        """
        head = {"name": name, "dpi": dpi, "pixels": limit.pixels, "side": limit.side, "text": text}
        return IsolatedPdf(self, data, name, head)

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        process, self._process, self._holder = self._process, None, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent is of no interest
                    pipe.close()

    def hold(self, document: IsolatedPdf) -> None:
        """Opens a document there, unless it is the one that is open."""
        if self._holder is not document:
            self._holder = None
            document.length = self.ask(document.head, document.data, what=document.name)[0]["count"]
            self._holder = document

    def ask(
        self, request: dict[str, Any], data: bytes = b"", *, what: str
    ) -> tuple[dict[str, Any], bytes]:
        """One request and its reply.

        Raises:
            RenderError: it took too long, or the process died of it.
            LlavaKitError: what the process raised.
        """
        process = self._started()
        watch = threading.Timer(self.seconds + _GRACE, process.kill)
        watch.daemon = True
        began = time.monotonic()
        watch.start()
        try:
            head, pixels = _exchange(process, {**request, "seconds": self.seconds}, data)
        except (OSError, EOFError, ValueError) as error:
            lasted = time.monotonic() - began
            self.close()
            raise _fallen(what, lasted, self.seconds) from error
        except BaseException:
            self.close()  # half a reply would be read as the next one's
            raise
        finally:
            watch.cancel()
        if "error" in head:
            raise _raised(head, what)
        return head, pixels

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # pdfium's remarks
                    start_new_session=True,  # Ctrl-C is for the program, which closes the renderer
                )
            except OSError as error:
                raise EngineError(
                    f"No process can be started that draws PDFs ({error.strerror}); draw those "
                    "that you trust with page_seconds=None."
                ) from error
        return self._process


class IsolatedPdf:
    """A PDF that is open in the other process, and opened again there after a page killed it."""

    def __init__(self, renderer: Renderer, data: bytes, name: str, head: dict[str, Any]) -> None:
        self.data = data
        self.name = name
        self.head = {**head, "bytes": len(data)}
        self.length = 0
        self._renderer = renderer
        renderer.hold(self)

    def count(self) -> int:
        return self.length

    def page(self, number: int) -> tuple[PILImage.Image, str | None] | None:
        from PIL import Image as PILImage

        if number > self.length:
            return None
        self._renderer.hold(self)
        what = f"Page {number} of {self.name}"
        head, pixels = self._renderer.ask({"number": number}, what=what)
        size = head["size"]
        if size is None:
            return None
        return PILImage.frombytes("RGB", tuple(size), pixels), head["text"]

    def close(self) -> None:
        pass  # the next document takes its place, and Renderer.close ends the process


def _exchange(
    process: subprocess.Popen[bytes], request: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.write(data)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    length = 3 * head["size"][0] * head["size"][1] if head.get("size") else 0
    pixels = process.stdout.read(length)
    if len(pixels) < length:
        raise EOFError
    return head, pixels


def _raised(head: dict[str, Any], what: str) -> errors.LlavaKitError:
    kind = getattr(errors, head["error"], None)
    if kind is None:  # MemoryError
        return RenderError(f"{what} needs more memory than it may have; lower dpi.")
    error: errors.LlavaKitError = kind(head["message"])
    return error


def _fallen(what: str, lasted: float, seconds: float) -> DocumentError:
    if lasted >= seconds:
        return RenderError(
            f"{what} took longer than {seconds:g} seconds to open or draw; leave it out, or raise "
            "page_seconds."
        )
    return RenderError(f"{what} brought its renderer down; leave it out, or save it again.")
