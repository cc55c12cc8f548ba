"""Images decoded in processes of their own, which may hang, swell or crash there.

Some decoders keep the interpreter while they work (JPEG 2000 for 5 seconds at 30 million pixels,
AVIF for one), and all other threads wait. So what strangers send is decoded, where it is large,
in other processes (:mod:`llavakit.images._worker`): they yield the processors to everything else,
are ended when their time is over, and a decoder that crashes takes nothing with it. The server, the
web page and the tools that models call (MCP among them) all open images so.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

from llavakit import errors
from llavakit._forks import ForkLock, in_child
from llavakit.errors import (
    EngineError,
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    LlavaKitError,
    RequestCancelledError,
)
from llavakit.images.open import Picture, open_picture, peek_cost
from llavakit.sources.policy import SourcePolicy

LIGHT_BYTES = 2 << 20
"""Text, base64 and files up to so many bytes are light work."""
LIGHT_PIXELS = 4_000_000
"""Images up to so many pixels are light work: some 0.1 s of a processor. Slow formats are light
up to a fraction of it (:func:`llavakit.images.peek_cost`)."""
DECODE_SECONDS = 20.0
"""Of processor time; the slowest format takes some 7 for 40 million pixels."""
_WALL_FACTOR = 6
_START_SECONDS = 30.0
"""The processor is shared: by the clock an image has so many times as long, and the process so many
seconds to start."""
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
_START += "from llavakit.images._worker import main; main()"
_KILLED = (-9, -15)
_OUT_OF_TIME = -27  # SIGPROF: the worker's own clock


class DecodeLimitError(ImageTooLargeError):
    """Decoding an image takes more time or memory than it may, whatever its size."""


def is_heavy(data: bytes, policy: SourcePolicy) -> bool:
    """Return whether a file is decoded in a process of its own.

    Raises:
        ImageError: as ``open_picture``, as far as the header shows it.
    """
    return len(data) > LIGHT_BYTES or peek_cost(data, policy) > LIGHT_PIXELS


def open_isolated(data: bytes, policy: SourcePolicy) -> Picture:
    """Open an image file of a stranger: here if it is light, else in a process of its own.

    At most half of the processors decode at once; further callers wait.

    Raises:
        ImageError: as ``open_picture``; it took too long; or its decoder crashed.
        EngineError: no process can be started.
    """
    if not is_heavy(data, policy):
        return open_picture(data, policy)
    shared = _get_shared()
    with shared.turn:
        return shared.decoders.open(data, policy)


class Decoders:
    """Processes that decode, as many as there are callers at once; thread-safe.

    Args:
        seconds: most processor time for one image.
    """

    def __init__(self, seconds: float = DECODE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[_DecodeProcess] = []
        self._all: set[_DecodeProcess] = set()
        self._closed = False
        weakref.finalize(self, _end_all, self._all)

    def open(self, data: bytes, policy: SourcePolicy) -> Picture:
        """Decode an image, as :func:`llavakit.images.open_picture` does.

        A process that the system ended (where memory is short) is no fault of the image, which
        is tried once more.

        Raises:
            ImageError: as ``open_picture``; it took too long; or its decoder crashed.
            EngineError: no process can be started.
            RequestCancelledError: :meth:`close` was called.
        """
        try:
            return self._open(data, policy)
        except _KilledError:
            with contextlib.suppress(_KilledError):
                return self._open(data, policy)
        raise DecodeLimitError(
            "The image could not be decoded: the system ended the decoder twice, perhaps for want "
            "of memory; shrink it."
        )

    def close(self) -> None:
        """End all processes; images that they decode are given up."""
        with self._lock:
            self._closed = True
            self._idle.clear()
        _end_all(self._all)

    def _open(self, data: bytes, policy: SourcePolicy) -> Picture:
        worker = self._take()
        healthy = False
        try:
            picture = worker.decode(data, policy)
            healthy = True
        except ImageError:
            healthy = worker.alive
            raise
        except (OSError, EOFError, ValueError) as error:
            with self._lock:
                if self._closed:
                    raise RequestCancelledError("The server is going down.") from error
            raise worker.fallen() from error
        finally:
            self._give_back(worker, healthy)
        return picture

    def _take(self) -> _DecodeProcess:
        with self._lock:
            if self._closed:
                raise RequestCancelledError("The server is going down.")
            while self._idle:
                if (worker := self._idle.pop()).alive:
                    return worker
                self._all.discard(worker)
                worker.end()
            worker = _DecodeProcess(self._seconds)
            self._all.add(worker)
            return worker

    def _give_back(self, worker: _DecodeProcess, healthy: bool) -> None:
        with self._lock:
            if healthy and not self._closed:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.end()


class _Shared:
    """The decoders of this process, for all that have none of their own."""

    def __init__(self) -> None:
        self.decoders = Decoders()
        self.turn = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))


_shared: _Shared | None = None
_sharing = ForkLock()


def _get_shared() -> _Shared:
    global _shared
    with _sharing:
        if _shared is None:
            _shared = _Shared()
        return _shared


@in_child
def _forget_shared() -> None:
    """A forked child must not speak on the pipes of its parent's decoders."""
    global _shared
    if _shared is not None:
        _inherited.append(_shared)
    _shared = None


_inherited: list[_Shared] = []
"""Decoders of a parent process, never freed: that would end the parent's."""


def _end_all(workers: set[_DecodeProcess]) -> None:
    for worker in list(workers):
        worker.end()


class _KilledError(Exception):
    """The process was ended from outside."""


class _DecodeProcess:
    """One process, for one caller at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timed_out = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # remarks of C libraries
                start_new_session=True,  # Ctrl-C is for the server, which ends the process
            )
        except OSError as error:
            raise EngineError(
                f"No process can be started that decodes images ({error.strerror}); raise the "
                "limit on processes of this user.",
                public="The image could not be decoded now; try again later.",
            ) from error

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._process.poll() is None

    def decode(self, data: bytes, policy: SourcePolicy) -> Picture:
        """Decode one image.

        Raises:
            ImageError: what the process raised.
            OSError, EOFError, ValueError: it is gone (see :meth:`fallen`).
        """
        head = {"bytes": len(data), "pixels": policy.max_pixels, "side": policy.max_side}
        watch = threading.Timer(_START_SECONDS + _WALL_FACTOR * self._seconds, self._end_late)
        watch.daemon = True
        watch.start()
        try:
            reply, pixels = self._exchange({**head, "seconds": self._seconds}, data)
        finally:
            watch.cancel()
        if "error" in reply:
            raise _raised(reply)
        from PIL import Image as PILImage

        return Picture(PILImage.frombytes("RGB", tuple(reply["size"]), pixels))

    def fallen(self) -> Exception:
        """Return the error for an image during which the process ended."""
        code = self._ended()
        if self._timed_out or code == _OUT_OF_TIME:
            return DecodeLimitError(
                f"The image takes more than {self._seconds:g} seconds to decode; shrink it, or "
                "save it as JPEG or PNG."
            )
        if code in _KILLED:
            return _KilledError()
        return ImageDecodeError("The image brought its decoder down; save it again.")

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):  # what could not be sent
                    pipe.close()

    def _ended(self) -> int | None:
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            return None  # it closed its pipes, and lives

    def _end_late(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.write(data)
        stdin.flush()
        line = stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        head: dict[str, Any] = json.loads(line)
        length = 3 * head["size"][0] * head["size"][1] if "size" in head else 0
        pixels = stdout.read(length)
        if len(pixels) < length:
            raise EOFError
        return head, pixels


def _raised(reply: dict[str, Any]) -> LlavaKitError:
    kind = getattr(errors, reply["error"])
    error: LlavaKitError = kind(reply["message"], public=reply["public"])
    return error
