"""What a server allows its clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llavakit._checks import check_instance, check_integer, check_number, strings
from llavakit.errors import ParameterError
from llavakit.sources import SourcePolicy

MIB = 1 << 20
VIDEO_SECONDS = 20.0
"""In which a client's video must be decoded; how long it may last is the policy's default."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Names, keys and limits of a server; all of it plain values that can be pickled.

    Attributes:
        model_name: what clients call the model; None takes the backend's own name.
        api_keys: keys of which a client must show one; empty lets everybody in.
        allow_urls: whether http(s) URLs of images are fetched (public addresses only).
            Paths and ``file:`` URLs of a request are never read.
        allowed_hosts: names that the ``Host`` header may have, without ports; empty takes
            any. Set for servers on loopback, it keeps web pages from reaching them through a
            name of their own (DNS rebinding).
        warm_up: at start, load the model, answer one token, and compile and capture what steps
            need; ``"load"`` leaves out the last, and False is ready at once.
        max_body_bytes: most bytes of a request.
        max_images: most images and videos of a request.
        max_image_bytes: most bytes of one image or video.
        max_image_pixels: most pixels of one image, or of a frame of a video.
        max_choices: the largest ``n``.
        max_answer_tokens: most tokens of one answer; None leaves it to the context.
        max_open_requests: most requests that are read, wait or are answered at once.
        max_memory_bytes: most bytes that bodies and decoded images of all open requests
            may take.
        body_timeout: seconds in which a body must have come.
        request_timeout: seconds in which an answer must be complete, queueing included.
        send_timeout: seconds that a client may leave a piece of its answer unread.
        ping_seconds: a stream that is silent for so long says that it lives.
        retry_after: seconds after which a refused client may try again.
    """

    model_name: str | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_urls: bool = False
    allowed_hosts: tuple[str, ...] = ()
    warm_up: bool | Literal["load"] = True
    max_body_bytes: int = 64 * MIB
    max_images: int = 16
    max_image_bytes: int = 20 * MIB
    max_image_pixels: int = 40_000_000
    max_choices: int = 16
    max_answer_tokens: int | None = None
    max_open_requests: int = 512
    max_memory_bytes: int = 2048 * MIB
    body_timeout: float = 120.0
    request_timeout: float = 600.0
    send_timeout: float = 60.0
    ping_seconds: float = 15.0
    retry_after: int = 1

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes",
            "max_images",
            "max_image_bytes",
            "max_image_pixels",
            "max_choices",
            "max_open_requests",
            "max_memory_bytes",
            "retry_after",
        ):
            check_integer(name, getattr(self, name), least=1)
        for name in ("body_timeout", "request_timeout", "send_timeout", "ping_seconds"):
            check_number(name, getattr(self, name), above=0)
        if self.max_answer_tokens is not None:
            check_integer("max_answer_tokens", self.max_answer_tokens, least=1)
        check_instance("allow_urls", self.allow_urls, bool, "True or False")
        if self.warm_up != "load":
            check_instance("warm_up", self.warm_up, bool, 'True, False or "load"')
        for name, secret in (("api_keys", True), ("allowed_hosts", False)):
            value = strings(name, getattr(self, name), secret=secret)
            object.__setattr__(self, name, value)

    def policy(self) -> SourcePolicy:
        """What may be opened for a client."""
        return SourcePolicy(
            roots=(),
            allow_files=False,
            allow_urls=self.allow_urls,
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_video_decode_seconds=VIDEO_SECONDS,
        )


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file: one a line; empty lines and lines that begin with ``#`` are none.

    Raises:
        ParameterError: it cannot be read, or holds no key. No key is ever shown.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ParameterError(f"The keys in {path} cannot be read ({reason}).") from None
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ParameterError(f"{path} holds no key; write one a line.")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ParameterError(f"A key in {path} has spaces or letters beyond ASCII; leave them out.")
    return tuple(dict.fromkeys(keys))
