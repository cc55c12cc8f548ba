"""llavakit answers -> LangChain chunks and results; pure functions.

Merging LangChain chunks concatenates strings, so what must not be repeated (model name,
finish reason, usage) goes into exactly one of them: the last.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from llavakit.prompts.tools import compact_json
from llavakit.values import Chunk, Completion, CutCall, TokenLogprob, Usage

PROVIDER = "llavakit"
_CUT = re.compile(r"\((The call of .*? raise max_tokens\.)\) (.*)", re.DOTALL)


class Streamed:
    """Converts the chunks of one streamed answer.

    Args:
        model: the model's name.
        usage: whether the last chunk reports the token usage.
    """

    def __init__(self, model: str, *, usage: bool = True) -> None:
        self._model = model
        self._usage = usage
        self._calls = 0

    def convert(self, chunk: Chunk) -> ChatGenerationChunk:
        """Convert the next chunk of a stream."""
        metadata = _logprobs(chunk.logprobs)
        if chunk.finish_reason is not None:
            metadata |= _metadata(self._model, chunk.finish_reason)
        calls = [(c.id, c.name, compact_json(c.arguments)) for c in chunk.tool_calls]
        calls += [(_new_id(), c.name, uncompletable(c)) for c in chunk.cut_calls]
        message = AIMessageChunk(
            content=chunk.text,
            tool_call_chunks=[
                tool_call_chunk(name=name, args=arguments, id=call_id, index=index)
                for index, (call_id, name, arguments) in enumerate(calls, self._calls)
            ],
            response_metadata=metadata,
            usage_metadata=to_usage(chunk.usage) if chunk.usage and self._usage else None,
            chunk_position=None if chunk.finish_reason is None else "last",
        )
        self._calls += len(calls)
        return ChatGenerationChunk(message=message)


def uncompletable(call: CutCall) -> str:
    """Return the arguments of a cut call as text that no parser takes for arguments.

    LangChain completes text that begins as JSON, and would run the tool with invented arguments.
    Other text it keeps as an invalid call; nothing else of a call survives the merging of chunks.
    """
    return f"({call.reason}) {call.arguments}"


def written(arguments: str | None) -> tuple[str, str | None]:
    """Return the arguments of an invalid call as the model wrote them, and why they are invalid."""
    found = _CUT.fullmatch(arguments or "")
    return (arguments or "", None) if found is None else (found[2], found[1])


def with_cut_calls(result: ChatResult) -> ChatResult:
    """Report cut calls of a streamed result as those of a result in one go."""
    for generation in result.generations:
        message = generation.message
        if not isinstance(message, AIMessage):
            continue
        for call in message.invalid_tool_calls:
            arguments, reason = written(call["args"])
            if reason is not None:
                call["args"], call["error"] = arguments, reason
                _replace_block(message, call)
    return result


def _replace_block(message: AIMessage, call: InvalidToolCall) -> None:
    """Replace the chunk of a call in content of the newer notation (v1) by the invalid call."""
    if not isinstance(message.content, list):
        return
    chunk = ("tool_call_chunk", call["id"])
    for place, block in enumerate(message.content):
        if isinstance(block, dict) and (block.get("type"), block.get("id")) == chunk:
            message.content[place] = {**call, "type": "invalid_tool_call"}


def to_result(completion: Completion, model: str) -> ChatResult:
    """Convert a complete answer of the model named ``model``."""
    return ChatResult(generations=[_generation(completion, model)])


def to_results(completions: Sequence[Completion], model: str) -> ChatResult:
    """Convert several answers to one prompt, of the model named ``model``."""
    return ChatResult(generations=[_generation(completion, model) for completion in completions])


def _generation(completion: Completion, model: str) -> ChatGeneration:
    message = AIMessage(
        content=completion.text,
        tool_calls=[
            LangChainToolCall(name=call.name, args=dict(call.arguments), id=call.id)
            for call in completion.tool_calls
        ],
        invalid_tool_calls=[
            InvalidToolCall(
                type="invalid_tool_call",
                name=call.name,
                args=call.arguments,
                id=_new_id(),
                error=call.reason,
            )
            for call in completion.cut_calls
        ],
        response_metadata=_metadata(model, completion.finish_reason)
        | _logprobs(completion.logprobs),
        usage_metadata=to_usage(completion.usage),
    )
    return ChatGeneration(message=message)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def to_usage(usage: Usage) -> UsageMetadata:
    """Return the usage as LangChain counts it; ``cache_read`` needed no new computation."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def _metadata(model: str, finish_reason: str) -> dict[str, Any]:
    return {"model_name": model, "model_provider": PROVIDER, "finish_reason": finish_reason}


def _logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """In OpenAI's shape, whose lists grow when chunks are merged; empty if none were requested."""
    if not logprobs:
        return {}
    content = [
        {
            "token": one.token,
            "logprob": one.logprob,
            "top_logprobs": [{"token": token, "logprob": value} for token, value in one.top],
        }
        for one in logprobs
    ]
    return {"logprobs": {"content": content}}
