"""What stands between Pillow and everything else: its errors become ours, sizes are checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llavakit.errors import ImageDecodeError, ImageTooLargeError, LlavaKitError
from llavakit.sources.policy import SourcePolicy


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """The border at which Pillow's errors, some ten types of them, become ours."""
    try:
        yield
    except LlavaKitError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError(
            "The image needs more memory than there is; shrink it or lower max_pixels.",
            public="The image needs more memory than there is; shrink it.",
        ) from error
    except Exception as error:
        from PIL import Image as PILImage

        bombs = (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning)
        if isinstance(error, bombs):
            raise ImageTooLargeError(
                f"The {what} has more pixels than Pillow allows; shrink it."
            ) from error
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageDecodeError(
            f"The {what} is truncated or damaged ({reason}); send the whole file."
        ) from error


def check_size(size: tuple[int, int], policy: SourcePolicy) -> None:
    """Refuses an image of ``size`` (width, height) that is empty or over the caps."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageDecodeError("The image has no pixels: its width or height is 0.")
    if width * height > policy.max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels, above the {policy.max_pixels:,} of "
            "SourcePolicy.max_pixels; shrink it or raise the cap.",
            public=f"The image has {width} x {height} pixels, more than the {policy.max_pixels:,} "
            "that are taken here; shrink it.",
        )
    if max(width, height) > policy.max_side:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels, a side above the "
            f"{policy.max_side:,} of SourcePolicy.max_side; cut it into pieces.",
            public=f"The image has {width} x {height} pixels, and a side of at most "
            f"{policy.max_side:,} is taken here; cut it into pieces.",
        )
