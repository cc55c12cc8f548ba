"""The threads on which what is named is opened and drawn, for callers with an event loop.

Addresses have threads of their own: a host may take all the seconds of the policy's timeout, and
images that are here do not wait behind it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llavakit._threads import off_loop
from llavakit.sources.read import is_address

T = TypeVar("T")

_FETCHING = "llavakit-fetch"
_DRAWING = "llavakit-pages"
_SIZES = {_DRAWING: 8, _FETCHING: 16}
_pools: dict[str, ThreadPoolExecutor] = {}


def opening_pool(names: Sequence[str] = ()) -> ThreadPoolExecutor:
    """Return the threads on which documents of these names are opened and drawn."""
    return _pool(_FETCHING if _any_address(names) else _DRAWING)


async def find_off_loop(names: Sequence[str], find: Callable[[], T]) -> T:
    """Return what ``find`` finds, off the event loop; a thread goes on to its end if cancelled.

    Args:
        names: the names that are looked for.
        find: opens them, and closes what it opened.
    """
    if _any_address(names):
        return await off_loop(_pool(_FETCHING), find, lambda _: None)
    return await asyncio.to_thread(find)


def _any_address(names: Sequence[str]) -> bool:
    return any(is_address(name.lstrip(" \t\r\n\"'`")) for name in names)


def _pool(name: str) -> ThreadPoolExecutor:
    # A pool has no threads before it has work, so that one too many costs nothing.
    return _pools.get(name) or _pools.setdefault(name, ThreadPoolExecutor(_SIZES[name], name))


if hasattr(os, "register_at_fork"):
    # A forked child inherits the pools but not their threads.
    os.register_at_fork(after_in_child=_pools.clear)
