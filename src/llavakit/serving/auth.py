"""Who may come in: bearer keys, and the names under which a server on loopback is reached."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.requests import Request

from llavakit.serving.errors import Refusal


class Keys:
    """Keys of which only digests are kept; comparing takes as long for any key.

    Args:
        keys: as clients send them; none lets everybody in.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def check(self, request: Request) -> None:
        """Refuses a request without a key of these.

        Raises:
            Refusal: 401.
        """
        if not self._digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        shown = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time does not reveal which one was near.
        known = sum([hmac.compare_digest(shown, digest) for digest in self._digests])
        if scheme.lower() != "bearer" or not known:
            raise Refusal(
                401,
                "The API key is missing or wrong; send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="llavakit"'},
                unread=True,
            )


def check_host(request: Request, allowed: Sequence[str]) -> None:
    """Refuses a request for another host name than the allowed ones.

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
