"""The one entry point for videos: what a caller calls a video becomes a :class:`Clip`."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit._forks import ForkLock
from llavakit.errors import UnsupportedContentError
from llavakit.sources import (
    DEFAULT_POLICY,
    SourcePolicy,
    is_address,
    read_file_object,
    read_source,
)
from llavakit.videos.sampling import Length

if TYPE_CHECKING:
    from PIL import Image as PILImage

KEPT_SECONDS = 300.0
"""After so long an address is asked again how long its video is: another may be there."""
_MOST = 256


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Clip:
    """A video whose container was read; its frames are decoded when they are asked for.

    Attributes:
        data: the file.
        digest: sha256 of it in hex.
        length: how long it is.
        policy: the caps under which it is decoded.
    """

    data: bytes
    digest: str
    length: Length
    policy: SourcePolicy

    def frames(self, indices: Sequence[int]) -> Iterator[PILImage.Image]:
        """Decode frames by their indices, ascending; each upright, as a PIL image in mode RGB.

        Raises:
            VideoError: damaged, or decoding takes longer than ``max_video_decode_seconds``.
        """
        from llavakit.videos.decode import decode_frames

        return decode_frames(self.data, indices, self.policy)


def open_clip(
    source: str | Path | bytes,
    policy: SourcePolicy = DEFAULT_POLICY,
    *,
    from_url_field: bool = False,
) -> Clip:
    """Open a video, and count its frames; none is decoded.

    Args:
        source: what :func:`hold` returns.
        policy: what may be opened, and the caps on bytes, pixels, seconds and frames.
        from_url_field: as of :func:`llavakit.sources.read_source`.

    Raises:
        VideoError: not a video that can be used.
        SourceError: it cannot be reached, or the policy forbids it.
        MissingDependencyError: PyAV is not installed.
    """
    from llavakit.videos.decode import measure

    data = read_source(source, policy, from_url_field=from_url_field)
    return Clip(data, sha256(data).hexdigest(), measure(data, policy), policy)


_known: OrderedDict[Any, tuple[float, Length]] = OrderedDict()
_lock = ForkLock()


def length_of(
    source: str | Path | bytes,
    policy: SourcePolicy = DEFAULT_POLICY,
    *,
    from_url_field: bool = False,
) -> Length:
    """Return how long a video is; that of an http(s) URL is kept for five minutes.

    Raises:
        VideoError, SourceError, MissingDependencyError: as :func:`open_clip`.
    """
    if not (isinstance(source, str) and is_address(source)):
        return open_clip(source, policy, from_url_field=from_url_field).length
    key, now = (source.strip(), policy), time.monotonic()
    with _lock:
        found = _known.get(key)
    if found is not None and now - found[0] < KEPT_SECONDS:
        return found[1]
    length = open_clip(source, policy, from_url_field=from_url_field).length
    with _lock:
        _known[key] = (now, length)
        _known.move_to_end(key)
        while len(_known) > _MOST:
            _known.popitem(last=False)
    return length


def hold(source: Any, max_bytes: int = DEFAULT_POLICY.max_bytes) -> str | Path | bytes:
    """Return what :class:`llavakit.Video` keeps of a source: something that cannot change later.

    Strings and paths stay as they are (nothing is opened); open files and buffers become bytes.

    Raises:
        UnsupportedContentError: nothing that a video can be made from.
        SourceFetchError: a file object that cannot be read.
        ImageTooLargeError: a file object of more than ``max_bytes``.
    """
    if isinstance(source, (str, bytes, Path)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if callable(getattr(source, "read", None)):
        return read_file_object(source, max_bytes)
    raise UnsupportedContentError(
        f"A video cannot be made from {type(source).__name__}; pass a path, a URL, bytes or an "
        "open file, or send frames that you have already as images."
    )
