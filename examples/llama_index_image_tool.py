"""An agent whose model asks another one about images that it knows by name."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent

from llavakit.llama_index import ImageQuestionTool, LLaVA

DATA = Path(__file__).parent / "data"

# The tool is the model that sees. Files below `roots` may be named by their path; no addresses.
look = ImageQuestionTool(
    model="demo",
    attachments={"page_3": DATA / "invoice.png", "scan_7": DATA / "shapes.png"},
    roots=[DATA],
)
# The agent's model may be any that calls tools, also one that sees nothing.
agent = FunctionAgent(tools=[look], llm=LLaVA(model="demo", temperature=0, max_tokens=60))


async def main() -> None:
    """Ask the agent, then the tool itself."""
    for asked in (
        "What is the title? The picture is page_3.",
        "What colour is the square? The picture is scan_7.",
    ):
        result = await agent.run(user_msg=asked)
        for call in result.tool_calls:
            print(f"  called: {call.tool_name}({call.tool_kwargs}) = {call.tool_output.content}")
        print(f"answer: {result}")
    for image in ("heart.png", "pages.pdf#page=2", "../../pyproject.toml"):
        output = await look.acall(question="What is this?", image=image)
        print(f"{image}: {output.content}")


asyncio.run(main())
