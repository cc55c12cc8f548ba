"""An agent with everything that keeps a conversation, made anew in each process.

``python -m tests.langchain.persistent_agent FOLDER STEP...``, see ``test_persistent_agent``.
"""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, SummarizationMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage, messages_from_dict, messages_to_dict
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from PIL import Image as PILImage

from llavakit.langchain import ChatLLaVA, plain_messages

PICTURE = Path(__file__).parents[2] / "examples" / "data" / "shapes.png"
CONFIG: Any = {"configurable": {"thread_id": "1"}}


@tool
def multiply(a: int, b: int) -> str:
    "Multiply two numbers"
    return str(a * b)


class History(BaseCallbackHandler):
    """Keeps what the model was asked as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(messages_to_dict(messages[0])) + "\n")


def agent_of(folder: Path) -> Any:
    model = ChatLLaVA(model="demo", temperature=0, callbacks=[History(folder / "history")])
    middleware = [
        SummarizationMiddleware(model=model, trigger=("messages", 9), keep=("messages", 2)),
        HumanInTheLoopMiddleware(interrupt_on={"multiply": True}),
    ]
    connection = sqlite3.connect(folder / "checkpoints", check_same_thread=False)
    saver = SqliteSaver(connection)
    return create_agent(model, [multiply], middleware=middleware, checkpointer=saver)


def asked(step: str) -> Any:
    if step == "look":
        image = {"type": "image", "image": PILImage.open(PICTURE)}
        question = {"type": "text", "text": "What colour is the circle?"}
        return {"messages": plain_messages([HumanMessage([image, question])])}
    if step == "interrupt":
        return {"messages": [HumanMessage("Multiply 6 and 7.")]}
    if step == "approve":
        return Command(resume={"decisions": [{"type": "approve"}]})
    return {"messages": [HumanMessage("What color is the square?")]}


def told(folder: Path, step: str) -> dict[str, Any]:
    """What a step says: its answer, and the base64 of all images that are kept."""
    agent = agent_of(folder)
    state = agent.invoke(asked(step), CONFIG)
    kept = agent.get_state(CONFIG).values["messages"]
    lines = (folder / "history").read_text().splitlines()
    recorded = messages_from_dict(json.loads(lines[-1]))
    return {
        "answer": state["messages"][-1].text,
        "interrupted": "__interrupt__" in state,
        "kept": [images for message in kept for images in _images(message)],
        "recorded": [images for message in recorded for images in _images(message)],
        "messages": len(kept),
    }


def _images(message: Any) -> list[str]:
    if isinstance(message.content, str):
        return []
    return [
        block.get("base64") or block["image_url"]["url"].partition(",")[2]
        for block in message.content
        if block["type"] in ("image", "image_url")
    ]


if __name__ == "__main__":
    print(json.dumps([told(Path(sys.argv[1]), step) for step in sys.argv[2:]]))
