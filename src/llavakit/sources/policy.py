"""What may be opened, and how much of it: the policy of every file, address and image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias, cast

from llavakit._checks import Takes, check_integer, check_number, checked, known
from llavakit.errors import ParameterError

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
            Hard links look like any other file, so roots must not be writable by
            strangers.
        allow_files: whether local files may be read at all.
        allow_urls: whether http(s) URLs may be fetched at all.
        allow_private_hosts: whether a URL may lead to an address that is not public
            (loopback, private network, link-local, cloud metadata service, ...).
        max_bytes: most bytes of one file, response or data URL, compressed or not. The
            default of 64 MiB holds a 16-bit scan of an A4 page at 600 dpi.
        max_pixels: most pixels of one image, checked before it is decoded. The default
            of 100 million holds an A3 page at 600 dpi (70 million) and takes 300 MB as
            RGB; LLaVA itself sees at most a few hundred thousand of them. Pillow's own
            ceiling of about 179 million still holds for WebP and tiled TIFF.
        max_side: most pixels along one side. A strip of 100,000 x 1 has few pixels, but
            padding it to a square, as LLaVA does, would need ten thousand million.
        max_video_seconds: longest video.
        max_video_frames: most frames of a video; models look at a few of them, but finding
            those takes decoding what is before them.
        max_video_decode_seconds: seconds in which the frames of a video must be decoded.
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
    max_video_seconds: float = 600.0
    max_video_frames: int = 36_000
    max_video_decode_seconds: float = 60.0
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
        for name in ("max_bytes", "max_pixels", "max_side", "max_video_frames"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("max_video_seconds", "max_video_decode_seconds", "timeout"):
            check_number(name, getattr(self, name), above=0)
        check_integer("max_redirects", self.max_redirects, least=0)

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
                f"This source policy was written without {missing[0]!r}, so what it allowed "
                "is unknown; make a SourcePolicy(...) anew."
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
