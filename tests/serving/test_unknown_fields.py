"""A field that is not known is taken and changes nothing, or is refused by its own name."""

import re
from pathlib import Path

import httpx
import pytest

from llavakit.serving import chat_schema, messages
from llavakit.serving.completions import CompletionRequest
from llavakit.serving.fields import NO_EFFECT
from llavakit.serving.responses import schema as responses
from tests.serving.conftest import CHAT, data_uri, draw, events_of, picture_block, saying

URI = data_uri(draw(size=32))
BLOCKS = {
    "text": {"type": "text", "text": "Hello"},
    "input_text": {"type": "input_text", "text": "Hello"},
    "output_text": {"type": "output_text", "text": "Hello"},
    "refusal": {"type": "refusal", "refusal": "No"},
    "image_url": {"type": "image_url", "image_url": {"url": URI}},
    "image_url as a string": {"type": "image_url", "image_url": URI},
    "input_image": {"type": "input_image", "image_url": URI},
    "image": {"type": "image", "base64": URI.partition(",")[2]},
}
KEYS = {
    "cache_control": {"type": "ephemeral"},
    "uuid": "x",
    "detail": "low",
    "id": "x",
    "index": 0,
    "annotations": [],
    "logprobs": [],
    "mime_type": "image/png",
    "file_id": None,
    # of other blocks, of nothing, and the names of branches
    "text": 5,
    "image": 5,
    "image_url": 5,
    "refusal": 5,
    "mood": "x",
    "min_pixels": 3,
    "<text>": 1,
    "<list>": 1,
    "role": "user",
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("key", KEYS)
async def test_each_block_takes_a_stray_key_or_the_error_names_it(client, block, key):
    if key in BLOCKS[block]:
        return
    app = client()
    stray = BLOCKS[block] | {key: KEYS[key]}
    body = saying() | {"messages": [{"role": "user", "content": [stray, BLOCKS["text"]]}]}
    answer = await app.post(CHAT, json=body)
    if answer.status_code == 200:
        await app.post(
            CHAT,
            json=body
            | {"messages": [{"role": "user", "content": [BLOCKS[block], BLOCKS["text"]]}]},
        )
        adorned, plain = app.backend.requests
        assert adorned == plain
    else:
        error = answer.json()["error"]
        place = f"messages[0].content[0].{key}"
        where = "messages[0].content[0]"  # of an image block with two images
        assert error["param"] == place or (error["param"], "exactly one" in error["message"]) == (
            where,
            True,
        ), error


@pytest.mark.parametrize("key", ["cache_control", "uuid", "mood"])
@pytest.mark.parametrize(
    ("place", "whole"),
    [
        ("messages[0]", lambda stray: {"messages": [{"role": "user", "content": "x", **stray}]}),
        (
            "messages[0].content[0].image_url",
            lambda stray: {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": URI, **stray}}],
                    }
                ]
            },
        ),
        (
            "tools[0]",
            lambda stray: {"tools": [{"type": "function", "function": {"name": "a"}, **stray}]},
        ),
        (
            "tools[0].function",
            lambda stray: {"tools": [{"type": "function", "function": {"name": "a", **stray}}]},
        ),
        ("response_format", lambda stray: {"response_format": {"type": "text", **stray}}),
        ("stream_options", lambda stray: {"stream": True, "stream_options": stray}),
        (
            "tool_choice",
            lambda stray: {"tool_choice": {"type": "function", "function": {"name": "a"}, **stray}},
        ),
        ("structured_outputs", lambda stray: {"structured_outputs": {"json": {}, **stray}}),
    ],
)
async def test_a_stray_key_elsewhere_is_taken_or_named(client, place, whole, key):
    answer = await client().post(CHAT, json=saying() | whole({key: {"type": "ephemeral"}}))
    if answer.status_code != 200:
        assert answer.json()["error"]["param"] == f"{place}.{key}"
    assert answer.status_code == (
        200 if key == "cache_control" and place in ("messages[0]", "tools[0]") else 400
    )


async def test_only_the_allowed_tools_are_shown(client):
    app = client()
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "count")]
    allowed = {"mode": "auto", "tools": [tools[1]]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = await app.post(CHAT, json=saying(tools=tools, tool_choice=choice))
    assert answer.status_code == 200, answer.text
    (request,) = app.backend.requests
    assert [tool.name for tool in request.tools] == ["count"]
    assert request.tool_choice == "auto"


async def test_an_answer_with_a_cut_call_can_be_sent_back(client):
    cut = [{"name": "pay", "arguments": "{"}]
    conversation = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "refusal": None, "cut_tool_calls": cut},
        {"role": "user", "content": "z"},
    ]
    assert (await client().post(CHAT, json=saying() | {"messages": conversation})).is_success


@pytest.mark.enable_socket
def test_every_event_has_the_usage_so_far_if_it_is_asked_for(served):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": [picture_block(), BLOCKS["text"]]}],
        "temperature": 0,
        "stream": True,
        "stream_options": options,
    }
    chunks = events_of(httpx.post(served.url + CHAT, json=body, timeout=60).text)
    usages = [chunk["usage"] for chunk in chunks]
    last = usages[-1]
    assert usages[0]["completion_tokens"] == 0
    assert {usage["prompt_tokens"] for usage in usages} == {last["prompt_tokens"]}
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts) and len(set(counts)) > 2
    assert all(choice["logprobs"] is None for chunk in chunks for choice in chunk["choices"])
    assert last["completion_tokens"] - counts[-2] in (0, 1)  # the end token


def no_effect():
    """All fields without effect, by their name."""
    found = set()
    for module in (messages, chat_schema, responses):
        for kind in vars(module).values():
            fields = getattr(kind, "model_fields", {})
            found |= {
                name
                for name, field in fields.items()
                if (field.description or "").startswith(NO_EFFECT)
            }
    fields = CompletionRequest.model_fields.items()
    found |= {name for name, field in fields if (field.description or "").startswith(NO_EFFECT)}
    return found


def test_the_documentation_lists_every_field_without_effect():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    section = text.partition("### Without effect")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([a-z_]+)`", section.replace(" of ", " ")))
    assert no_effect() <= listed, no_effect() - listed
