"""The HTTP client of a program, for requests that are made on our background loop.

Programs give one for their proxy, their certificates or their headers. One of httpx's two kinds
is used as it is; the other, whose calls block, is called on threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from llavakit.errors import ParameterError


@dataclass(frozen=True, eq=False)
class ClientSettings:
    """What a program says of the connections to a server.

    Attributes:
        headers: further headers of every request.
        client: its own client, which is never closed by us.
        arguments: of ``httpx.AsyncClient``, where we make it.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    client: httpx.Client | httpx.AsyncClient | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.headers.items():
            if not (isinstance(name, str) and isinstance(value, str) and _fits(name + value)):
                raise ParameterError(
                    f"default_headers holds {str(name)[:60]!r}, which no HTTP header can say; "
                    "names and values are ASCII strings without line breaks."
                )
        if not isinstance(self.client, (httpx.Client, httpx.AsyncClient, type(None))):
            raise ParameterError(
                f"http_client is of type {type(self.client).__name__}; give an httpx.Client or an "
                "httpx.AsyncClient."
            )
        if self.client is not None and self.arguments:
            raise ParameterError("client_kwargs are for a client that is made; give http_client.")
        if self.arguments:
            try:
                httpx.AsyncClient(**self.arguments)
            except (TypeError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())[:160]
                raise ParameterError(f"client_kwargs make no httpx client: {reason}.") from error

    def _values(self) -> tuple[Any, ...]:
        return dict(self.headers), self.client, dict(self.arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientSettings) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((*sorted(self.headers), *sorted(self.arguments), id(self.client)))


def async_client(settings: ClientSettings, **defaults: Any) -> httpx.AsyncClient:
    """The client that requests go through.

    Args:
        settings: the program's.
        **defaults: of ``httpx.AsyncClient``, where it is ours.
    """
    if isinstance(settings.client, httpx.AsyncClient):
        return settings.client
    if isinstance(settings.client, httpx.Client):
        return httpx.AsyncClient(transport=_OnThreads(settings.client))
    return httpx.AsyncClient(**defaults | dict(settings.arguments))


class _OnThreads(httpx.AsyncBaseTransport):
    """Sends by a client whose calls block."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # The program's client adds its own headers; what we say wins over them.
        sent = self._client.build_request(
            request.method,
            request.url,
            headers=request.headers,
            content=await request.aread(),
            extensions=request.extensions,
        )
        response = await asyncio.to_thread(
            self._client.send, sent, stream=True, follow_redirects=False
        )
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_ReadOnThreads(response),
            extensions={
                name: value
                for name, value in response.extensions.items()
                if name != "network_stream"
            },
        )


class _ReadOnThreads(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._response.iter_raw()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def aclose(self) -> None:
        await asyncio.to_thread(self._response.close)


def _fits(text: str) -> bool:
    return text.isascii() and text.isprintable()
