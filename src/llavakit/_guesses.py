"""Count wrong keys and passwords of each client, and make the next guess wait."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 5
"""Wrong guesses that cost nothing: people mistype."""
LONGEST = 60.0
"""Most seconds that a client has to wait for its next guess."""
FORGOTTEN = 900.0
"""Seconds after the last wrong guess in which a client's count is forgotten."""
_CLIENTS = 4096


@dataclass(slots=True)
class _Client:
    count: int = 0
    since: float = 0.0
    last: bytes = b""


class WrongGuesses:
    """Wrong guesses by client. After :data:`FREE` of them, each doubles the wait for the next.

    A right guess does not reset the count: behind one address there may be others, and one who
    has a key could go on guessing for another. Thread-safe; remembers a bounded number of clients.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._clients)

    def wait(self, address: str) -> float:
        """Return the seconds until a client may guess again; 0.0 if it may now."""
        with self._lock:
            client = self._clients.get(network(address))
            if client is None or client.count <= FREE:
                return 0.0
            passed = self._clock() - client.since
            # Bounded before it is raised to a power: a count may become large.
            seconds = min(LONGEST, 2.0 ** min(client.count - FREE - 1, 30))
            return 0.0 if passed >= FORGOTTEN else max(0.0, seconds - passed)

    def wrong(self, address: str, guess: bytes = b"") -> None:
        """Count a wrong guess.

        Args:
            address: of the client.
            guess: a digest of it. The same one again is not counted, so that a program with an
                old key is not taken for one that tries many; b"" is always counted.
        """
        now, name = self._clock(), network(address)
        with self._lock:
            client = self._clients.pop(name, None)
            if client is None or now - client.since >= FORGOTTEN:
                client = _Client()
            self._clients[name] = client  # the latest one last
            if not guess or guess != client.last:
                client.count += 1
                client.since, client.last = now, guess
            if len(self._clients) > _CLIENTS:
                self._clients.popitem(last=False)

    def is_last(self, address: str, guess: bytes) -> bool:
        """Whether a client's latest wrong guess was the same."""
        with self._lock:
            client = self._clients.get(network(address))
            return client is not None and bool(guess) and client.last == guess

    def undo(self, address: str) -> None:
        """Take back one guess that was counted before it was judged, and was right."""
        with self._lock:
            client = self._clients.get(network(address))
            if client is not None and client.count:
                client.count -= 1


def network(address: str) -> str:
    """Return what a client can hardly change: its IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
