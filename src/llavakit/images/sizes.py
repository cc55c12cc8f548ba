"""How large an image at an address is, from as few of its bytes as needed.

For counting tokens: the guard, the caps and the deadline are those of fetching it whole (see
:mod:`llavakit.sources.fetch`), and what was found is kept for a while, because programs count a
conversation anew at every turn.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from llavakit._forks import ForkLock
from llavakit.images.decode import decode, header_size
from llavakit.sources.fetch import fetch
from llavakit.sources.policy import SourcePolicy

Size = tuple[int, int]

KEPT_SECONDS = 300.0
"""After so long an address is asked again: another image may be there."""
_MOST = 1024
_FIRST = 4096
"""Bytes after which it is first tried, and again at every doubling."""

_known: OrderedDict[Any, tuple[float, Size]] = OrderedDict()
_lock = ForkLock()


def remote_size(url: str, policy: SourcePolicy) -> Size:
    """Width and height in pixels of the upright image at an http(s) URL.

    Raises:
        ImageError: it is not a usable image, as far as its beginning shows.
        SourceError: it cannot be reached, or the policy forbids it.
    """
    key = (url, policy)
    now = time.monotonic()
    with _lock:
        found = _known.get(key)
    if found is not None and now - found[0] < KEPT_SECONDS:
        return found[1]
    beginning = _Beginning(policy)
    data = fetch(url, policy, enough=beginning)
    size = beginning.size or decode(data, policy).size
    with _lock:
        _known[key] = (now, size)
        _known.move_to_end(key)
        while len(_known) > _MOST:
            _known.popitem(last=False)
    return size


class _Beginning:
    """Whether the bytes so far contain the size."""

    def __init__(self, policy: SourcePolicy) -> None:
        self.size: Size | None = None
        self._policy = policy
        self._next = _FIRST

    def __call__(self, data: bytearray) -> bool:
        if len(data) < self._next:
            return False
        self._next = 2 * len(data)
        self.size = header_size(bytes(data), self._policy)
        return self.size is not None
