"""What a forked child begins anew: locks that a thread of its parent may have held, and more."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable


def in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Run a function in every forked child, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


class ForkLock:
    """A lock that a forked child finds free, whichever thread of its parent held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        if self._lock.locked():  # else this thread forked within, and is the child
            self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()


@in_child
def _renew_locks() -> None:
    for lock in list(_locks):
        lock._renew()
