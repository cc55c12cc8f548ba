"""The server over stdin and stdout, for the program that started it.

Only the protocol is written to stdout (see :mod:`llavakit.mcp.stdout`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from llavakit._checks import checked

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@checked
def serve_stdio(
    server: Server, out: TextIOWrapper, ended: Callable[[], None] = lambda: None
) -> None:
    """Answer the client at stdin until it closes it.

    Args:
        server: made by :func:`~llavakit.mcp.create_server`.
        out: where the protocol is written (see :func:`~llavakit.mcp.stdout.claimed_stdout`).
        ended: called in the end, also before a signal ends the process.

    SIGINT and SIGTERM end the process at once: a thread that reads stdin cannot be woken.
    """
    try:
        asyncio.run(_serve(server, out, ended))
    finally:
        ended()


async def _serve(server: Server[Any], out: TextIOWrapper, ended: Callable[[], None]) -> None:
    _end_by_signals(ended)
    source = TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")
    async with stdio_server(anyio.wrap_file(source), anyio.wrap_file(out)) as (read, write):
        await server.run(read, write, server.create_initialization_options())


def _end_by_signals(ended: Callable[[], None]) -> None:
    def end(number: int) -> None:
        ended()
        os._exit(128 + number)

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        try:
            loop.add_signal_handler(number, end, number)
        except NotImplementedError:  # Windows: Ctrl-C interrupts by itself
            return
