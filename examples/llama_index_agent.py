"""An agent with two tools, which also sees the image of a message."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage

from llavakit.llama_index import LLaVA


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Paris": "sunny", "London": "rainy"}.get(city, "unknown")


# Calls are constrained by the tools' schemas: a call that does not fit cannot happen.
agent = FunctionAgent(tools=[multiply, get_weather], llm=LLaVA(model="demo", temperature=0))

SHAPES = Path(__file__).parent / "data" / "shapes.png"
LOOK = ChatMessage(
    role="user",
    blocks=[ImageBlock(path=SHAPES), TextBlock(text="What colour is the square?")],
)


async def main() -> None:
    """Ask three things, one after the other."""
    for asked in ("Multiply 6 and 7.", "What is the weather in London?", LOOK):
        output = await agent.run(user_msg=asked)
        for call in output.tool_calls:
            print(f"  called: {call.tool_name}({call.tool_kwargs})")
        print(f"answer: {output}")


asyncio.run(main())
