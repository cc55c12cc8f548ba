"""Every way into a chat model, with its messages made canonical first.

What LangChain serialises for callbacks and as the key of the LLM cache is the input as these
methods hand it on (see :mod:`llavakit.langchain.canonical`); there is no other way in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor

from llavakit.langchain.canonical import has_pictures


class CanonicalInputs(BaseChatModel):
    """A chat model that sees canonical messages only."""

    @abstractmethod
    def canonical(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages as traces, caches and the model see them."""

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        prompt = super()._convert_input(model_input)
        messages = prompt.to_messages()
        if not has_pictures(messages):
            return prompt
        return ChatPromptValue(messages=self.canonical(messages))

    async def _aconvert_input(self, model_input: LanguageModelInput) -> PromptValue:
        # Decoding a picture takes milliseconds, which the event loop does not have.
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
        messages = [self.canonical(conversation) for conversation in messages]
        return super().generate(messages, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        messages = [
            await run_in_executor(None, self.canonical, conversation)
            if has_pictures(conversation)
            else self.canonical(conversation)
            for conversation in messages
        ]
        return await super().agenerate(messages, stop, callbacks, **kwargs)
