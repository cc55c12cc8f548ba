"""Errors as OpenAI's clients read them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.responses import JSONResponse

from llavakit.errors import (
    ContextLengthError,
    EngineClosedError,
    ImageError,
    ImageTooLargeError,
    InputError,
    LlavaKitError,
    MessageError,
    ModelError,
    OutOfMemoryError,
    ParameterError,
    QueueFullError,
    RemoteError,
    RequestCancelledError,
    RequestTimeoutError,
    SchemaError,
    SourceError,
    SourceNotAllowedError,
    UnsupportedContentError,
    VideoError,
    VideoTooLargeError,
)

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"


class Refusal(Exception):
    """A request that ends with an error of HTTP.

    Args:
        status: of HTTP.
        message: one sentence that says what to do.
        code: for programs.
        param: the argument that is to blame, if it is one.
        headers: further headers of the response.
        unread: whether the body may not have been read; the connection then ends.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        unread: bool = False,
    ) -> None:
        message = _cut(message, 1000)  # it may quote what the client sent
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = None if param is None else _cut(param, 200)
        self.headers = dict(headers or {})
        self.unread = unread

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return INVALID if self.status < 500 else SERVER

    def body(self) -> dict[str, Any]:
        """Return the JSON that is sent, in a response or in an event of a stream."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the response that reports it."""
        closing = {"Connection": "close"} if self.unread else {}
        return JSONResponse(self.body(), self.status, self.headers | closing)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


# The first class that fits decides. What is not listed is a bug, or at least no client's fault.
_STATUS: tuple[tuple[type[LlavaKitError], int, str], ...] = (
    (ImageTooLargeError, 413, "image_too_large"),
    (VideoTooLargeError, 413, "video_too_large"),
    (ContextLengthError, 400, "context_length_exceeded"),
    (SourceNotAllowedError, 400, "source_not_allowed"),
    (SourceError, 400, "source_unreachable"),
    (ImageError, 400, "invalid_image"),
    (VideoError, 400, "invalid_video"),
    (SchemaError, 400, "invalid_schema"),
    (UnsupportedContentError, 400, "unsupported_content"),
    (MessageError, 400, "invalid_messages"),
    (ParameterError, 400, "invalid_value"),
    (InputError, 400, "invalid_request"),
    (QueueFullError, 429, "queue_full"),
    (RequestTimeoutError, 504, "timeout"),
    (OutOfMemoryError, 500, "out_of_memory"),
    (RequestCancelledError, 503, "cancelled"),
    (EngineClosedError, 503, "engine_closed"),
    (ModelError, 503, "model_unavailable"),
    (RemoteError, 502, "upstream_error"),
)


def refusal(error: BaseException, retry_after: int = 1) -> Refusal:
    """Return any error as one that can be sent; the details of a bug go to the log alone."""
    if isinstance(error, Refusal):
        return error
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(retry_after)} if status in (429, 503) else {}
            message = _overflow(error) + _public(error)
            return Refusal(status, message, code=code, param=_param(error), headers=headers)
    log.error("a request failed", exc_info=error)
    message = "The server failed on this request; its log says more."
    if isinstance(error, LlavaKitError):
        message = _public(error)
    return Refusal(500, message, code="internal_error")


def _public(error: LlavaKitError) -> str:
    """The message of an error that a remote caller may read, in one line."""
    return " ".join((error.public or str(error)).split())


@contextmanager
def blamed(param: str | None) -> Iterator[None]:
    """Give errors inside the argument that is wrong, unless they know a nearer one.

    Raises:
        Refusal: what was raised inside by llavakit.
    """
    try:
        yield
    except Refusal as refused:
        if refused.status in (400, 413):  # the others are no fault of an argument
            refused.param = refused.param or param
        raise
    except LlavaKitError as error:
        made = refusal(error)
        made.param = param or made.param
        raise made from error


def _overflow(error: LlavaKitError) -> str:
    """Return the words by which OpenAI's clients detect that a conversation is too long.

    langchain-openai looks for the code in the message; litellm, and agents built on it, for the
    sentence.
    """
    if not isinstance(error, ContextLengthError) or not error.context_length:
        return ""
    limit = error.context_length
    return f"This model's maximum context length is {limit} tokens (context_length_exceeded). "


def _param(error: LlavaKitError) -> str | None:
    if isinstance(error, (MessageError, ContextLengthError, ImageError, VideoError, SourceError)):
        return "messages"
    if isinstance(error, UnsupportedContentError):
        return "messages"
    return None
