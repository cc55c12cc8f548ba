"""Bytes of a source: a file, an address, data in the text itself, or an open file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from llavakit.errors import (
    LlavaKitError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
    UnsupportedImageError,
)
from llavakit.sources.policy import SourcePolicy

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # one letter is a Windows drive


def is_address(source: str) -> bool:
    """Whether a source is an http(s) URL, so that it has to be fetched."""
    return source.lstrip()[:8].lower().startswith(("http://", "https://"))


def read_source(
    source: str | Path | bytes, policy: SourcePolicy, *, from_url_field: bool = False
) -> bytes:
    """The bytes of a source, of at most ``policy.max_bytes``.

    Args:
        source: bytes; a ``Path``; or a string: a data, http(s) or ``file:`` URL, a path,
            or the base64 of an image or PDF. A string is tried in this order, so a file
            whose name happens to be base64 wins over the base64.
        policy: what may be opened.
        from_url_field: the string stood in a URL field of a message: it is never read as
            a path, and as a ``file:`` URL only if the policy has roots.

    Raises:
        SourceError: not allowed, not found, or failed half-way.
        ImageTooLargeError: over the byte cap.
        ImageDecodeError: a data URL or base64 that is damaged.
    """
    from llavakit.sources.inline import check_length, decode_base64, decode_data_url, shown

    if isinstance(source, bytes):
        check_length(len(source), policy.max_bytes)
        return source
    if isinstance(source, Path):
        return read_file(source, policy)
    match = _SCHEME.match(source[:64])
    scheme = match[1].lower() if match else ""
    if scheme == "data":
        return decode_data_url(source, policy.max_bytes)
    if scheme in ("http", "https"):
        return fetch_url(source.strip(), policy)
    if scheme == "file":
        if from_url_field and policy.roots is None:
            raise SourceNotAllowedError(
                f"{shown(source)} stands in a URL field, and file: URLs are read from there "
                "only below SourcePolicy(roots=...)."
            )
        return read_file(_path_of_file_url(source.strip()), policy)
    if match and source.startswith("//", match.end()):
        raise SourceNotAllowedError(
            f"{scheme}: URLs are not opened; read {shown(source)} yourself and pass its bytes."
        )
    if not from_url_field and policy.allow_files and _exists(source):
        return read_file(source, policy)
    decoded = decode_base64(source, policy.max_bytes)
    if decoded is not None:
        return decoded
    if from_url_field:
        raise SourceNotAllowedError(
            f"{shown(source)} is no data or http(s) URL and not the base64 of an image, and "
            "paths are not read from a URL field; pass a path as a path."
        )
    try:
        return read_file(source, policy)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(
            f"{shown(source)} is neither an existing file, nor a data, file or http(s) URL, "
            "nor the base64 of an image."
        ) from error


def read_file(path: str | Path, policy: SourcePolicy) -> bytes:
    """Reads one regular file.

    Devices, pipes, sockets, directories and kernel files (``/proc``, ``/sys``) are refused
    before anything is read from them.

    Raises:
        SourceNotAllowedError: the policy forbids it, or it is no regular file.
        SourceNotFoundError: there is no such file.
        SourceFetchError: it cannot be read.
        ImageTooLargeError: over ``policy.max_bytes``.
    """
    from llavakit.sources.files import read

    return read(path, policy)


def fetch_url(url: str, policy: SourcePolicy) -> bytes:
    """Fetches one http(s) URL.

    The name is resolved once, every address is checked, and the connection goes to a
    checked address, on each redirect anew. Proxies and other settings of the environment
    are not used.

    Raises:
        SourceNotAllowedError: the policy forbids it, or the URL leads to a private address.
        SourceNotFoundError: no such host, or the server answered 404 or 410.
        SourceFetchError: the network failed, the deadline passed, or the server erred.
        ImageTooLargeError: the body is over ``policy.max_bytes``.
    """
    from llavakit.sources.fetch import fetch

    return fetch(url, policy)


def read_file_object(file: Any, max_bytes: int) -> bytes:
    """All bytes of a binary file object, from its beginning where it can be rewound.

    Raises:
        UnsupportedImageError: it gives text.
        SourceFetchError: it cannot be read.
        ImageTooLargeError: it holds more than ``max_bytes``.
    """
    from llavakit.sources.inline import check_length

    chunks: list[bytes] = []
    size = 0
    try:
        # Rewound, as PIL does: a buffer just written to stands at its end.
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
        while chunk := file.read(2**20):
            if not isinstance(chunk, (bytes, bytearray, memoryview)):
                raise UnsupportedImageError("The file gives text; open it with mode 'rb'.")
            size += len(chunk)
            check_length(size, max_bytes)
            chunks.append(bytes(chunk))
    except LlavaKitError:
        raise
    except Exception as error:  # a file object may be anybody's
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SourceFetchError(f"The file object cannot be read ({reason}).") from error
    return b"".join(chunks)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # overlong, or a NUL inside
        return False


def _path_of_file_url(url: str) -> str:
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    from llavakit.sources.inline import shown

    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SourceNotFoundError(f"{shown(url)} is not a valid URL.") from error
    if parts.netloc.lower() not in ("", "localhost"):
        raise SourceNotAllowedError(
            f"{shown(url)} names another host; a file: URL has three slashes: file:///path."
        )
    if parts.query or parts.fragment:
        raise SourceNotFoundError(
            f"{shown(url)} has a '?' or '#'; write them as %3F and %23 in a file: URL."
        )
    return url2pathname(parts.path)
