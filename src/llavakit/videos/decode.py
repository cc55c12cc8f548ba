"""Bytes of one video to its length and to frames of 8-bit RGB: the only place that meets PyAV.

Every step is bounded: the container by its bytes, the stream by pixels, seconds and frames, and
the whole by time, which is looked at between packets.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llavakit.errors import (
    ImageTooLargeError,
    LlavaKitError,
    MissingDependencyError,
    VideoError,
    VideoTooLargeError,
)
from llavakit.images.guards import check_size
from llavakit.sources.policy import SourcePolicy
from llavakit.videos.formats import DECODERS, demuxer_of
from llavakit.videos.sampling import Length

if TYPE_CHECKING:
    from PIL import Image as PILImage

_THREADS = 4
_LOST = 0.1
"""Of the frames that a container lists, so many may be missing at its end before it is damaged."""


def measure(data: bytes, policy: SourcePolicy) -> Length:
    """Count the frames of a video from its container alone; nothing is decoded.

    Raises:
        VideoError: not a video, damaged, or over a cap of the policy.
        MissingDependencyError: PyAV is not installed.
    """
    with _opened(data, policy) as (container, stream, clock):
        frames, first, last = 0, None, None
        for packet in container.demux(stream):
            clock.check()
            if not _shows_a_frame(packet, stream.codec_context.name):
                continue
            frames += 1
            if packet.pts is not None:
                end = packet.pts + (packet.duration or 0)
                first = packet.pts if first is None else min(first, packet.pts)
                last = end if last is None else max(last, end)
                _check_seconds(float((last - first) * stream.time_base), policy)
            if frames > policy.max_video_frames:
                raise VideoTooLargeError(
                    f"The video has more than {policy.max_video_frames:,} frames "
                    "(SourcePolicy.max_video_frames); cut it, or raise the cap.",
                    public=f"The video has more than {policy.max_video_frames:,} frames; cut it.",
                )
        if not frames:
            raise VideoError("The video has no frames; send the whole file.")
        rate = stream.average_rate
        return Length(frames, float(rate) if rate else None)


def decode_frames(
    data: bytes, indices: Sequence[int], policy: SourcePolicy
) -> Iterator[PILImage.Image]:
    """Decode frames by their indices.

    Args:
        data: the file.
        indices: of frames in the order in which they are shown, ascending.
        policy: the caps.

    Raises:
        VideoError: as :func:`measure`; or it ends before the frames that it lists.
    """
    wanted = list(indices)
    with _opened(data, policy) as (container, stream, clock):
        shown, last = 0, None
        for frame in container.decode(stream):
            clock.check()
            while wanted and wanted[0] == shown:
                wanted.pop(0)
                yield _upright(frame, policy)
            if not wanted:
                return
            shown, last = shown + 1, frame
        # Some containers list a few frames more than their decoder shows.
        if last is None or shown < (1 - _LOST) * (indices[-1] + 1):
            raise VideoError(
                f"The video is truncated or damaged (it ends at frame {shown} of at least "
                f"{indices[-1] + 1}); send the whole file."
            )
        for _ in wanted:
            yield _upright(last, policy)


class _Clock:
    """The time that reading one video may take; what its reader does with a frame counts too."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._seconds = policy.max_video_decode_seconds
        self._end = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raise a ``VideoTooLargeError`` once the time is over."""
        if time.monotonic() > self._end:
            raise VideoTooLargeError(
                f"Decoding the video takes more than {self._seconds:g} seconds "
                "(SourcePolicy.max_video_decode_seconds); cut or shrink it, or raise the cap.",
                public="Decoding the video takes too long; cut or shrink it.",
            )


@contextmanager
def _opened(data: bytes, policy: SourcePolicy) -> Iterator[tuple[Any, Any, _Clock]]:
    """Open a container and its first stream of frames; FFmpeg's errors become ours."""
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            'Videos need PyAV; pip install "llavakit[video]", or send frames of it as images.'
        ) from error
    demuxer = demuxer_of(data)
    try:
        # Nothing but these bytes: no protocol is allowed that opens a file or an address.
        options = {"protocol_whitelist": "none"}
        with av.open(io.BytesIO(data), format=demuxer, container_options=options) as container:
            if not container.streams.video:
                raise VideoError("The file has sound and no frames; send a video.")
            stream = container.streams.video[0]
            _prepare(stream, policy)
            yield container, stream, _Clock(policy)
    except LlavaKitError:
        raise
    except MemoryError as error:
        raise VideoTooLargeError("The video needs more memory than there is; shrink it.") from error
    except Exception as error:  # FFmpeg's, and what PyAV raises of damaged text in a header
        said = getattr(error, "strerror", None) or error
        reason = " ".join(str(said).split())[:120] or type(error).__name__
        raise VideoError(
            f"The video is truncated or damaged ({reason}); send the whole file."
        ) from error


def _prepare(stream: Any, policy: SourcePolicy) -> None:
    """Check what the header says of a stream, and set the decoder's own bounds."""
    codec = stream.codec_context
    if codec is None or codec.name not in DECODERS:
        name = "an unknown codec" if codec is None else f"the codec {codec.name}"
        raise VideoError(f"The video is in {name}, which is not decoded; convert it to H.264.")
    if codec.width and codec.height:
        _check_pixels((codec.width, codec.height), policy)
    codec.options = {"max_pixels": str(policy.max_pixels)}
    codec.thread_type = "AUTO"
    codec.thread_count = min(_THREADS, os.cpu_count() or 1)
    if stream.duration:
        _check_seconds(float(stream.duration * stream.time_base), policy)


def _check_pixels(size: tuple[int, int], policy: SourcePolicy) -> None:
    try:
        check_size(size, policy)
    except ImageTooLargeError as error:
        public = None if error.public is None else f"A frame is too large: {error.public}"
        raise VideoTooLargeError(f"A frame is too large: {error}", public=public) from error


def _check_seconds(seconds: float, policy: SourcePolicy) -> None:
    if seconds > policy.max_video_seconds:
        raise VideoTooLargeError(
            f"The video lasts longer than {policy.max_video_seconds:g} seconds "
            "(SourcePolicy.max_video_seconds); cut it, or raise the cap.",
            public=f"The video lasts longer than {policy.max_video_seconds:g} seconds; cut it.",
        )


def _shows_a_frame(packet: Any, codec: str) -> bool:
    """Whether a packet is one of a frame that is shown.

    VP8 has packets of frames that only others refer to; the fifth bit of the first byte is 0 in
    those (RFC 6386, section 9.1).
    """
    if not packet.size or packet.is_discard:
        return False
    if codec in ("vp8", "libvpx"):
        return bool(bytes(packet)[0] & 0x10)
    return True


def _upright(frame: Any, policy: SourcePolicy) -> PILImage.Image:
    """A frame in RGB, turned as its file says, as players and images are."""
    _check_pixels((frame.width, frame.height), policy)  # it may change within a stream
    from PIL import Image as PILImage

    image = PILImage.fromarray(frame.to_ndarray(format="rgb24"))
    turned = int(frame.rotation) % 360  # degrees counter-clockwise
    return image.rotate(turned, expand=True) if turned else image
