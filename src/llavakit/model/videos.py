"""From a video to what the vision tower reads: frames as the checkpoint's processor makes them.

transformers' own video processors need torchvision. This does the same with Pillow, as images are
prepared: the settings are those of the checkpoint's files, and pixels differ from torchvision's in
the last bits of a resized frame.
"""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError
from llavakit.model.families import ONEVISION, VIDEO_TYPES
from llavakit.model.json_files import read_json
from llavakit.videos import Clip, FrameSampling, Length

if TYPE_CHECKING:
    import torch

    from llavakit.values import Video

TRAINED_FRAMES = 32
"""Frames of a video in training, for LLaVA-NeXT-Video (its model card) and OneVision
(https://arxiv.org/abs/2408.03326, section 3.2)."""

_SHARE = 2
"""Where files name no number of frames, a video takes at most half of the context."""

# Where transformers looks, first to last.
_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_NESTED = ("processor_config.json", "video_processor")

# What transformers' video processors take where a file says nothing.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_COMMON = {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "resample": 3, "do_resize": True}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava_next_video": {
        **_COMMON,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    ONEVISION: {**_COMMON, "size": {"height": 384, "width": 384}, "do_center_crop": False},
}
_PIXELS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


@dataclass(frozen=True, slots=True)
class VideoLayout:
    """Counts the tokens of a video.

    Attributes:
        each: tokens of a frame.
        more: tokens behind the last frame.
    """

    each: int
    more: int = 0

    def tokens(self, frames: int) -> int:
        """Tokens of a video of which so many frames are looked at."""
        return frames * self.each + self.more


class VideoPixels:
    """A video on its way to the vision tower; decoded and preprocessed once, when first needed.

    Attributes:
        key: digest of all that its features depend on: content, frames, preprocessing, weights.
    """

    def __init__(self, key: str, clip: Clip, indices: list[int], processor: VideoProcessor) -> None:
        self.key = key
        self._clip = clip
        self._indices = indices
        self._processor = processor
        self._lock = threading.Lock()
        self._inputs: dict[str, Any] | None = None

    def inputs(self) -> dict[str, Any]:
        """``pixel_values_videos`` for ``get_video_features``, [frames, 3, height, width]."""
        import torch

        with self._lock:
            if self._inputs is None:
                frames = self._clip.frames(self._indices)
                made = torch.stack([self._processor.frame(one) for one in frames])
                self._inputs = {"pixel_values_videos": made}
            return self._inputs


class VideoProcessor:
    """Makes one frame what the vision tower reads.

    Args:
        path: the checkpoint's directory, for messages.
        settings: of the video processor's file, with defaults filled in.
        patches: height and width in patches that the tower takes.
        patch: pixels along one side of a patch.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], patches: tuple[int, int], patch: int
    ) -> None:
        known = {name: settings[name] for name in _PIXELS if settings.get(name) is not None}
        self.settings = {"do_center_crop": False, **known}  # null switches it off
        self._path = path
        self._patches = patches
        self._patch = patch
        self._hf: Any = None

    def frame(self, image: Any) -> torch.Tensor:
        """[3, height, width] of a PIL image.

        Raises:
            CheckpointError: the tower was not made for what the settings make of it.
        """
        if self._hf is None:
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

            self._hf = CLIPImageProcessorPil(**self.settings)
        made: torch.Tensor = self._hf(images=[image], return_tensors="pt")["pixel_values"][0]
        if tuple(length // self._patch for length in made.shape[-2:]) != self._patches:
            raise CheckpointError(
                f"The video processor in {self._path} makes frames of {made.shape[-1]}x"
                f"{made.shape[-2]} pixels, for which the vision tower was not made; copy the "
                f"{_FILES[0]} that belongs to the weights."
            )
        return made


@dataclass(frozen=True, slots=True)
class VideoPreprocessor:
    """Makes :class:`VideoPixels`, and counts their tokens.

    The same video in flight twice is decoded once.

    Attributes:
        processor: makes frames.
        sampling: which frames, where a video does not say it itself.
        layout: counts tokens.
        revision: identity of the weights; part of every key.
    """

    processor: VideoProcessor
    sampling: FrameSampling
    layout: VideoLayout
    revision: str
    _in_flight: weakref.WeakValueDictionary[str, VideoPixels] = field(
        default_factory=weakref.WeakValueDictionary, init=False, repr=False, compare=False
    )
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def of_weights(self, revision: str) -> VideoPreprocessor:
        """The same preprocessing for other weights."""
        return replace(self, revision=revision)

    def tokens(self, video: Video, length: Length) -> int:
        """Tokens of a video.

        Raises:
            VideoError: it asks for frames by the second, and its file does not say its rate.
        """
        return self.layout.tokens(len(self._indices(video, length)))

    def __call__(self, video: Video, clip: Clip) -> tuple[VideoPixels, int]:
        """The pixels of a video, not yet decoded, and how many tokens they become."""
        indices = self._indices(video, clip.length)
        settings = json.dumps([self.processor.settings, indices, self.revision], sort_keys=True)
        identity = hashlib.sha256(settings.encode()).hexdigest()
        key = f"video:{clip.digest}:{identity}"
        with self._lock:
            pixels = self._in_flight.get(key)
            if pixels is None:
                pixels = VideoPixels(key, clip, indices, self.processor)
                self._in_flight[key] = pixels
        return pixels, self.layout.tokens(len(indices))

    def _indices(self, video: Video, length: Length) -> list[int]:
        asked = video.num_frames is not None or video.fps is not None
        sampling = FrameSampling(video.num_frames, video.fps) if asked else self.sampling
        return sampling.indices(length)


def video_preprocessor(
    path: Path, config: Any, context_length: int, revision: str
) -> VideoPreprocessor | None:
    """What prepares videos for a checkpoint in HF format; None for a model that takes none.

    Args:
        path: the checkpoint's directory.
        config: its HF configuration.
        context_length: tokens that the model holds.
        revision: identity of the weights.

    Raises:
        CheckpointError: a file of settings is damaged.
    """
    if config.model_type not in VIDEO_TYPES:
        return None
    settings = {**_DEFAULTS[config.model_type], **_stored(path)}
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    layout = video_layout(config)
    processor = VideoProcessor(path, settings, (side, side), int(config.vision_config.patch_size))
    sampling = _sampling(path, settings, layout, context_length)
    return VideoPreprocessor(processor, sampling, layout, revision)


def video_layout(config: Any) -> VideoLayout:
    """The layout of a model that takes videos, from its HF configuration."""
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    if config.model_type == ONEVISION:  # halved by interpolation, and one newline behind it all
        return VideoLayout((-(-side // 2)) ** 2, 1)
    return VideoLayout((side // int(config.spatial_pool_stride)) ** 2)


def _stored(path: Path) -> dict[str, Any]:
    """The video processor's settings, from where transformers reads them."""
    nested = _read(path / _NESTED[0]).get(_NESTED[1])
    if isinstance(nested, dict):
        return nested
    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    return {} if found is None else _read(found)


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _sampling(
    path: Path, settings: dict[str, Any], layout: VideoLayout, context_length: int
) -> FrameSampling:
    frames, fps = settings.get("num_frames"), settings.get("fps")
    if frames is not None:  # transformers prefers the number, too
        return FrameSampling(frames=int(frames))
    if fps is not None:
        return FrameSampling(fps=float(fps))
    fitting = (context_length // _SHARE - layout.more) // layout.each
    return FrameSampling(frames=max(1, min(TRAINED_FRAMES, fitting)))
