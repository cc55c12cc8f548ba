"""The eight methods of an LLM seen as one function: from a call to its responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse

Responses = list[Any]


def _chat(llm: Any, messages: Any, **kwargs: Any) -> Responses:
    return [llm.chat(messages, **kwargs)]


def _stream_chat(llm: Any, messages: Any, **kwargs: Any) -> Responses:
    return list(llm.stream_chat(messages, **kwargs))


async def _achat(llm: Any, messages: Any, **kwargs: Any) -> Responses:
    return [await llm.achat(messages, **kwargs)]


async def _astream_chat(llm: Any, messages: Any, **kwargs: Any) -> Responses:
    return [one async for one in await llm.astream_chat(messages, **kwargs)]


def _complete(llm: Any, prompt: str, **kwargs: Any) -> Responses:
    return [llm.complete(prompt, **kwargs)]


def _stream_complete(llm: Any, prompt: str, **kwargs: Any) -> Responses:
    return list(llm.stream_complete(prompt, **kwargs))


async def _acomplete(llm: Any, prompt: str, **kwargs: Any) -> Responses:
    return [await llm.acomplete(prompt, **kwargs)]


async def _astream_complete(llm: Any, prompt: str, **kwargs: Any) -> Responses:
    return [one async for one in await llm.astream_complete(prompt, **kwargs)]


CHAT: dict[str, Callable[..., Responses | Awaitable[Responses]]] = {
    "chat": _chat,
    "stream_chat": _stream_chat,
    "achat": _achat,
    "astream_chat": _astream_chat,
}
COMPLETE: dict[str, Callable[..., Responses | Awaitable[Responses]]] = {
    "complete": _complete,
    "stream_complete": _stream_complete,
    "acomplete": _acomplete,
    "astream_complete": _astream_complete,
}
METHODS = {**CHAT, **COMPLETE}


async def called(name: str, llm: Any, asked: Any, **kwargs: Any) -> Responses:
    """All responses of the method; several only from streams."""
    made = METHODS[name](llm, asked, **kwargs)
    return made if isinstance(made, list) else await made


def text_of(response: ChatResponse | CompletionResponse) -> str:
    """The answer's text in either kind of response."""
    if isinstance(response, ChatResponse):
        return response.message.content or ""
    return response.text
