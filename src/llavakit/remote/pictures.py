"""Images as data URIs: the pixels that the model would see here, and nothing else of the file.

Every image is opened by our own door first, under the ``SourcePolicy``: a server is never
given a path or an address to read. A JPEG travels as it was compressed, which is a tenth of
its PNG; what a camera wrote beside the pixels (place, time, owner) stays here.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress

from llavakit.errors import ImageDecodeError, UnsupportedContentError
from llavakit.images import Picture, open_picture, picture_size
from llavakit.sources import SourcePolicy, is_address, read_source
from llavakit.sources.formats import sniff
from llavakit.values import Image, Video
from llavakit.videos.formats import demuxer_of

_START, _SCAN = b"\xff\xd8", 0xDA
_PIXELS = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDD})
"""Markers of tables and frames, without which there are no pixels (ITU T.81, table B.1)."""
_JFIF, _ADOBE = 0xE0, 0xEE
"""They say which colour space the numbers are in."""


def data_uri(image: Image | Video, policy: SourcePolicy) -> str:
    """The image or video for the wire; a video as its file is.

    Raises:
        ImageError: it is no image that can be used.
        SourceError: it cannot be reached, or the policy forbids it.
        UnsupportedContentError: a video says which of its frames are looked at.
    """
    if isinstance(image, Video):
        return _video_uri(image, policy)
    source = image.source
    if not isinstance(source, (str, bytes)) and not hasattr(source, "__fspath__"):
        return open_picture(source, policy).data_uri()
    data = read_source(source, policy, from_url_field=image.from_url_field)  # type: ignore[arg-type]
    picture = open_picture(data, policy)
    if sniff(data) == "JPEG" and _is_plain(data):
        with suppress(ImageDecodeError):
            bare = bare_jpeg(data)
            if open_picture(bare, policy) == picture:  # not if it had to be turned
                return "data:image/jpeg;base64," + b64encode(bare).decode("ascii")
    return picture.data_uri()


def _video_uri(video: Video, policy: SourcePolicy) -> str:
    if video.num_frames is not None or video.fps is not None:
        raise UnsupportedContentError(
            "A server decides by itself which frames of a video are looked at; leave num_frames "
            "and fps out, or run the model here."
        )
    data = read_source(video.source, policy, from_url_field=video.from_url_field)
    kind = {"mov": "mp4", "matroska": "webm"}.get(name := demuxer_of(data), name)
    return f"data:video/{kind};base64," + b64encode(data).decode("ascii")


def counted_data_uri(image: Image | Video, policy: SourcePolicy) -> str:
    """An image for the wire that counts as many tokens; of an address, a black one of its size.

    Raises:
        ImageError, SourceError: as :func:`data_uri`.
    """
    source = image.source
    if isinstance(image, Video) or not (isinstance(source, str) and is_address(source)):
        return data_uri(image, policy)
    from PIL import Image as PILImage

    return Picture(PILImage.new("RGB", picture_size(source, policy))).data_uri()


def bare_jpeg(data: bytes) -> bytes:
    """A JPEG without the segments that say nothing of its pixels.

    Raises:
        ImageDecodeError: its segments cannot be followed.
    """
    return b"".join(_kept(data))


def _kept(data: bytes) -> Iterator[bytes]:
    yield _START
    position = 2
    while True:
        while data[position + 1 : position + 2] == b"\xff":  # fill bytes
            position += 1
        if data[position : position + 1] != b"\xff" or position + 4 > len(data):
            raise ImageDecodeError("The JPEG's segments cannot be followed.")
        marker = data[position + 1]
        if marker == _SCAN:
            yield data[position:]
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _PIXELS or marker in (_JFIF, _ADOBE):
            yield data[position:end]
        position = end


def _is_plain(data: bytes) -> bool:
    """Whether any reader makes the same RGB of it; of CMYK, each makes its own."""
    from PIL.JpegImagePlugin import JpegImageFile

    with JpegImageFile(io.BytesIO(data)) as image:
        return image.mode in ("RGB", "L")
