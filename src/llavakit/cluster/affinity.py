"""Which replica answers a request: the one that holds its beginning, else the least loaded.

Pure: names, keys and counts. A replica has computed the keys and values of the conversations that
it answered, and the features of their images; a request that begins like one of them costs less
there. Who decides sees all requests, so the counts are exact and nothing is guessed from hashes.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from typing import Any

REMEMBERED = 50_000
"""Beginnings that are remembered; the one that was not used for longest goes first."""
AHEAD = 8
"""A replica may have so many requests more than the idlest one before its beginnings are computed
again elsewhere: half of what the engine computes at once, so that it still has room."""


class Affinity:
    """Remembers which replica answered what, and how many requests each has under way.

    Args:
        remembered: most beginnings that are remembered.
        ahead: see :data:`AHEAD`.

    Attributes:
        living: the replicas that may be called, as far as it is known.
    """

    def __init__(self, remembered: int = REMEMBERED, ahead: int = AHEAD) -> None:
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._remembered = remembered
        self._ahead = ahead
        self._loads: Counter[str] = Counter()
        self.living: tuple[str, ...] = ()

    def ranked(
        self, replicas: Iterable[str], keys: Sequence[str] = (), avoid: Collection[str] = ()
    ) -> list[str]:
        """All replicas, the best one first.

        Args:
            replicas: those that live.
            keys: the request's beginnings, the longest first (see :func:`beginnings`).
            avoid: replicas that failed this request; they come last.
        """
        order = sorted(replicas, key=lambda one: (one in avoid, self._loads[one], one))
        home = self._home(order, keys)
        if home is not None and home not in avoid:
            least = min(self._loads[one] for one in order if one not in avoid)
            if self._loads[home] - least <= self._ahead:
                order.remove(home)
                order.insert(0, home)
        return order

    def took(self, replica: str, keys: Sequence[str] = ()) -> None:
        """A replica was given a request."""
        self._loads[replica] += 1
        for key in reversed(keys):
            self._homes[key] = replica
            self._homes.move_to_end(key)
        while len(self._homes) > self._remembered:
            self._homes.popitem(last=False)

    def finished(self, replica: str) -> None:
        """A request ended, however it did."""
        self._loads[replica] -= 1
        if self._loads[replica] <= 0:
            del self._loads[replica]

    def load(self, replica: str) -> int:
        """Requests under way at a replica."""
        return self._loads[replica]

    def __len__(self) -> int:
        return len(self._homes)

    def _home(self, replicas: Collection[str], keys: Sequence[str]) -> str | None:
        for key in keys:
            home = self._homes.get(key)
            if home in replicas:  # a replica that died took its beginnings with it
                return home
        return None


_of_clusters: dict[str, Affinity] = {}


def affinity_of(cluster: str) -> Affinity:
    """The one of a cluster, in this process."""
    return _of_clusters.setdefault(cluster, Affinity())


def beginnings(body: bytes) -> tuple[str, ...]:
    """The beginnings of a chat request by which it is known again, the longest first.

    One ends behind the first user message, which all turns of a conversation have in common. If
    that message has images, another one ends behind the first of them, which all questions about
    it have in common. Requests of the Responses API have the same, in their notation. What is
    neither has none; whether it is a valid one is not for here to say.
    """
    try:
        asked = json.loads(body)
        messages = asked["messages"] if "messages" in asked else _input(asked["input"])
        first = next(at for at, said in enumerate(messages) if said.get("role") == "user")
        before = {"tools": asked.get("tools"), "messages": messages[:first]}
        if asked.get("instructions"):
            before["instructions"] = asked["instructions"]
        whole = _key(before, messages[first]["content"])
        parts = messages[first]["content"]
        pictured = [at for at, part in enumerate(parts) if _is_picture(part)]
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return ()
    if not pictured:
        return (whole,)
    return whole, _key(before, parts[: pictured[0] + 1])


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image_url", "input_image")


def _input(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _key(before: Any, content: Any) -> str:
    text = json.dumps([before, content], sort_keys=True, ensure_ascii=True)
    return sha256(text.encode()).hexdigest()
