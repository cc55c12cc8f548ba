"""Conversations on the wire: nothing is lost, and templates find what they know."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit import Image, Message, Text, Tool
from llavakit.backend import to_request
from llavakit.errors import MessageError
from llavakit.remote.dialects import DIALECTS
from llavakit.remote.messages import to_wire
from llavakit.values import ToolCall

VLLM = DIALECTS["vllm"]


def uri(image: Image) -> str:
    return f"data:{image.source.decode()}"


def wire(*messages: Message, dialect=VLLM, **options):
    return to_wire(to_request(list(messages), **options), dialect, uri)


def said(told) -> list[str]:
    """Texts and images of wire messages, in their order."""
    parts: list[str] = []
    for message in told:
        content = message["content"] or ""
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            parts.append(block["text"] if block["type"] == "text" else block["image_url"]["url"])
        for call in message.get("tool_calls", ()):
            parts.append(call["function"]["name"])
    told = "".join(f"|{part}" for part in parts).split("|")
    return [part for part in told if part.strip() and part != "The image follows."]


@st.composite
def conversations(draw):
    """Messages whose texts and images all have names of their own."""
    names = iter(range(1000))
    messages: list[Message] = []

    def parts(pictures: bool) -> list[Text | Image]:
        made: list[Text | Image] = []
        for _ in range(draw(st.integers(1, 3))):
            name = f"|{next(names)}|"
            picture = pictures and draw(st.booleans())
            made.append(Image(f"p{name.strip('|')}".encode()) if picture else Text(name))
        return made

    if draw(st.booleans()):
        messages.append(Message("system", parts(True)))
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["user", "assistant", "call", "system"]))
        if kind == "call":
            count = draw(st.integers(1, 2))
            with_ids = draw(st.booleans())
            calls = [
                ToolCall(f"i{next(names)}" if with_ids else "", f"t{next(names)}", {"x": 1})
                for _ in range(count)
            ]
            messages.append(Message("assistant", (), tool_calls=calls))
            for call in calls:
                messages.append(Message("tool", parts(True), tool_call_id=call.id or None))
        else:
            messages.append(Message(kind, parts(kind != "assistant")))
    messages.append(Message("user", parts(True)))
    return messages


def names_of(messages: list[Message]) -> list[str]:
    """Everything that was said, without an order."""
    found: list[str] = []
    for message in messages:
        for part in message.content:
            found.append(part.text.strip("|") if isinstance(part, Text) else uri(part))
        found.extend(call.name for call in message.tool_calls)
    return found


@pytest.mark.parametrize("name", ["vllm", "llavakit", "generic"])
@given(messages=conversations())
def test_everything_that_was_said_is_on_the_wire_once(name, messages):
    told = said(wire(*messages, dialect=DIALECTS[name]))
    assert sorted(told) == sorted(names_of(messages))


@given(conversations())
def test_the_order_of_what_users_say_is_kept(messages):
    of_users = [m for m in messages if m.role == "user"]
    told = said([m for m in wire(*messages) if m["role"] == "user"])
    expected = names_of(of_users)
    assert [one for one in told if one in expected] == expected


@given(conversations())
def test_templates_find_turns_that_they_know(messages):
    told = wire(*messages)
    roles = [message["role"] for message in told]
    assert "system" not in roles[1:]
    for message in told:
        pictures = not isinstance(message["content"], str | None)
        assert not pictures or message["role"] == "user"
    for before, after in pairwise(told):
        if before["role"] == after["role"] != "tool":
            assert before.get("tool_calls")


@given(conversations())
def test_every_result_answers_a_call_that_was_made(messages):
    open_calls: list[str] = []
    for message in wire(*messages):
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls
        open_calls += [call["id"] for call in message.get("tool_calls", ())]
    json.dumps(wire(*messages))


def test_our_own_server_is_told_the_turns_as_they_are():
    messages = [
        Message("user", "one"),
        Message("user", "two"),
        Message("system", "late"),
        Message("user", "three"),
    ]
    told = wire(*messages, dialect=DIALECTS["llavakit"])
    assert [message["content"] for message in told] == ["one", "two", "late", "three"]
    assert [message["content"] for message in wire(*messages)] == ["late", "one\ntwo\nthree"]


def test_pictures_of_a_result_follow_it_in_a_turn_of_the_user():
    told = wire(
        Message("user", "look"),
        Message("assistant", (), tool_calls=[ToolCall("1", "look", {})]),
        Message("tool", ["here", Image(b"p")], tool_call_id="1"),
        Message("user", "what is it?"),
    )
    assert told[2] == {"role": "tool", "content": "here", "tool_call_id": "1"}
    assert [part["type"] for part in told[3]["content"]] == ["image_url", "text", "text"]


def test_tools_are_told_in_the_prompt_where_the_server_knows_none():
    told = wire(Message("user", "q"), dialect=DIALECTS["transformers"], tools=[Tool("add")])
    assert told[0]["role"] == "system" and '"name":"add"' in told[0]["content"]


def test_a_result_without_a_call_is_refused():
    with pytest.raises(MessageError, match="tool_call_id"):
        wire(Message("tool", "42"))


@pytest.mark.parametrize("messages", [[], [Message("system", "")]])
def test_nothing_to_answer_is_refused_as_here(messages):
    with pytest.raises(MessageError):
        wire(*messages)
