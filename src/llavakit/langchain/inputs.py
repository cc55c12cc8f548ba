"""Every entry point of a chat model, with its messages made fit for callbacks and for the cache.

Both see them before the model does. What LangChain passes to callbacks, listeners and histories is
the input of these methods: the message as it was given, in plain data
(:mod:`llavakit.langchain.plain`), unless traces are to hold digests. The key of the LLM cache is
made after that, of canonical messages (:mod:`llavakit.langchain.canonical`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatResult, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor

from llavakit._checks import members
from llavakit.langchain.canonical import has_pictures
from llavakit.langchain.chunks import with_cut_calls
from llavakit.langchain.errors import in_langchains_tree


class RecordedInputs(BaseChatModel):
    """A chat model whose input is recorded as it was given, and cached by its pixels."""

    @abstractmethod
    def canonical(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the messages as caches and the model see them."""

    @abstractmethod
    def recorded(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the messages as traces, callbacks and histories see them."""

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        prompt = super()._convert_input(model_input)
        messages = prompt.to_messages()
        if not has_pictures(messages):
            return prompt
        with in_langchains_tree():
            return ChatPromptValue(messages=self.recorded(messages))

    async def _aconvert_input(self, model_input: LanguageModelInput) -> PromptValue:
        # Encoding or decoding an image takes milliseconds, which would block the event loop.
        prompt = super()._convert_input(model_input)
        if not has_pictures(prompt.to_messages()):
            return prompt
        return await run_in_executor(None, self._convert_input, prompt)

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        prompt = await self._aconvert_input(input)
        return await super().ainvoke(prompt, config, stop=stop, **kwargs)

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        prompt = await self._aconvert_input(input)
        stream = super().astream(prompt, config, stop=stop, **kwargs)
        async with aclosing(cast("Any", stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        with in_langchains_tree():
            conversations = members("messages", messages, Sequence[BaseMessage])
            messages = [self.recorded(conversation) for conversation in conversations]
        return super().generate(messages, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        with in_langchains_tree():
            messages = [
                await run_in_executor(None, self.recorded, conversation)
                if has_pictures(conversation)
                else self.recorded(conversation)
                for conversation in members("messages", messages, Sequence[BaseMessage])
            ]
        return await super().agenerate(messages, stop, callbacks, **kwargs)

    # Between what is recorded and what is cached and answered.

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with in_langchains_tree():
            messages = self.canonical(messages)
        return with_cut_calls(super()._generate_with_cache(messages, stop, run_manager, **kwargs))

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with in_langchains_tree():
            if has_pictures(messages):
                messages = await run_in_executor(None, self.canonical, messages)
            else:
                messages = self.canonical(messages)
        result = await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        return with_cut_calls(result)
