"""A client of `llavakit mcp`: starts the server, lists its tools, asks, reads, extracts."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent

DATA = Path(__file__).parent / "data"

# What a desktop client has in its configuration: a command and its arguments. The server may open
# the two files, and no others.
SERVER = StdioServerParameters(
    command=sys.executable,
    args=[
        *("-m", "llavakit.cli", "mcp", "demo"),
        *("--image", f"shapes={DATA / 'shapes.png'}", "--image", f"scan={DATA / 'pages.pdf'}"),
    ],
    env=dict(os.environ),
)
INVOICE = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "total": {"type": "integer"}},
    "required": ["title", "total"],
}


def text_of(result: CallToolResult) -> str:
    """Return what the model of an agent would read."""
    return "\n".join(one.text for one in result.content if isinstance(one, TextContent))


async def progress(done: float, total: float | None, page: str | None) -> None:
    """Print how far a reading is."""
    print(f"  {done:.0f} of {total:.0f}: {page}")


async def main() -> None:
    """Ask the server."""
    async with (
        stdio_client(SERVER) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        print("tools:", ", ".join(tool.name for tool in (await session.list_tools()).tools))
        print("images:", text_of(await session.call_tool("list_images")).replace("\n", ", "))

        question = {"question": "What color is the square?", "image": "shapes"}
        print("asked:", text_of(await session.call_tool("ask_image", question)))

        pages = await session.call_tool(
            "read_page", {"image": "scan", "pages": "1-2"}, progress_callback=progress
        )
        print("read:", text_of(pages))

        wanted = {"image": "scan", "pages": "2", "json_schema": INVOICE}
        found = await session.call_tool("extract", wanted)
        for page in (found.structuredContent or {})["pages"]:
            print("extracted:", page["data"], "from", page["citation"]["image"])

        # What may not be opened is an error of the call, in one sentence.
        refused = await session.call_tool(
            "ask_image", {"question": "What is this?", "image": "/etc/passwd"}
        )
        print("refused:", refused.isError, text_of(refused))


asyncio.run(main())
