"""Memories of LlamaIndex that count what the model counts, images included.

The framework's ``ChatMemoryBuffer`` counts an image as nothing and its ``Memory`` as 256 tokens,
whatever the model makes of it; both count text with another model's tokenizer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import ChatMemoryBuffer, Memory
from pydantic import PrivateAttr

from llavakit.errors import ParameterError
from llavakit.llama_index.messages import to_messages
from llavakit.llama_index.metadata import ModelMetadata

_SHARE = 0.75
"""Share of the context for the conversation; the rest is for the answer. The framework's own."""


class LLaVAChatMemoryBuffer(ChatMemoryBuffer):
    """A ``ChatMemoryBuffer`` whose ``token_limit`` is in tokens of the model's prompt.

    Made by ``llm.chat_memory_buffer()``. Loaded by ``from_dict(data, llm=llm)``: a counter
    cannot be serialised.
    """

    _llm: Any = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Return the framework's name for this class."""
        return "LLaVAChatMemoryBuffer"

    @classmethod
    def from_dict(
        cls, data: dict[str, Any], llm: ModelMetadata | None = None, **kwargs: Any
    ) -> Self:
        """Load what ``to_dict`` wrote.

        Args:
            data: the result of ``to_dict``.
            llm: the model that counts.
            **kwargs: further arguments of the framework.
        """
        counter = {} if llm is None else {"tokenizer_fn": partial(_tokens, llm)}
        self = super().from_dict({**data, **counter}, **kwargs)
        self._llm = llm  # type: ignore[attr-defined]
        return self  # type: ignore[return-value]

    def _token_count_for_messages(self, messages: list[ChatMessage]) -> int:
        return _count(self._llm, messages, type(self).__name__)


class LLaVAMemory(Memory):
    """A ``Memory`` whose limits are in tokens of the model's prompt; see there for the rest.

    Made by ``llm.memory()``.
    """

    _llm: Any = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Return the framework's name for this class."""
        return "LLaVAMemory"

    def _estimate_token_count(self, message_or_blocks: Any) -> int:
        if isinstance(message_or_blocks, ChatMessage):
            messages = [message_or_blocks]
        elif isinstance(message_or_blocks, str):
            messages = [ChatMessage(role=MessageRole.USER, content=message_or_blocks)]
        elif all(isinstance(one, ChatMessage) for one in message_or_blocks):
            messages = list(message_or_blocks)
        else:
            messages = [ChatMessage(role=MessageRole.USER, blocks=list(message_or_blocks))]
        return _count(self._llm, messages, type(self).__name__)


def buffer_for(llm: ModelMetadata, **settings: Any) -> LLaVAChatMemoryBuffer:
    """Make a buffer that counts with ``llm``; see ``ChatMemoryBuffer.from_defaults``."""
    limit = settings.pop("token_limit", None) or _limit(llm)
    memory = LLaVAChatMemoryBuffer.from_defaults(
        token_limit=limit, tokenizer_fn=partial(_tokens, llm), **settings
    )
    memory._llm = llm  # type: ignore[attr-defined]
    return memory  # type: ignore[return-value]


def memory_for(llm: ModelMetadata, **settings: Any) -> LLaVAMemory:
    """Make a memory that counts with ``llm``; see ``Memory.from_defaults``."""
    limit = settings.pop("token_limit", None) or _limit(llm)
    memory = LLaVAMemory.from_defaults(
        token_limit=limit, tokenizer_fn=partial(_tokens, llm), **settings
    )
    memory._llm = llm  # type: ignore[attr-defined]
    return memory  # type: ignore[return-value]


def _limit(llm: ModelMetadata) -> int:
    return int(llm.metadata.context_window * _SHARE)


def _count(llm: ModelMetadata | None, messages: list[ChatMessage], name: str) -> int:
    if llm is None:
        raise ParameterError(
            f"This {name} has no model to count with; make it by a method of the model, or give "
            "from_dict one: llm=LLaVA(...)."
        )
    if not messages:
        return 0
    return llm.backend_for().count_tokens(to_messages(messages, llm._open_document))


def _tokens(llm: ModelMetadata, text: str) -> list[Any]:
    """A list as long as the text has tokens, with its template; only its length is used."""
    return [None] * (llm.backend_for().count_tokens(text) if text else 0)
