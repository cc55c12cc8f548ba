"""Where bytes may come from, and how they are read.

Every byte that llavakit did not get in memory passes through :func:`read_file` or
:func:`fetch_url`, and both obey a :class:`SourcePolicy`. What the bytes mean is not this
package's concern: :mod:`llavakit.images` decodes images, :mod:`llavakit.documents` pages.
"""

from __future__ import annotations

from llavakit.sources.policy import DEFAULT_POLICY, SourcePolicy
from llavakit.sources.read import (
    fetch_url,
    is_address,
    read_file,
    read_file_object,
    read_source,
)

__all__ = [
    "DEFAULT_POLICY",
    "SourcePolicy",
    "fetch_url",
    "is_address",
    "read_file",
    "read_file_object",
    "read_source",
]
