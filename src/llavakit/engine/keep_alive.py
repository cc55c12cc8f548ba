"""How long an idle model stays in memory: Ollama's notation, and the longest wish of all users."""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

from llavakit._checks import check_number, refused

FOREVER = math.inf
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_PART = r"(?:\d+(?:\.\d*)?|\.\d+)"
_DURATION = re.compile(rf"([+-]?)((?:{_PART}(?:h|ms|m|s))+|{_PART})")
_AMOUNT = re.compile(rf"({_PART})(h|ms|m|s)?")


def seconds_of(value: Any) -> float:
    """Return the seconds of a ``keep_alive``; a negative number, and None, is for ever.

    The notation is Ollama's: a number of seconds, or a duration such as ``"5m"`` or ``"1h30m"``
    (in h, m, s and ms); a string of digits is a number of seconds.

    Raises:
        ParameterError: neither a number nor such a duration.
    """
    if value is None:
        return FOREVER
    seconds = _of_text(value) if isinstance(value, str) else check_number("keep_alive", value)
    return FOREVER if seconds < 0 else float(seconds)


def _of_text(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise refused("keep_alive", text, 'seconds, a duration such as "5m" or "1h30m", or -1')
    sign, amounts = found.groups()
    seconds = sum(float(n) * _UNITS[unit or "s"] for n, unit in _AMOUNT.findall(amounts))
    return -seconds if sign == "-" else seconds


class Stay:
    """A wish that a model stays for so long when it is idle; it holds while the object lives."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Stays:
    """All wishes for one model, of which the longest counts.

    Args:
        changed: called when a wish is added or dropped; on any thread, even during a garbage
            collection, so that it must not take a lock.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._stays: weakref.WeakSet[Stay] = weakref.WeakSet()
        self._lock = threading.Lock()  # a set must not grow while it is iterated

    def add(self, seconds: float) -> Stay:
        """Add a wish, which holds as long as the caller keeps it."""
        stay = Stay(seconds)
        with self._lock:
            self._stays.add(stay)
        weakref.finalize(stay, self._changed).atexit = False
        self._changed()
        return stay

    @property
    def longest(self) -> float:
        """The longest wish in seconds; without any, for ever."""
        with self._lock:
            return max((stay.seconds for stay in self._stays), default=FOREVER)
