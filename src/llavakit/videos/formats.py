"""Which container a video's bytes are in: the one demuxer that may read them, or a refusal.

FFmpeg would guess, and among what it guesses are playlists (HLS, DASH, concat), which make it open
files and addresses that the bytes name. So the demuxer is chosen here, from a list without those.
"""

from __future__ import annotations

from llavakit.errors import VideoError
from llavakit.sources.formats import ALLOWED, sniff

DECODERS = frozenset(
    {
        *("h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9"),
        *("mpeg1video", "mpeg2video", "mpeg4", "h263", "msmpeg4v2", "msmpeg4", "mjpeg", "theora"),
        *("wmv1", "wmv2", "wmv3", "vc1", "prores", "dnxhd", "ffv1", "flv", "gif", "rawvideo"),
    }
)
"""Decoders of FFmpeg that bytes from outside may meet, by PyAV's names of them."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"\0\0\1\xba", "mpeg"),
    (b"\0\0\1\xb3", "mpegvideo"),
    (b"FLV\1", "flv"),
    (b"OggS", "ogg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PACKET = 188
NAMES = "MP4, MOV, WebM, MKV, AVI, MPEG, FLV, OGG, WMV or GIF"


def demuxer_of(data: bytes) -> str:
    """Return FFmpeg's name of the demuxer for a file.

    Raises:
        VideoError: it is no video in a known container.
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    kind = sniff(data)
    if data[4:8] in _BOXES and kind in ("", "VIDEO"):
        return "mov"
    if len(data) > 2 * _PACKET and all(data[at] == 0x47 for at in (0, _PACKET, 2 * _PACKET)):
        return "mpegts"
    raise _refusal(kind, len(data))


def _refusal(kind: str, size: int) -> VideoError:
    if not size:
        return VideoError("The video is empty: the source has no bytes.")
    if kind in ALLOWED:
        return VideoError(f"This is an image ({kind}), not a video; send it as an image.")
    what = {
        "AUDIO": "this is sound",
        "HTML": "this is a web page, perhaps the server's error page",
        "JSON": "this is JSON, perhaps the server's error answer",
        "LFS": "this is a Git LFS pointer, not the video itself",
        "PDF": "this is a PDF",
    }.get(kind, f"these {size:,} bytes are in no known container")
    return VideoError(f"{what[0].upper()}{what[1:]}; use {NAMES}.")
