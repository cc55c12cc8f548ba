"""llavakit answers -> LangChain chunks and results; pure functions.

Merging LangChain chunks concatenates strings, so what must not be repeated (model name,
finish reason, usage) goes into exactly one of them: the last.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from llavakit.values import Chunk, Completion, TokenLogprob, Usage

PROVIDER = "llavakit"


def to_generation_chunk(chunk: Chunk, model: str) -> ChatGenerationChunk:
    """One piece of a streamed answer of the model named ``model``."""
    metadata = _logprobs(chunk.logprobs)
    last = chunk.finish_reason is not None
    if chunk.finish_reason is not None:
        metadata |= _metadata(model, chunk.finish_reason)
    message = AIMessageChunk(
        content=chunk.text,
        tool_call_chunks=[
            tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=call.index)
            for call in chunk.tool_calls
        ],
        response_metadata=metadata,
        usage_metadata=None if chunk.usage is None else to_usage(chunk.usage),
        chunk_position="last" if last else None,
    )
    return ChatGenerationChunk(message=message)


def to_result(completion: Completion, model: str) -> ChatResult:
    """A whole answer of the model named ``model``."""
    message = AIMessage(
        content=completion.text,
        tool_calls=[
            LangChainToolCall(name=call.name, args=dict(call.arguments), id=call.id)
            for call in completion.tool_calls
        ],
        response_metadata=_metadata(model, completion.finish_reason)
        | _logprobs(completion.logprobs),
        usage_metadata=to_usage(completion.usage),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def to_usage(usage: Usage) -> UsageMetadata:
    """The tokens as LangChain counts them; ``cache_read`` needed no new computation."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def _metadata(model: str, finish_reason: str) -> dict[str, Any]:
    return {"model_name": model, "model_provider": PROVIDER, "finish_reason": finish_reason}


def _logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """In OpenAI's shape, whose lists grow when chunks are merged; nothing if none were asked."""
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
