"""Every notation of an image reaches the backend as the same pixels."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import create_image_block
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.prompts.image import ImagePromptTemplate

from llavakit.errors import (
    ImageDecodeError,
    MessageError,
    SourceNotAllowedError,
    UnsupportedContentError,
    UnsupportedImageError,
)
from llavakit.images import open_picture
from llavakit.langchain import ChatLLaVA
from llavakit.langchain.messages import to_messages
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from llavakit.values import Image, Text

CARRIERS = {
    "openai image_url data URI": lambda c: image_url({"url": c.uri, "detail": "high"}),
    "openai image_url string": lambda c: image_url(c.uri),
    "openai image_url without media type": lambda c: image_url({"url": "data:;base64," + c.b64}),
    "openai image_url wrong media type": lambda c: image_url(
        {"url": "data:image/jpeg;base64," + c.b64}
    ),
    "openai image_url bare base64": lambda c: image_url({"url": c.b64}),
    "openai image_url without type": lambda c: {"image_url": {"url": c.uri}},
    "openai input_image": lambda c: {"type": "input_image", "image_url": c.uri},
    "openai file": lambda c: {"type": "file", "file": {"file_data": c.uri, "filename": "a.png"}},
    "openai input_file": lambda c: {"type": "input_file", "file_data": c.uri},
    "v0 base64": lambda c: image(source_type="base64", data=c.b64, mime_type="image/png"),
    "v0 base64 without mime_type": lambda c: image(source_type="base64", data=c.b64),
    "v0 url": lambda c: image(source_type="url", url=c.uri),
    "v0 file": lambda c: file(source_type="base64", data=c.b64, mime_type="image/png"),
    "v1 base64": lambda c: image(base64=c.b64, mime_type="image/png"),
    "v1 base64 without mime_type": lambda c: image(base64=c.b64),
    "v1 base64 is a data URI": lambda c: image(base64=c.uri),
    "v1 base64 in lines": lambda c: image(base64="\n".join(wrapped(c.b64))),
    "v1 url": lambda c: image(url=c.uri),
    "v1 url file:": lambda c: image(url=c.path.as_uri()),
    "v1 created": lambda c: dict(create_image_block(base64=c.b64, mime_type="image/png")),
    "v1 file": lambda c: file(base64=c.b64, mime_type="image/png"),
    "v1 file of unknown type": lambda c: file(
        base64=c.b64, mime_type="application/octet-stream", filename="page"
    ),
    "v1 file said to be a PDF": lambda c: file(base64=c.b64, mime_type="application/pdf"),
    "v1 non_standard": lambda c: {"type": "non_standard", "value": image_url(c.uri)},
    "anthropic base64": lambda c: image(
        source={"type": "base64", "media_type": "image/png", "data": c.b64}
    ),
    "anthropic url": lambda c: image(source={"type": "url", "url": c.uri}),
    "anthropic document": lambda c: {
        "type": "document",
        "source": {"type": "base64", "media_type": "image/png", "data": c.b64},
    },
    "google media": lambda c: {"type": "media", "mime_type": "image/png", "data": c.b64},
    "google media bytes": lambda c: {"type": "media", "mime_type": "image/png", "data": c.png},
    "google inline_data": lambda c: {"inline_data": {"mime_type": "image/png", "data": c.b64}},
    "google inlineData": lambda c: {"inlineData": {"mimeType": "image/png", "data": c.b64}},
    "bedrock": lambda c: {"image": {"format": "png", "source": {"bytes": c.png}}},
    "bedrock typed": lambda c: image(image={"format": "png", "source": {"bytes": c.png}}),
    "mcp": lambda c: image(data=c.b64, mimeType="image/png"),
    "hf PIL": lambda c: image(image=c.pil),
    "hf base64": lambda c: image(image=c.b64),
    "hf bytes": lambda c: image(image=c.png),
    "hf path object": lambda c: image(image=c.path),
    "hf path": lambda c: image(path=str(c.path)),
    "hf Path": lambda c: image(path=c.path),
    "hf url": lambda c: image(url=c.uri),
    "array": lambda c: image(image=np.asarray(c.pil)),
    "PIL in image_url": lambda c: image_url(c.pil),
    "bytes in image_url": lambda c: image_url({"url": c.png}),
    "bytes in data": lambda c: image(data=bytearray(c.png)),
    "bytes in base64": lambda c: image(base64=c.png),
    "open file": lambda c: image(image=io.BytesIO(c.png)),
    "Picture": lambda c: image(image=open_picture(c.png)),
}


class Case:
    def __init__(self, png, pil, path):
        self.png, self.pil, self.path = png, pil, path
        self.b64 = base64.b64encode(png).decode()
        self.uri = "data:image/png;base64," + self.b64


def image(**fields):
    return {"type": "image", **fields}


def file(**fields):
    return {"type": "file", **fields}


def image_url(value):
    return {"type": "image_url", "image_url": value}


def wrapped(text):
    return [text[i : i + 76] for i in range(0, len(text), 76)]


@pytest.fixture
def case(png, pil, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png)
    return Case(png, pil, path)


@pytest.fixture
def fake():
    return FakeBackend()


@pytest.fixture
def model(fake, tmp_path):
    return ChatLLaVA(backend=fake)


def digests(request):
    """What the backend would see, opened as a backend opens it."""
    return [
        open_picture(one.source, from_url_field=one.from_url_field).digest
        for message in request.messages
        for one in message.images
    ]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("role", [HumanMessage, ToolMessage])
def test_every_carrier_gives_the_same_pixels(carrier, role, case, digest, fake, tmp_path):
    fake.source_policy = SourcePolicy(roots=(tmp_path,))  # so that the file: URL is allowed
    model = ChatLLaVA(backend=fake)
    block = CARRIERS[carrier](case)
    messages = [HumanMessage("look")]
    if role is ToolMessage:
        call = {"name": "camera", "args": {}, "id": "c1"}
        messages += [AIMessage("", tool_calls=[call]), ToolMessage([block], tool_call_id="c1")]
    else:
        messages = [HumanMessage([{"type": "text", "text": "a"}, block, "b"])]
    model.invoke(messages)
    assert digests(fake.requests[0]) == [digest]
    if role is HumanMessage:
        parts = fake.requests[0].messages[0].content
        assert [type(part) for part in parts] == [Text, Image, Text]


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_every_carrier_works_where_the_cache_and_traces_are_bypassed(carrier, case, digest):
    block = CARRIERS[carrier](case)
    (message,) = to_messages([HumanMessage([block])])
    (part,) = message.content
    policy = SourcePolicy(roots=(case.path.parent,))
    opened = open_picture(part.source, policy, from_url_field=part.from_url_field)
    assert opened.digest == digest


@pytest.mark.parametrize("call", ["stream", "astream", "ainvoke", "batch", "generate"])
async def test_every_entry_takes_pictures(call, case, digest, fake, model):
    messages = [HumanMessage([image(image=case.pil)])]
    if call == "stream":
        list(model.stream(messages))
    elif call == "astream":
        _ = [chunk async for chunk in model.astream(messages)]
    elif call == "ainvoke":
        await model.ainvoke(messages)
    elif call == "batch":
        model.batch([messages])
    else:
        model.generate([messages])
    assert digests(fake.requests[0]) == [digest]


def test_http_urls_reach_the_backend_unopened(model, fake):
    url = "https://example.org/a.png?size=2"
    model.invoke([HumanMessage([image_url({"url": url}), image(url=url)])])
    assert fake.requests[0].messages[0].images == (Image(url, from_url_field=True),) * 2


def test_order_of_text_and_pictures_is_kept_in_every_kind_of_message(case, model, fake):
    content = ["one", image(image=case.pil), {"type": "text", "text": "two"}, image_url(case.uri)]
    model.invoke([SystemMessage(content), HumanMessage(content), AIMessage(content), ("user", "q")])
    for message in fake.requests[0].messages[:3]:
        assert [type(part) for part in message.content] == [Text, Image, Text, Image]


def test_pictures_of_prompt_templates(case, digest, model, fake):
    prompt = ChatPromptTemplate(
        [("human", [{"type": "text", "text": "{q}"}, image_url({"url": "{uri}"})])]
    )
    (prompt | model).invoke({"q": "what?", "uri": case.uri})
    lone = ImagePromptTemplate(template={"url": "{uri}"}, input_variables=["uri"])
    (lone | model).invoke({"uri": case.uri})
    assert [digests(request) for request in fake.requests] == [[digest], [digest]]


def test_the_callers_message_is_left_alone(case, model):
    block = image(image=case.pil)
    message = HumanMessage([block])
    model.invoke([message])
    assert message.content[0]["image"] is case.pil


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}, "audio"),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}, "audio"),
        ({"type": "video"}, "source"),
        ({"type": "video", "file_id": "f1"}, "f1"),
        ({"type": "video", "path": "a.mp4", "nframes": 3}, "nframes"),
        (
            {"type": "media", "mime_type": "video/mp4", "data": "AA", "video_metadata": {"fps": 1}},
            "video_m",
        ),
        ({"type": "media", "mime_type": "audio/mpeg", "file_uri": "gs://a/b"}, "audio"),
        ({"type": "hologram", "data": "x"}, "hologram"),
        ({}, "empty"),
        ({"type": "image"}, "source"),
        ({"type": "image", "file_id": "file-abc"}, "file-abc"),
        ({"type": "image", "source_type": "id", "id": "abc"}, "abc"),
        ({"type": "image", "source": {"type": "file", "file_id": "f1"}}, "f1"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, "image_url"),
        ({"type": "text"}, "text"),
        ({"type": "file", "base64": "aGVsbG8gd29ybGQh", "mime_type": "text/plain"}, "text"),
        ({"type": "file", "file_id": "f1"}, "file"),
        ({"type": "server_tool_call", "name": "web", "args": {}, "id": "1"}, "server_tool_call"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(block, word, model, fake):
    with pytest.raises(UnsupportedContentError, match=word):
        model.invoke([HumanMessage(["look", block])])
    assert fake.requests == []


def test_text_documents_are_text(model, fake):
    model.invoke(
        [
            HumanMessage(
                [
                    {"type": "text-plain", "text": "a", "mime_type": "text/plain"},
                    {"type": "document", "source": {"type": "text", "data": "b"}},
                    {"type": "file", "source_type": "text", "url": "c", "mime_type": "text/plain"},
                ]
            )
        ]
    )
    assert fake.requests[0].messages[0].text == "abc"


def test_a_pdf_in_an_image_block_is_named(model):
    with pytest.raises(UnsupportedImageError, match="PDF"):
        model.invoke([HumanMessage([image(base64="JVBERi0xLjcKJcOkw7zDtsOf")])])


def test_damaged_data_are_refused(model, b64):
    with pytest.raises(ImageDecodeError):
        model.invoke([HumanMessage([image(base64=b64[: len(b64) // 2])])])


@pytest.mark.parametrize("field", ["url", "image"])
def test_a_path_in_a_url_field_is_not_read(field, case, model):
    with pytest.raises(SourceNotAllowedError, match="path"):
        model.invoke([HumanMessage([image(**{field: str(case.path)})])])


def test_a_file_url_needs_a_root(case, model):
    with pytest.raises(SourceNotAllowedError, match="roots"):
        model.invoke([HumanMessage([image(url=case.path.as_uri())])])


def test_the_policy_of_a_given_backend_holds(case, fake):
    fake.source_policy = SourcePolicy(allow_files=False)
    with pytest.raises(SourceNotAllowedError):
        ChatLLaVA(backend=fake).invoke([HumanMessage([image(path=Path(case.path))])])


def test_the_policy_of_the_model_holds(case):
    model = ChatLLaVA(model="demo", source_policy=SourcePolicy(allow_files=False))
    with pytest.raises(SourceNotAllowedError):
        model.invoke([HumanMessage([image(path=Path(case.path))])])


def test_anthropic_tool_use_and_result(case, digest, model, fake):
    model.invoke(
        [
            HumanMessage("q"),
            AIMessage(
                [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "let me look"},
                    {"type": "tool_use", "id": "t1", "name": "camera", "input": {"n": 1}},
                ]
            ),
            HumanMessage(
                [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "here"}, image(base64=case.b64)],
                    },
                    {"type": "text", "text": "and now?"},
                ]
            ),
        ]
    )
    _, assistant, tool, user = fake.requests[0].messages
    assert assistant.text == "let me look"
    assert [(c.id, c.name, c.arguments) for c in assistant.tool_calls] == [
        ("t1", "camera", {"n": 1})
    ]
    assert (tool.role, tool.tool_call_id, tool.text) == ("tool", "t1", "here")
    assert digests(fake.requests[0]) == [digest]
    assert (user.role, user.text) == ("user", "and now?")


def test_streamed_history_and_broken_calls_are_kept(model, fake):
    chunk = AIMessageChunk("I ", id="1") + AIMessageChunk("see", id="1")
    broken = AIMessage(
        "", invalid_tool_calls=[{"name": "f", "args": "{oops", "id": "1", "error": None}]
    )
    model.invoke([("user", "a"), chunk, ("user", "b"), broken, ("user", "c")])
    texts = [message.text for message in fake.requests[0].messages]
    assert texts == ["a", "I see", "b", "f({oops)", "c"]


def test_a_tool_result_in_an_answer_is_refused(model):
    with pytest.raises(MessageError, match="tool result"):
        model.invoke([AIMessage([{"type": "tool_result", "tool_use_id": "1"}]), ("user", "a")])
