"""Bytes that travel inside a string: data URLs (RFC 2397) and bare base64.

Also the short form in which a source may appear in an error: never a payload, never
credentials.
"""

from __future__ import annotations

import binascii
import re
from urllib.parse import urlsplit

from llavakit.errors import ImageDecodeError, ImageTooLargeError
from llavakit.sources.formats import is_known

_ALPHABET = re.compile(r"[A-Za-z0-9+/_\-]*={0,2}", re.ASCII)
_URLSAFE = str.maketrans("-_", "+/")
_PROBE = 4096  # characters looked at before the whole text is decoded
_SHOWN = 80


def shown(source: object) -> str:
    """At most about 80 characters that name a source in an error."""
    text = str(source)
    head = text[:4096]
    if head.lstrip()[:5].lower() == "data:":
        return f"'{head.lstrip().partition(',')[0][:40]},...'"
    if "://" in head:
        try:
            parts = urlsplit(head.strip())
            host = parts.netloc.rpartition("@")[2]
            head = f"{parts.scheme}://{host}{parts.path}"  # queries may carry tokens
        except ValueError:
            head = head.partition("://")[0] + "://..."
    if len(text) > 400 and _ALPHABET.fullmatch("".join(head.split())):
        return f"a text of {len(text)} characters"
    if len(head) > _SHOWN:
        path = "://" not in head and ("/" in head or "\\" in head)  # its end says the most
        head = f"...{head[3 - _SHOWN :]}" if path else f"{head[: _SHOWN - 3]}..."
    return repr(head)


def check_length(length: int, max_bytes: int) -> None:
    """Refuses more than ``max_bytes`` bytes."""
    if length > max_bytes:
        raise ImageTooLargeError(
            f"The source has {length:,} bytes, above the {max_bytes:,} of "
            "SourcePolicy.max_bytes; shrink it or raise the cap.",
            public=f"The image has {length:,} bytes, more than the {max_bytes:,} that are taken "
            "here; shrink it.",
        )


def decode_data_url(url: str, max_bytes: int) -> bytes:
    """The payload of a data URL.

    The declared media type is ignored; it is detected from the bytes. Base64 may be standard
    or URL-safe, hold white space, be percent-encoded, and lack its padding.
    """
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageDecodeError(
            "The data URL has no comma; write data:image/png;base64,<the base64 of the file>."
        )
    if header.rstrip().lower().endswith(";base64"):
        if "%" in payload:
            payload = _unquote(payload).decode("latin-1")
        return _strict("".join(payload.split()), max_bytes)
    # Percent-encoding needs at most three characters a byte.
    check_length(len(payload) // 3, max_bytes)
    data = _unquote(payload)
    check_length(len(data), max_bytes)
    return data


def decode_base64(text: str, max_bytes: int) -> bytes | None:
    """The bytes of a bare base64 text, or None when its beginning is no known file format."""
    probe = "".join(text[:_PROBE].split())
    if len(probe) < 16 or not _ALPHABET.fullmatch(probe):
        return None
    start = probe.rstrip("=").translate(_URLSAFE)
    start = start[: len(start) // 4 * 4]
    if not is_known(binascii.a2b_base64(start)):
        return None
    return _strict("".join(text.split()), max_bytes)


def _unquote(text: str) -> bytes:
    """Percent-encoding undone. ``urllib.parse.unquote_to_bytes`` makes an object of every
    escape, gigabytes for a long text; quoted-printable is the same code under another sign,
    and decoded in C.
    """
    data = text.encode("utf-8", "replace").replace(b"=", b"=3D").replace(b"%", b"=")
    return binascii.a2b_qp(data)


def _strict(text: str, max_bytes: int) -> bytes:
    body = text.rstrip("=")
    check_length(len(body) * 3 // 4, max_bytes)
    if "-" in body or "_" in body:
        body = body.translate(_URLSAFE)
    try:
        # In C, and once: tens of megabytes keep all other threads waiting.
        return binascii.a2b_base64(body + "=" * (-len(body) % 4), strict_mode=True)
    except ValueError as error:
        raise ImageDecodeError(
            "The base64 is damaged: it holds other characters or is cut short; "
            "send the base64 of the whole file."
        ) from error
