"""Who may come in: bearer keys, and the names under which a server on loopback is reached."""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from math import ceil

from starlette.requests import Request

from llavakit._guesses import WrongGuesses, network
from llavakit.serving.errors import Refusal

_PROVEN = 4096
"""Pairs of an address and a right key that are remembered."""


class Keys:
    """Keys of which only digests are kept; comparing takes as long for any key.

    A client that shows several wrong keys has to wait before it may show another one, longer after
    each (:class:`~llavakit._guesses.WrongGuesses`). Until then a right key is refused like a
    wrong one, unless the same address has shown it before: clients behind one address do not
    lock each other out of a connection that works.

    Args:
        keys: as clients send them; none lets every client in.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._guesses = WrongGuesses()
        self._proven: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, request: Request) -> None:
        """Refuse a request without a key of these.

        Raises:
            Refusal: 401, or 429 while the client has to wait.
        """
        if not self._digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        shown = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time does not depend on which one was near.
        known = sum([hmac.compare_digest(shown, digest) for digest in self._digests])
        if scheme.lower() != "bearer" or not key.strip():
            raise _wrong_key()  # not a guess
        address = request.client.host if request.client is not None else ""
        wait = self._guesses.wait(address)
        if known and (not wait or self._is_proven(address, shown)):
            self._prove(address, shown)
            return
        if not known and self._guesses.is_last(address, shown):
            raise _wrong_key()
        if wait:
            raise Refusal(
                429,
                f"Too many wrong API keys came from this address; try again in {ceil(wait)} s.",
                code="too_many_wrong_keys",
                headers={"Retry-After": str(ceil(wait))},
                unread=True,
            )
        self._guesses.wrong(address, shown)
        raise _wrong_key()

    def _is_proven(self, address: str, shown: bytes) -> bool:
        with self._lock:
            return (network(address), shown) in self._proven

    def _prove(self, address: str, shown: bytes) -> None:
        with self._lock:
            self._proven[network(address), shown] = None
            self._proven.move_to_end((network(address), shown))
            if len(self._proven) > _PROVEN:
                self._proven.popitem(last=False)


def _wrong_key() -> Refusal:
    return Refusal(
        401,
        "The API key is missing or wrong; send it as Authorization: Bearer KEY.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Bearer realm="llavakit"'},
        unread=True,
    )


def check_host(request: Request, allowed: Sequence[str]) -> None:
    """Refuse a request for another host name than the allowed ones.

    Raises:
        Refusal: 403.
    """
    if not allowed:
        return
    host = request.headers.get("host", "").strip().lower()
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name not in allowed:
        raise Refusal(
            403,
            f"This server answers to {', '.join(allowed)} only; call it by one of these names.",
            code="host_not_allowed",
            unread=True,
        )


def client_of(request: Request, *, by_key: bool) -> str:
    """Name whose request it is, so that clients take turns.

    Args:
        request: one that was let in.
        by_key: by its key, which was checked; else by its address.
    """
    if by_key:
        key = request.headers.get("authorization", "")
        return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return request.client.host if request.client is not None else ""
