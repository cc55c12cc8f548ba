"""What a server's refusal means, in llavakit's errors.

A server's own words are quoted, but shortened, and never with the key or an image in them:
some echo the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from llavakit.errors import (
    ContextLengthError,
    LlavaKitError,
    ModelNotFoundError,
    QueueFullError,
    RemoteError,
)
from llavakit.remote.address import RemoteConfig

MAX_BODY = 1 << 16
"""Bytes of a refusal that are read."""
_SHOWN = 300
_MESSAGES = ("error", "message", "detail", "msg")
_OF_TEMPLATE = "Jinja Exception: "
_LONG = re.compile(r"[A-Za-z0-9+/=_-]{100,}")
_CONTEXT = re.compile(
    r"context_length_exceeded|context (?:length|size|window)|maximum model length"
    r"|longer than the model|max_model_len",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:context length|context size|context window|maximum model length|max_model_len"
    r"|the model holds)\D{0,20}?(\d+)",
    re.IGNORECASE,
)
_PROMPT = re.compile(
    r"\((\d+) in the messages|prompt has (\d+) tokens|(\d+) input tokens"
    r"|(?:prompt|input)[^.\d]{0,30}?(\d+)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|model .{0,200} (?:does not exist|not found)|server is pinned to",
    re.IGNORECASE | re.DOTALL,
)


def refusal(
    status: int, body: str, config: RemoteConfig, *, fields: Mapping[str, Any] | None = None
) -> LlavaKitError:
    """The error for an answer that is none.

    Args:
        status: the HTTP status code; of an error inside a stream, what its code says, or 0.
        body: what the server said.
        config: which server, and the key that must not be shown.
        fields: of the request; none where it was no chat completion.
    """
    said = words(body, config)
    quoted = f": {said}" if said else ""
    where = f"The server at {config.address}"
    if status in (400, 413, 422) and _CONTEXT.search(body):
        return _context_error(body, said, fields or {})
    if (status in (400, 404) and _NO_MODEL.search(body)) or (status == 404 and fields):
        return ModelNotFoundError(f"{where} has no model {config.model!r} (HTTP {status}{quoted}).")
    if status in (401, 403):
        kind = "the api_key" if config.api_key else "a request without an api_key"
        return RemoteError(f"{where} refused {kind} (HTTP {status}{quoted}).", status=status)
    if status == 413:
        return RemoteError(
            f"{where} takes no request of this size (HTTP 413{quoted}); send fewer or smaller "
            "images.",
            status=status,
        )
    if status == 429:
        return QueueFullError(
            f"{where} takes no more requests for now (HTTP 429{quoted}); try again later or "
            "raise max_retries."
        )
    if 500 <= status < 600:
        return RemoteError(f"{where} failed (HTTP {status}{quoted}).", status=status)
    if 300 <= status < 400:
        return RemoteError(
            f"{where} answers with a redirect (HTTP {status}), which is not followed because the "
            "key and the images would go there; give its target as base_url.",
            status=status,
        )
    if not status:
        return RemoteError(f"{where} broke off the answer{quoted or ' with an error'}.")
    return RemoteError(f"{where} refused the request (HTTP {status}{quoted}).", status=status)


def words(body: str, config: RemoteConfig) -> str:
    """What the server said in short: one line, no key, no image."""
    said = " ".join(_message(body).split())
    said = said.rpartition(_OF_TEMPLATE)[2]  # behind lines of the template's source
    if config.api_key:
        said = said.replace(config.api_key, "***")
    said = _LONG.sub("...", said)
    return said if len(said) <= _SHOWN else said[: _SHOWN - 3] + "..."


def _message(body: str) -> str:
    """The message inside the notations of OpenAI, FastAPI and others; else all of it."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return "" if body.lstrip().startswith("<") else body  # a proxy's page says nothing
    for _ in range(3):  # {"error": {"message": ...}}, {"detail": [{"msg": ...}]}
        if isinstance(message, list) and message:
            message = message[0]
        if isinstance(message, dict):
            message = next((message[name] for name in _MESSAGES if message.get(name)), "")
    return message if isinstance(message, str) else json.dumps(message)


def error_status(error: Any) -> int:
    """Return the HTTP status that an error inside a stream reports; 0 where it reports none."""
    code = error.get("code") if isinstance(error, Mapping) else None
    text = str(code)
    return int(text) if text.isdigit() and 300 <= int(text) < 600 else 0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3); None where it does not."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _context_error(body: str, said: str, fields: Mapping[str, Any]) -> ContextLengthError:
    limit, prompt = _number(_LIMIT, body), _number(_PROMPT, body)
    return ContextLengthError(
        "The request does not fit into the model's context; shorten the conversation, send fewer "
        f"images or lower max_tokens. The server says: {said}",
        prompt_tokens=prompt,
        max_tokens=int(fields.get("max_tokens", 0)),
        context_length=limit,
    )


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return 0 if found is None else int(next(filter(None, found.groups())))
