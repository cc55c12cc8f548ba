"""An agent whose model asks another one about images: of a message, a file, a PDF's page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import HumanMessage

from llavakit.langchain import ChatLLaVA, ImageQuestionTool, name_images

DATA = Path(__file__).parent / "data"

# The tool is the model that sees. Files below `roots` may be named by their path; no addresses.
look = ImageQuestionTool(model="demo", attachments={"page_3": DATA / "invoice.png"}, roots=[DATA])


# The agent's model may be any that calls tools, also one that sees nothing: it gets the names of
# the images (image_1, image_2, ...) and asks about them.
@wrap_model_call
def by_name(
    request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
) -> ModelResponse:
    """Give the agent's model the names of the images in their place."""
    return handler(request.override(messages=name_images(request.messages)))


agent = create_agent(
    ChatLLaVA(model="demo", temperature=0, max_tokens=60), [look], middleware=[by_name]
)

picture = {"type": "image", "path": str(DATA / "shapes.png")}
for content in (
    [picture, "What colour is the square? The picture is image_1."],
    ["What is the title? The picture is page_3."],
):
    for message in agent.invoke({"messages": [HumanMessage(content)]})["messages"][1:]:
        calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
        print(f"{message.type:>5}: {message.text}{', '.join(calls)}")

# Without an agent: a file, a page of a PDF, and what is refused.
for image in ("heart.png", "pages.pdf#page=2", "../../pyproject.toml", "http://127.0.0.1/x.png"):
    print(f"{image}: {look.invoke({'question': 'What is this?', 'image': image})}")
