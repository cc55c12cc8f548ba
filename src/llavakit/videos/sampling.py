"""Which frames of a video are looked at, as transformers' video processors choose them."""

from __future__ import annotations

from dataclasses import dataclass

from llavakit._checks import check_integer, check_number
from llavakit.errors import ParameterError, VideoError


@dataclass(frozen=True, slots=True)
class Length:
    """How long a video is.

    Attributes:
        frames: how many frames it shows.
        rate: frames of each second, or None where its file does not say it.
    """

    frames: int
    rate: float | None


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """A number of frames spread over the whole video, or so many of each second.

    It is ``default_sample_indices_fn`` of transformers (``transformers/video_utils.py``), with
    one difference: of a video with fewer frames than asked for, all are taken, where transformers
    raises.

    Attributes:
        frames: how many frames; None leaves it to ``fps``, and without that takes all.
        fps: frames of each second, where no number is set.
    """

    frames: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.fps is not None:
            raise ParameterError("A video takes num_frames or fps, not both; leave one out.")
        if self.frames is not None:
            check_integer("num_frames", self.frames, least=1)
        if self.fps is not None:
            check_number("fps", self.fps, above=0)

    def indices(self, length: Length) -> list[int]:
        """Return the indices of the frames of a video of this length, ascending.

        Raises:
            VideoError: ``fps`` is set, and the file does not say its rate.
        """
        total, count = length.frames, self.frames
        if count is None and self.fps is not None:
            if not length.rate:
                raise VideoError(
                    "The video does not say how many frames a second it has; give num_frames "
                    "instead of fps."
                )
            count = max(1, int(total / length.rate * self.fps))
        count = total if count is None else min(count, total)
        return [number * total // count for number in range(count)]
