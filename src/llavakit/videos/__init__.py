"""Videos: their bytes, how many frames they have, and those that a model looks at.

Where bytes come from is :mod:`llavakit.sources`' concern, and what a model does with frames is
not known here. Decoding needs PyAV, the extra ``llavakit[video]``.
"""

from __future__ import annotations

from llavakit.videos.open import Clip, hold, length_of, open_clip
from llavakit.videos.sampling import FrameSampling, Length

__all__ = ["Clip", "FrameSampling", "Length", "hold", "length_of", "open_clip"]
