"""llavakit answers -> LlamaIndex responses; pure functions.

A streamed response has the whole answer so far and what is new in it (``delta``). Usage
and finish reason are in ``raw`` and in ``additional_kwargs``, where the framework's token
counter looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection

from llavakit.errors import LlavaKitError
from llavakit.prompts.tools import compact_json
from llavakit.streams import Gathering
from llavakit.values import CUT_CALLS, Chunk, Completion, TokenLogprob, ToolCall, Usage

_Called: TypeAlias = tuple[str, str, dict[str, Any]]


def to_response(completion: Completion, model: str, delta: str | None = None) -> ChatResponse:
    """Convert an answer of the model named ``model``; ``delta`` where it ends a stream."""
    usage = _usage(completion.usage)
    cut = [
        {"name": call.name, "arguments": call.arguments, "error": call.reason}
        for call in completion.cut_calls
    ]
    return ChatResponse(
        message=_message(completion.text, _called(completion.tool_calls)),
        delta=delta,
        raw={"model": model, "finish_reason": completion.finish_reason, "usage": usage},
        additional_kwargs={
            **usage,
            "finish_reason": completion.finish_reason,
            **({CUT_CALLS: cut} if cut else {}),
        },
        logprobs=_logprobs(completion.logprobs),
    )


def to_completion(response: ChatResponse) -> CompletionResponse:
    """Convert a chat's response to a completion's."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
        logprobs=response.logprobs,
    )


class Growing:
    """The responses of one streamed answer, chunk by chunk."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._gathering = Gathering()
        self._text = ""
        self._calls: list[_Called] = []

    def add(self, chunk: Chunk) -> ChatResponse:
        """Add a chunk and return the answer so far."""
        self._gathering.add(chunk)
        if chunk.finish_reason is not None:
            return to_response(self._gathering.completion(), self._model, delta="")
        self._text += chunk.text
        self._calls += _called(chunk.tool_calls)
        return ChatResponse(
            message=_message(self._text, self._calls),
            delta=chunk.text,
            logprobs=_logprobs(chunk.logprobs),
        )


def to_selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """Return the tool calls of a response, also of one that still grows.

    Args:
        response: a chat's response, complete or streamed.
        required: whether a response without calls is an error.

    Raises:
        LlavaKitError: a required call is missing, or a call was cut: an agent would take what
            came before for the whole answer.
    """
    cut = response.additional_kwargs.get(CUT_CALLS)
    if cut:
        raise LlavaKitError(cut[0]["error"])
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if required and not blocks:
        raise LlavaKitError(
            "The model called no tool; ask with tool_required=True to make it call one."
        )
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=block.tool_name,
            tool_kwargs=_arguments(block.tool_kwargs),
        )
        for block in blocks
    ]


def _arguments(arguments: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments of a complete call; they are text in messages of other programs."""
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise LlavaKitError(
            f"The arguments of a tool call are not a JSON object ({arguments[:60]!r}), so it "
            "cannot be run; give a dict."
        )
    return parsed


def _called(calls: Sequence[ToolCall]) -> list[_Called]:
    return [(call.id, call.name, dict(call.arguments)) for call in calls]


def _message(text: str, calls: Sequence[_Called]) -> ChatMessage:
    blocks: list[ContentBlock] = [TextBlock(text=text)] if text or not calls else []
    blocks += [
        ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=arguments)
        for call_id, name, arguments in calls
    ]
    # The framework's streaming programs look for calls here, in OpenAI's notation.
    extra = {"tool_calls": [_openai_call(*call) for call in calls]} if calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)


def _openai_call(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    text = compact_json(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "image_tokens": usage.image_tokens,
    }


def _logprobs(logprobs: Sequence[TokenLogprob]) -> list[list[LogProb]] | None:
    """For each token the chosen one first, then the likeliest alternatives."""
    if not logprobs:
        return None
    return [
        [
            LogProb(token=token, logprob=value, bytes=list(token.encode()))
            for token, value in ((one.token, one.logprob), *one.top)
        ]
        for one in logprobs
    ]
