"""Requests of OpenAI's notation -> llavakit's, once their images and videos are opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from llavakit.arguments import from_openai, to_options, to_params
from llavakit.backend import begins_a_turn, to_request
from llavakit.errors import ContextLengthError, MessageError
from llavakit.prompts.conversation import check_answerable
from llavakit.serving.chat_schema import (
    AllowedToolsChoice,
    ChatRequest,
    StructuredOutputs,
    ToolDefinition,
)
from llavakit.serving.errors import Refusal, blamed
from llavakit.serving.messages import (
    AssistantMessage,
    ChatMessage,
    RefusalBlock,
    TextFields,
    ToolMessage,
    VideoBlocks,
)
from llavakit.serving.opening import Opened
from llavakit.serving.settings import ServerSettings
from llavakit.serving.sources import Place, in_messages
from llavakit.values import Image, Message, Part, Request, Text, Tool, ToolCall, Video

_SAMPLING = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
    "add_generation_prompt",
    "continue_final_message",
)
LONGEST_TOKEN = 256
"""More characters than any token of a vocabulary has."""
_START_RULE = re.compile(r"^\s*start\s*:", re.MULTILINE)


def to_requests(
    body: ChatRequest,
    settings: ServerSettings,
    context_length: int,
    opened: Sequence[Sequence[Opened]],
    place: Place = in_messages,
) -> list[Request]:
    """Make one request for each choice.

    Args:
        body: as the client sent it.
        settings: limits.
        context_length: tokens that the model holds.
        opened: what each block of its messages that has images or a video holds, in their order.
        place: names a message in errors.

    Raises:
        Refusal: what cannot be honoured, with the argument that is wrong.
    """
    choices = body.n or 1
    if choices > settings.max_choices:
        raise _invalid(f"n is {choices}; this server gives at most {settings.max_choices}.", "n")
    tools = _offered(body)
    arguments = _arguments(body)
    with blamed("tool_choice"):
        options = to_options(arguments | {"timeout": settings.request_timeout}, tools)
    with blamed(None):
        params = to_params(arguments)
        if settings.max_answer_tokens is not None:
            params = replace(params, max_tokens=min(params.max_tokens, settings.max_answer_tokens))
    messages = to_messages(body.messages, opened, place)
    continues = bool(body.continue_final_message)
    with blamed("add_generation_prompt"):
        begins_a_turn(body.add_generation_prompt, continues)
    with blamed("messages"):
        check_answerable(messages, continues=continues)
        check_length(messages, tools, params.json_schema, context_length)
    with blamed("tool_choice"):
        first = to_request(messages, params, **options)
    return [
        replace(first, params=replace(params, seed=params.seed + number))
        if number and params.seed is not None
        else first
        for number in range(choices)
    ]


def _arguments(body: ChatRequest) -> dict[str, Any]:
    """The settings of a call by llavakit's names, without those that are not set."""
    if body.stream_options is not None and not body.stream:
        raise _invalid("stream_options is for streams: send stream=true too.", "stream_options")
    if len({body.max_tokens, body.max_completion_tokens} - {None}) > 1:
        raise _invalid(
            "max_tokens and max_completion_tokens differ; send one of them.", "max_tokens"
        )
    values = {name: getattr(body, name) for name in _SAMPLING}
    values = {name: value for name, value in values.items() if value is not None}
    if "max_completion_tokens" in values:
        values["max_tokens"] = values.pop("max_completion_tokens")
    if body.top_logprobs and not body.logprobs:
        raise _invalid("top_logprobs needs logprobs=true.", "top_logprobs")
    if body.top_k is not None:
        values["top_k"] = max(body.top_k, 0)
    if body.stop is not None:
        values["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.response_format is not None:
        values["response_format"] = body.response_format.model_dump(by_alias=True)
    if body.structured_outputs is not None:
        if body.response_format is not None and body.response_format.type != "text":
            raise _invalid(
                "Send response_format or structured_outputs, not both.", "structured_outputs"
            )
        values |= _structured(body.structured_outputs)
    choice = body.tool_choice
    if choice is not None:
        if isinstance(choice, AllowedToolsChoice):
            choice = choice.allowed_tools.mode
        values["tool_choice"] = choice if isinstance(choice, str) else choice.model_dump()
    return values


def _structured(asked: StructuredOutputs) -> dict[str, Any]:
    given = [name for name, value in asked.model_dump(by_alias=True).items() if value is not None]
    if len(given) != 1:
        raise _invalid(
            "structured_outputs takes exactly one of json, json_object, regex, choice and grammar.",
            "structured_outputs",
        )
    if asked.json_ is not None:
        return {"json_schema": asked.json_}
    if asked.json_object:
        return {"json_schema": True}
    if asked.choice is not None:
        words = " | ".join(json.dumps(word, ensure_ascii=False) for word in asked.choice)
        return {"grammar": f"start: / ?/ ({words})\n"}
    starts = _START_RULE.search(asked.regex or asked.grammar or "")
    # SamplingParams.grammar separates the two by the rule `start:`, and so must their sender.
    if asked.regex is not None and starts:
        raise _invalid(
            "The regular expression looks like a grammar; write [s]tart: for start:.",
            "structured_outputs.regex",
        )
    if asked.grammar is not None and not starts:
        raise _invalid(
            "The grammar has no rule start: ...; write it in Lark's notation.",
            "structured_outputs.grammar",
        )
    return {"grammar": asked.regex or asked.grammar}


def to_tools(tools: Sequence[ToolDefinition] | None) -> tuple[Tool, ...]:
    """Tools of llavakit.

    Raises:
        Refusal: two of one name.
    """
    result = from_openai([tool.model_dump() for tool in tools or ()])
    names = [tool.name for tool in result]
    for name in names:
        if names.count(name) > 1:
            raise _invalid(f"Two tools are named {name!r}; give each a name of its own.", "tools")
    return result


def _offered(body: ChatRequest) -> tuple[Tool, ...]:
    """The tools that the model may call in this request."""
    tools = to_tools(body.tools)
    choice = body.tool_choice
    if not isinstance(choice, AllowedToolsChoice):
        return tools
    known = {tool.name for tool in tools}
    allowed = [one.function.name for one in choice.allowed_tools.tools]
    for name in allowed:
        if name not in known:
            raise _invalid(
                f"tool_choice allows {name!r}, which is not among the tools.",
                "tool_choice.allowed_tools.tools",
            )
    return tuple(tool for tool in tools if tool.name in allowed)


def to_messages(
    messages: Sequence[ChatMessage],
    opened: Sequence[Sequence[Opened]],
    place: Place = in_messages,
) -> list[Message]:
    """Make messages of llavakit.

    Args:
        messages: of the request.
        opened: what :func:`llavakit.serving.sources.image_sources` named, opened.
        place: names a message in errors.

    Raises:
        Refusal: what cannot be honoured, with the message that is wrong.
    """
    result: list[Message] = []
    asked: set[str] = set()
    images = iter(opened)
    for number, message in enumerate(messages):
        with blamed(place(number, None)):
            turn = _message(message, images)
            if turn.tool_call_id is not None and turn.tool_call_id not in asked:
                raise MessageError(
                    f"A tool message answers the call {turn.tool_call_id[:80]!r}, but no assistant "
                    "message before it made that call."
                )
        asked.update(call.id for call in turn.tool_calls)
        result.append(turn)
    return result


def check_length(
    messages: Sequence[Message], tools: Sequence[Tool], schema: Any, context_length: int
) -> None:
    """Refuses what no tokenizer can make fit, before one spends a minute to find out.

    Raises:
        ContextLengthError: more characters than ``context_length`` tokens can have.
    """
    length = sum(len(message.text) for message in messages)
    length += sum(
        len(call.name) + len(str(call.arguments)) for m in messages for call in m.tool_calls
    )
    length += sum(len(tool.description) + len(str(tool.parameters)) for tool in tools)
    length += len(str(schema)) if schema is not None else 0
    if length > LONGEST_TOKEN * context_length:
        raise ContextLengthError(
            f"The request has {length:,} characters of text, and the model holds "
            f"{context_length} tokens; shorten the conversation.",
            context_length=context_length,
        )


def _message(message: ChatMessage, opened: Iterator[Sequence[Opened]]) -> Message:
    content = message.content
    parts: list[str | Part] = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [part for block in content for part in _parts(block, opened)]
    role = "system" if message.role == "developer" else message.role
    calls: list[ToolCall] = []
    if isinstance(message, AssistantMessage):
        parts += [message.refusal] if message.refusal else []
        calls = [
            ToolCall(call.id, call.function.name, _call_arguments(call.function.arguments))
            for call in message.tool_calls or ()
        ]
    return Message(
        role,
        [part for part in parts if part != ""],
        tool_calls=calls,
        tool_call_id=message.tool_call_id if isinstance(message, ToolMessage) else None,
        name=message.name,
    )


def _parts(block: Any, opened: Iterator[Sequence[Opened]]) -> list[Part]:
    if isinstance(block, TextFields):
        return [Text(block.text)]
    if isinstance(block, RefusalBlock):
        return [Text(block.refusal)]
    if isinstance(block, VideoBlocks):
        return [Video(one, num_frames=block.num_frames, fps=block.fps) for one in next(opened)]
    return [Image(picture) for picture in next(opened)]


def _call_arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise MessageError("The arguments of a tool call must be the JSON of an object.")
    return value


def _invalid(message: str, param: str) -> Refusal:
    return Refusal(400, message, code="invalid_value", param=param)
