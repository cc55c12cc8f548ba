"""Small videos, made by code: each frame can be told from the others."""

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def noise(seed: int, frames: int, width: int = 48, height: int = 32) -> Pixels:
    """Frames of noise in blocks of 8 pixels, [frames, height, width, 3]."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def encoded(
    pixels: Pixels,
    container: str = "mp4",
    codec: str = "ffv1",
    *,
    rate: int = 10,
    pix_fmt: str = "bgr0",
) -> bytes:
    """A video file; by default without any loss."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = pix_fmt
        for one in pixels:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def video(seed: int = 1, frames: int = 20, width: int = 48, height: int = 32) -> bytes:
    """A lossless video in Matroska."""
    return encoded(noise(seed, frames, width, height), "matroska")
