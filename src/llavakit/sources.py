"""Where bytes may come from, and how they are read.

Every byte that llavakit did not get in memory passes through :func:`read_file` or
:func:`fetch_url`, and both obey a :class:`SourcePolicy`. What the bytes mean is not this
module's concern: :mod:`llavakit.images` decodes pictures, :mod:`llavakit.documents` pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias, cast

from llavakit._checks import Takes, checked, known, real, whole
from llavakit.errors import (
    LlavaKitError,
    ParameterError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
    UnsupportedImageError,
)

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # one letter is a Windows drive


_Roots: TypeAlias = Iterable[str | os.PathLike[str]] | str | os.PathLike[str]


@checked
@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What llavakit may open, and how much of it.

    Bytes, data URLs, base64 text, PIL images and arrays are always allowed: they need no
    access to anything. The defaults are for a program whose author names the paths.

    It is plain data: whatever holds one writes it down with itself (:meth:`to_dict`) and has an
    equal one when it is read back.

    Attributes:
        roots: directories below which files may be read, or None for any path that a
            caller names as a path. When set, paths and ``file:`` URLs must lead below one
            of them after symbolic links and ``..`` are resolved; an empty tuple allows no
            file. Only with roots are ``file:`` URLs read from a URL field of a message.
            Hard links cannot be told from files, so roots must not be writable by
            strangers.
        allow_files: whether local files may be read at all.
        allow_urls: whether http(s) URLs may be fetched at all.
        allow_private_hosts: whether a URL may lead to an address that is not public
            (loopback, private network, link-local, cloud metadata service, ...).
        max_bytes: most bytes of one file, response or data URL, compressed or not. The
            default of 64 MiB holds a 16-bit scan of an A4 page at 600 dpi.
        max_pixels: most pixels of one picture, checked before it is decoded. The default
            of 100 million holds an A3 page at 600 dpi (70 million) and takes 300 MB as
            RGB; LLaVA itself sees at most a few hundred thousand of them. Pillow's own
            ceiling of about 179 million still holds for WebP and tiled TIFF.
        max_side: most pixels along one side. A strip of 100,000 x 1 has few pixels, but
            padding it to a square, as LLaVA does, would need ten thousand million.
        timeout: seconds in which a fetch must finish, redirects included.
        max_redirects: most redirects to follow; each is checked like the first URL.
    """

    roots: Annotated[tuple[Path, ...] | None, Takes(_Roots | None)] = None
    allow_files: bool = True
    allow_urls: bool = True
    allow_private_hosts: bool = False
    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000
    max_side: int = 32_768
    timeout: float = 20.0
    max_redirects: int = 3

    def __post_init__(self) -> None:
        roots = cast("_Roots | None", self.roots)
        if roots is not None:
            several = (roots,) if isinstance(roots, (str, os.PathLike)) else tuple(roots)
            # An empty name would be the directory that we happen to stand in.
            if not all(
                isinstance(root, (str, os.PathLike)) and os.fspath(root) for root in several
            ):
                raise ParameterError("roots holds something that is no folder's name.")
            # Absolute at once, so that a later chdir does not move the fence.
            object.__setattr__(self, "roots", tuple(Path(root).absolute() for root in several))
        for name in ("max_bytes", "max_pixels", "max_side"):
            whole(name, getattr(self, name), least=1)
        real("timeout", self.timeout, above=0)
        whole("max_redirects", self.max_redirects, least=0)

    def to_dict(self) -> dict[str, Any]:
        """The policy in types of JSON, every field of it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        roots = None if self.roots is None else [str(root) for root in self.roots]
        return {**values, "roots": roots}

    @classmethod
    @checked
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The policy that :meth:`to_dict` wrote down.

        A field that is missing is not filled up with its default: what was written before the
        field was lost may have been stricter.

        Raises:
            ParameterError: a field is missing, unknown or malformed.
        """
        names = [field.name for field in fields(cls)]
        known(data, names, "A source policy")
        missing = [name for name in names if name not in data]
        if missing:
            raise ParameterError(
                f"This source policy was written without {missing[0]!r}, and nobody knows what it "
                "allowed; make a SourcePolicy(...) anew."
            )
        return cls(**data)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """How pydantic, where there is one, reads and writes a field of this type."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls._read,
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls.to_dict, return_schema=core_schema.dict_schema()
            ),
            json_schema_input_schema=core_schema.dict_schema(),
        )

    @classmethod
    def _read(cls, value: Any) -> SourcePolicy:
        if isinstance(value, SourcePolicy):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        raise ParameterError("A source policy is a llavakit.SourcePolicy(...).")


DEFAULT_POLICY = SourcePolicy()


def is_address(source: str) -> bool:
    """Whether a source is an http(s) URL, so that it has to be fetched."""
    return source.lstrip()[:8].lower().startswith(("http://", "https://"))


def read_source(
    source: str | Path | bytes, policy: SourcePolicy, *, from_url_field: bool = False
) -> bytes:
    """The bytes of a source, of at most ``policy.max_bytes``.

    Args:
        source: bytes; a ``Path``; or a string: a data, http(s) or ``file:`` URL, a path,
            or the base64 of a picture or PDF. A string is tried in this order, so a file
            whose name happens to be base64 wins over the base64.
        policy: what may be opened.
        from_url_field: the string stood in a URL field of a message: it is never read as
            a path, and as a ``file:`` URL only if the policy has roots.

    Raises:
        SourceError: not allowed, not found, or failed half-way.
        ImageTooLargeError: over the byte cap.
        ImageDecodeError: a data URL or base64 that is damaged.
    """
    from llavakit._inline import check_length, decode_base64, decode_data_url, shown

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
            f"{shown(source)} is no data or http(s) URL and not the base64 of a picture, and "
            "paths are not read from a URL field; pass a path as a path."
        )
    try:
        return read_file(source, policy)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(
            f"{shown(source)} is neither an existing file, nor a data, file or http(s) URL, "
            "nor the base64 of a picture."
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
    from llavakit._files import read

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
    from llavakit._fetch import fetch

    return fetch(url, policy)


def read_file_object(file: Any, max_bytes: int) -> bytes:
    """All bytes of a binary file object, from its beginning where it can be rewound.

    Raises:
        UnsupportedImageError: it gives text.
        SourceFetchError: it cannot be read.
        ImageTooLargeError: it holds more than ``max_bytes``.
    """
    from llavakit._inline import check_length

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

    from llavakit._inline import shown

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
