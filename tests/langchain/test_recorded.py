"""What leaves the process keeps its images: callbacks, histories, events, checkpoints."""

import base64
import io
import json
import warnings

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from PIL import Image as PILImage

from llavakit.errors import UnsupportedContentError
from llavakit.images import open_picture
from llavakit.langchain import ChatLLaVA, plain_messages
from llavakit.testing import FakeBackend


def seen(request):
    """The pixels that the model was shown last, by their digest."""
    pictures = [image for message in request.messages for image in message.images]
    return open_picture(pictures[-1].source).digest if pictures else "nothing"


@pytest.fixture
def model():
    return ChatLLaVA(backend=FakeBackend(seen))


class Recorder(BaseCallbackHandler):
    def __init__(self):
        self.kept = []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.kept.append(json.dumps(messages_to_dict(messages[0])))


class JsonHistory(BaseChatMessageHistory):
    """As SQL, Redis, Mongo and file stores keep messages."""

    text = "[]"

    @property
    def messages(self):
        return messages_from_dict(json.loads(self.text))

    def add_messages(self, new):
        self.text = json.dumps(messages_to_dict([*self.messages, *new]))

    def clear(self):
        self.text = "[]"


def notations(pil, png, b64, path):
    uri = "data:image/png;base64," + b64
    return {
        "base64": {"type": "image", "base64": b64, "mime_type": "image/png"},
        "base64 of no said type": {"type": "image", "base64": b64},
        "v0": {"type": "image", "source_type": "base64", "data": b64, "mime_type": "image/png"},
        "v0 of no said type": {"type": "image", "source_type": "base64", "data": b64},
        "data URI": {"type": "image", "url": uri},
        "data URI in base64": {"type": "image", "base64": uri},
        "OpenAI": {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
        "OpenAI's string": {"type": "image_url", "image_url": uri},
        "Responses": {"type": "input_image", "image_url": uri},
        "Anthropic": {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": b64},
        },
        "Google": {"type": "media", "mime_type": "image/png", "data": b64},
        "Bedrock": {"image": {"format": "png", "source": {"bytes": png}}},
        "a path": {"type": "image", "path": str(path)},
        "a Path": {"type": "image", "path": path},
        "PIL": {"type": "image", "image": pil},
        "an array": {"type": "image", "image": np.asarray(pil)},
        "bytes": {"type": "image", "base64": png},
        "an open file": {"type": "image", "image": io.BytesIO(png)},
        "a file": {"type": "file", "base64": b64, "mime_type": "image/png"},
        "non-standard": {"type": "non_standard", "value": {"type": "image", "image": pil}},
        "a tool's result": {
            "type": "tool_result",
            "tool_use_id": "c1",
            "content": [{"type": "image", "image": pil}],
        },
    }


NAMES = sorted(notations(PILImage.new("RGB", (1, 1)), b"", "", "x"))


def conversation(block):
    """A message of the block; a tool's result behind its call."""
    question = HumanMessage([block, {"type": "text", "text": "What is it?"}])
    if block.get("type") != "tool_result":
        return [question]
    called = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1"}])
    return [HumanMessage("Look."), called, question]


@pytest.fixture
def block(request, pil, png, b64, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    return notations(pil, png, b64, path)[request.param]


@pytest.mark.parametrize("block", NAMES, indirect=True)
@pytest.mark.parametrize("way", ["invoke", "stream", "generate", "ainvoke", "astream", "agenerate"])
async def test_what_callbacks_recorded_can_be_asked_again(model, block, way, digest):
    recorder = Recorder()
    config = {"callbacks": [recorder]}
    asked = conversation(block)
    if way == "invoke":
        model.invoke(asked, config)
    elif way == "stream":
        list(model.stream(asked, config))
    elif way == "generate":
        model.generate([asked], callbacks=[recorder])
    elif way == "ainvoke":
        await model.ainvoke(asked, config)
    elif way == "astream":
        [chunk async for chunk in model.astream(asked, config)]
    else:
        await model.agenerate([asked], callbacks=[recorder])
    (kept,) = recorder.kept
    assert model.invoke(messages_from_dict(json.loads(kept))).text == digest


@pytest.mark.parametrize("block", NAMES, indirect=True)
def test_a_history_of_json_keeps_the_image_for_the_next_question(model, block, digest):
    history = JsonHistory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain would rather have checkpointers
        chat = RunnableWithMessageHistory(model, lambda _: history)
    config = {"configurable": {"session_id": "s"}}
    chat.invoke(conversation(block), config)
    assert chat.invoke([HumanMessage("And now?")], config).text == digest


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_events_of_a_chain_hold_the_image(model, pil, digest):
    chain = RunnableLambda(lambda _: conversation({"type": "image", "image": pil})) | model
    events = [event async for event in chain.astream_events("", version="v2")]
    (start,) = [event for event in events if event["event"] == "on_chat_model_start"]
    given = start["data"]["input"]["messages"][0]
    json.dumps(messages_to_dict(given))
    assert model.invoke(given).text == digest


@pytest.mark.parametrize("block", NAMES, indirect=True)
def test_plain_messages_are_json_and_show_the_same(model, block, digest):
    made = plain_messages(conversation(block))
    text = json.dumps(messages_to_dict(made))
    assert model.invoke(messages_from_dict(json.loads(text))).text == digest


def test_plain_messages_change_nothing_that_is_plain(b64):
    plain = [
        HumanMessage("hi"),
        HumanMessage([{"type": "image", "url": "https://example.com/a.png"}, "text"]),
        HumanMessage([{"type": "image", "base64": b64, "mime_type": "image/png"}]),
        ToolMessage("42", tool_call_id="c1", artifact={"rows": [1]}),
    ]
    made = plain_messages(plain)
    assert all(new is old for new, old in zip(made, plain, strict=True))


def test_what_a_block_says_beside_its_image_is_kept(pil):
    given = {"type": "image", "image": pil, "id": "b1", "cache_control": {"type": "ephemeral"}}
    (block,) = plain_messages([HumanMessage([given])])[0].content
    assert block["id"] == "b1" and block["cache_control"] == {"type": "ephemeral"}
    assert given["image"] is pil


def test_a_pdf_stays_a_document(model):
    from pathlib import Path

    data = Path("examples/data/pages.pdf").read_bytes()
    (block,) = plain_messages([HumanMessage([{"type": "file", "base64": data}])])[0].content
    assert block["type"] == "file" and block["mime_type"] == "application/pdf"
    assert base64.b64decode(block["base64"]) == data
    recorder = Recorder()
    first = model.invoke([HumanMessage([block])], {"callbacks": [recorder]}).text
    assert model.invoke(messages_from_dict(json.loads(recorder.kept[0]))).text == first


def test_an_image_without_a_source_is_still_refused(model):
    with pytest.raises(UnsupportedContentError, match="no source"):
        model.invoke([HumanMessage([{"type": "image"}])])


def test_the_model_is_shown_the_object_and_not_its_encoding(pil):
    """An image that came as an object is not decoded from the base64 that was made of it."""
    backend = FakeBackend(seen)
    list(ChatLLaVA(backend=backend).stream([HumanMessage([{"type": "image", "image": pil}])]))
    (image,) = backend.requests[0].messages[0].images
    assert image.source == open_picture(pil) and not isinstance(image.source, (str, bytes))
