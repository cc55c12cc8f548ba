"""PDFs rendered in a process of their own, which may hang, swell or crash there.

A page of ten short objects, each drawing the next one ten times, keeps pdfium busy for hours,
and nothing in this process could stop it. So a stranger's documents are rendered in another one
(:mod:`llavakit.documents._worker`), which is ended when its time is over. It is started at the
first PDF and serves all that follow, until it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from copy import copy
from typing import TYPE_CHECKING, Any

from llavakit import errors
from llavakit.errors import DocumentError, EngineError, RendererKilledError, RenderError

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.limits import PageLimit
    from llavakit.documents.text_layer import TextLayer

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
_START += "from llavakit.documents._worker import main; main()"
_SIGKILL, _SIGTERM = 9, 15
_GRACE = 5.0  # seconds that the worker's own alarm has before it is ended from outside


class Renderer:
    """The process, for one caller at a time.

    Args:
        seconds: most seconds for opening a document, and for each page.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._open_now: dict[str, Any] | None = None  # the head of the document that is open there
        self._starting = threading.Lock()
        self._is_stopped = False

    def open(
        self,
        data: bytes,
        name: str,
        dpi: float,
        limit: PageLimit,
        text: bool,
        password: str | None = None,
    ) -> IsolatedPdf:
        """Open a PDF (see :class:`~llavakit.documents.pages.PageReader`).

        Raises:
            RenderError: opening it took too long.
            PasswordError: it is encrypted, and this is not its password.
            DocumentError: damaged or empty.
            MissingDependencyError: PDFs need ``llavakit[documents]``.
        """
        head = {"name": name, "dpi": dpi, "pixels": limit.pixels, "side": limit.side, "text": text}
        return IsolatedPdf(self, data, name, {**head, "password": password})

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        process, self._process, self._open_now = self._process, None, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent is of no interest
                    pipe.close()

    def stop(self) -> None:
        """End the process for good, from any thread: the request under way fails."""
        with self._starting:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def ask_of(
        self, document: IsolatedPdf, request: dict[str, Any] | None, *, what: str
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request about a document, which is opened first unless it is the open one.

        A process that was ended from outside (by the system, where memory is short) is no fault
        of the document: another one is started, and it is tried once more.

        Args:
            document: which one.
            request: what is wanted of it; None is its number of pages.
            what: names it in errors.

        Raises:
            RendererKilledError: it was ended from outside twice.
            RenderError: it took too long, or the process died of it.
            LlavaKitError: what the process raised.
        """
        try:
            return self._ask_of(document, request, what)
        except RendererKilledError:
            return self._ask_of(document, request, what)

    def _ask_of(
        self, document: IsolatedPdf, request: dict[str, Any] | None, what: str
    ) -> tuple[dict[str, Any], bytes]:
        alive = self._process is not None and self._process.poll() is None
        if not alive or self._open_now is not document.head or request is None:
            self._open_now = None
            reply = self.ask(document.head, document.data, what=document.name)
            self._open_now = document.head
            if request is None:
                return reply
        return self.ask(request, what=what)

    def ask(
        self, request: dict[str, Any], data: bytes = b"", *, what: str
    ) -> tuple[dict[str, Any], bytes]:
        """One request and its reply.

        Raises:
            RenderError: it took too long, or the process died of it or from outside.
            LlavaKitError: what the process raised.
        """
        process = self._started()
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            process.kill()

        watch = threading.Timer(self.seconds + _GRACE, end)
        watch.daemon = True
        began = time.monotonic()
        watch.start()
        try:
            head, pixels = _exchange(process, {**request, "seconds": self.seconds}, data)
        except (OSError, EOFError, ValueError) as error:
            lasted = time.monotonic() - began
            watch.cancel()
            killed = not timed_out.is_set() and _was_killed(process)
            self.close()
            raise _fallen(what, lasted, self.seconds, killed) from error
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
            with self._starting:
                if self._is_stopped:
                    raise EngineError("The renderer was stopped.")  # seen by no caller
                self._process = _start()
        return self._process


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # pdfium's remarks
            start_new_session=True,  # Ctrl-C is for the program, which closes the renderer
        )
    except OSError as error:
        raise EngineError(
            f"No process can be started that renders PDFs ({error.strerror}); render those that "
            "you trust with page_seconds=None."
        ) from error


class IsolatedPdf:
    """A PDF that is open in the other process, and opened again there after a page killed it."""

    spent = ""

    def __init__(self, renderer: Renderer, data: bytes, name: str, head: dict[str, Any]) -> None:
        self.data = data
        self.name = name
        self.head = {**head, "bytes": len(data)}
        self.length = 0
        self._renderer = renderer
        self.length = renderer.ask_of(self, None, what=name)[0]["count"]

    def within(self, renderer: Renderer) -> IsolatedPdf:
        """Return the same PDF for another process, which opens it at its first page."""
        other = copy(self)
        other._renderer = renderer
        return other

    def count(self) -> int:
        return self.length

    def page(self, number: int) -> tuple[PILImage.Image, TextLayer | None] | None:
        from PIL import Image as PILImage

        from llavakit.documents.text_layer import TextLayer

        if number > self.length:
            return None
        what = f"Page {number} of {self.name}"
        head, pixels = self._renderer.ask_of(self, {"number": number}, what=what)
        size, layer = head["size"], head.get("layer")
        if size is None:
            return None
        image = PILImage.frombytes("RGB", tuple(size), pixels)
        return image, None if layer is None else TextLayer.from_dict(layer)

    def attachments(self) -> list[str]:
        """The names of the files that are attached to it."""
        what = f"The list of attachments of {self.name}"
        head, _ = self._renderer.ask_of(self, {"attachments": True}, what=what)
        names: list[str] = head["names"]
        return names

    def attachment(self, index: int) -> bytes:
        """The content of an attached file."""
        what = f"Attachment {index + 1} of {self.name}"
        return self._renderer.ask_of(self, {"attachment": index}, what=what)[1]

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
    length = 3 * head["size"][0] * head["size"][1] if head.get("size") else head.get("length", 0)
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


def _was_killed(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process was ended by a signal that only others send."""
    try:
        code = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        return False  # it closed its pipes, and lives
    # On Windows, the caller that ends a process chooses its code; the system takes 1.
    return -code in (_SIGKILL, _SIGTERM) or (os.name == "nt" and code == 1)


def _fallen(what: str, lasted: float, seconds: float, killed: bool) -> DocumentError:
    if killed:
        return RendererKilledError(
            f"{what} could not be rendered: the system ended the renderer twice, perhaps for want "
            "of memory; read it again when there is more, or lower dpi."
        )
    if lasted >= seconds:
        return RenderError(
            f"{what} took longer than {seconds:g} seconds to open or draw; leave it out, or raise "
            "page_seconds."
        )
    return RenderError(f"{what} brought its renderer down; leave it out, or save it again.")
