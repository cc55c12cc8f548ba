"""Roles, tool calls and results on their way to the model."""

import pytest
from llama_index.core.base.llms.types import TextBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage, MessageRole

from llavakit.errors import MessageError, UnsupportedContentError
from llavakit.llama_index.messages import to_messages
from llavakit.values import Text, ToolCall


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
        ("tool", "tool"),
        ("function", "tool"),
    ],
)
def test_every_role_has_its_counterpart(role, expected):
    assert {one.value for one in MessageRole} == {
        *("system", "developer", "user", "assistant"),
        *("function", "tool", "chatbot", "model"),
    }
    (message,) = to_messages([ChatMessage(role=role, content="x")])
    assert message.role == expected


CALL = ToolCall("1", "multiply", {"a": 6})


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="1", tool_name="multiply", tool_kwargs={"a": 6})],
        ),
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="1", tool_name="multiply", tool_kwargs='{"a": 6}')],
        ),
        ChatMessage(
            role="assistant",
            additional_kwargs={
                "tool_calls": [
                    {"id": "1", "function": {"name": "multiply", "arguments": '{"a": 6}'}}
                ]
            },
        ),
    ],
)
def test_calls_of_both_notations_are_read(message):
    (turn,) = to_messages([message])
    assert turn.tool_calls == (CALL,)


def test_a_call_told_in_both_notations_is_one_call():
    message = ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id="1", tool_name="multiply", tool_kwargs={"a": 6})],
        additional_kwargs={
            "tool_calls": [{"id": "1", "function": {"name": "multiply", "arguments": "{}"}}]
        },
    )
    assert to_messages([message])[0].tool_calls == (CALL,)


def test_a_broken_call_is_seen_as_the_text_that_it_was():
    block = ToolCallBlock(tool_call_id="1", tool_name="multiply", tool_kwargs='{"a": ')
    (turn,) = to_messages([ChatMessage(role="assistant", blocks=[block])])
    assert turn.content == (Text('multiply({"a": )'),) and not turn.tool_calls


def test_a_result_names_its_call():
    message = ChatMessage(
        role="tool", content="42", additional_kwargs={"tool_call_id": "1", "name": "multiply"}
    )
    (turn,) = to_messages([message])
    assert (turn.tool_call_id, turn.name, turn.text) == ("1", "multiply", "42")


def test_only_the_assistant_calls_tools():
    block = ToolCallBlock(tool_call_id="1", tool_name="multiply", tool_kwargs={})
    with pytest.raises(MessageError, match="only the assistant"):
        to_messages([ChatMessage(role="user", blocks=[TextBlock(text="x"), block])])


def test_calls_of_an_unknown_notation_are_refused():
    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": ["multiply"]})
    with pytest.raises(UnsupportedContentError, match="ToolCallBlock"):
        to_messages([message])


def test_a_conversation_in_which_nobody_speaks_is_refused(llm):
    with pytest.raises(MessageError, match="empty"):
        llm.chat([ChatMessage(role="system", content="")])
    with pytest.raises(MessageError, match="empty"):
        llm.chat([])
