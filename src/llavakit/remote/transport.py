"""Requests over HTTP: the key, the attempts, and the errors of the network.

Another attempt is made only where nothing was received: no connection, or 429 and 5xx
instead of an answer. Redirects are not followed, because the key would go with them. Proxies
and certificates of the environment are used, as by httpx and everybody's client, except for
this machine itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from llavakit.errors import LlavaKitError, RemoteError, RequestTimeoutError
from llavakit.remote.address import RemoteConfig, is_loopback
from llavakit.remote.failures import MAX_BODY, refusal, retry_after
from llavakit.remote.http_client import async_client

CONNECT = 10.0
"""Seconds for a connection."""
SILENCE = 600.0
"""Seconds without a byte after which a server counts as gone."""
LONGEST_PAUSE = 60.0
"""Seconds that a server may ask to wait; if it asks for more, its refusal is final."""
_FIRST_PAUSE, _MOST_PAUSE = 0.5, 8.0
_MAX_JSON = 4 << 20
_TIMEOUT = httpx.Timeout(SILENCE, connect=CONNECT, pool=None)


class Transport:
    """The connections to one server. All but the constructor runs on the background loop.

    Args:
        config: which server.

    Attributes:
        retries: further attempts that were made.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.retries = 0
        # Here and not on the loop: reading the certificates takes a tenth of a second.
        self._client = _client(config)
        self._headers = _headers(config)

    async def close(self) -> None:
        """Close all connections, unless they are a program's own."""
        if self._client is not self.config.http.client:
            await self._client.aclose()

    async def json(self, method: str, path: str, body: Any = None, *, patient: bool = True) -> Any:
        """A small answer, parsed.

        Args:
            method: of HTTP.
            path: behind the server's address.
            body: sent as JSON, if given.
            patient: whether another attempt is worth it after a 5xx.

        Raises:
            LlavaKitError: refused, unreachable, or no JSON.
        """
        content = None if body is None else json.dumps(body).encode()
        async with self.opened(method, path, content, patient=patient) as response:
            text = await read(response, _MAX_JSON)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RemoteError(
                f"The server at {self.config.address} answered {path} with what is no JSON; is "
                "base_url right?"
            ) from error

    @asynccontextmanager
    async def opened(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        *,
        fields: Mapping[str, Any] | None = None,
        patient: bool = True,
    ) -> AsyncIterator[httpx.Response]:
        """A response of status 200 whose body is still to come; leaving closes it.

        Args:
            method: of HTTP.
            path: behind the server's address.
            content: JSON.
            fields: of a chat completion, for its errors.
            patient: whether another attempt is worth it after a 5xx.

        Raises:
            LlavaKitError: all attempts failed; the last one's reason.
        """
        response = await self._open(method, path, content, fields, patient)
        try:
            yield response
        finally:
            await response.aclose()

    async def _open(
        self,
        method: str,
        path: str,
        content: bytes | None,
        fields: Mapping[str, Any] | None,
        patient: bool,
    ) -> httpx.Response:
        for attempt in itertools.count():
            pause = None
            try:
                response = await self._send(method, path, content)
            except httpx.ReadTimeout:
                raise self.silent() from None
            except (httpx.TransportError, httpx.InvalidURL) as error:
                failure: LlavaKitError = self._unreachable(error)
                again = True
            else:
                status = response.status_code
                if status == 200:
                    return response
                failure = await self._refused(response, fields)
                again = status in (429, 503) or (patient and status >= 500 and status != 501)
                pause = retry_after(response.headers)
            if not again or attempt >= self.config.max_retries:
                raise failure
            if pause is not None and pause > LONGEST_PAUSE:
                raise failure
            self.retries += 1
            await asyncio.sleep(_backoff(attempt) if pause is None else pause)
        raise AssertionError("unreachable")

    async def _send(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        own = "timeout" in self.config.http.arguments
        request = self._client.build_request(
            method,
            self.config.address + path,
            content=content,
            headers=self._headers,
            timeout=httpx.USE_CLIENT_DEFAULT if own else _TIMEOUT,
        )
        # A redirect would take the key and the images along.
        return await self._client.send(request, stream=True, follow_redirects=False)

    async def _refused(
        self, response: httpx.Response, fields: Mapping[str, Any] | None
    ) -> LlavaKitError:
        try:
            body = await read(response, MAX_BODY)
        except (httpx.HTTPError, LlavaKitError):
            body = ""  # the status says enough
        finally:
            await response.aclose()
        return refusal(response.status_code, body, self.config, fields=fields)

    def silent(self) -> RequestTimeoutError:
        """The error for a server that accepts and says nothing."""
        return RequestTimeoutError(
            f"The server at {self.config.address} sent nothing for {SILENCE:.0f} seconds; the "
            "request was given up."
        )

    def _unreachable(self, error: Exception) -> RemoteError:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return RemoteError(
            f"No connection to the server at {self.config.address} ({reason}); is it running, "
            "and is base_url right?"
        )


def _headers(config: RemoteConfig) -> dict[str, str]:
    from llavakit import __version__

    headers = {
        "User-Agent": f"llavakit/{__version__}",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
    }
    if config.api_key:
        headers["Authorization"] = f"Bearer {config.api_key}"
    return headers | dict(config.http.headers)


def _client(config: RemoteConfig) -> httpx.AsyncClient:
    return async_client(
        config.http,
        timeout=_TIMEOUT,
        # Servers drop idle connections after five seconds; ours are dropped before.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=3),
        follow_redirects=False,
        trust_env=not is_loopback(config.address),
    )


async def read(response: httpx.Response, most: int) -> str:
    """The body as text.

    Raises:
        RemoteError: more than ``most`` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise RemoteError(f"The server's answer has more than {most:,} bytes.")
    return b"".join(pieces).decode("utf-8", "replace")


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: doubling, with jitter, so that clients spread."""
    ceiling = min(_MOST_PAUSE, _FIRST_PAUSE * 2.0**attempt)
    return ceiling * random.uniform(0.5, 1.0)
