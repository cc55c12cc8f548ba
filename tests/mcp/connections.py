"""Clients of the SDK, connected to our server in memory, over HTTP and over stdio."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.memory import create_connected_server_and_client_session
from mcp.types import CallToolResult

import llavakit
from llavakit.mcp import HTTPSettings, MCPSettings, create_http_app, create_server
from llavakit.mcp.http import server_of
from llavakit.serving.runner import listen

SOURCE = str(Path(llavakit.__file__).parents[1])
_LLAVAKIT = "from llavakit.cli import main; main()"
DATA = Path("examples/data").absolute()


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert content.type == "text"
    return content.text


@asynccontextmanager
async def in_memory(settings: MCPSettings) -> AsyncIterator[ClientSession]:
    async with create_connected_server_and_client_session(create_server(settings)) as session:
        yield session


def command(*arguments: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-c", _LLAVAKIT, "mcp", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


@asynccontextmanager
async def over_stdio(*arguments: str) -> AsyncIterator[ClientSession]:
    async with (
        stdio_client(command(*arguments)) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


@contextmanager
def serving(settings: MCPSettings, http: HTTPSettings | None = None) -> Iterator[str]:
    """The address of a server in this process, on a thread of its own."""
    listener = listen("127.0.0.1", 0)
    server = server_of(create_http_app(create_server(settings), http))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@asynccontextmanager
async def over_http(url: str, key: str = "") -> AsyncIterator[ClientSession]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as client,
        streamable_http_client(url, http_client=client) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session
