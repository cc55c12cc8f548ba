"""``LLaVA``: a LLaVA model as a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool
from pydantic import model_validator

from llavakit._checks import checked
from llavakit.arguments import Call, to_call
from llavakit.backend import Backend
from llavakit.llama_index.messages import has_media, to_messages
from llavakit.llama_index.metadata import ModelMetadata
from llavakit.llama_index.responses import Growing, to_completion, to_response, to_selections
from llavakit.llama_index.tools import to_openai_tools, to_tools
from llavakit.streams import AnswerStream

if TYPE_CHECKING:
    from llavakit.llama_index.memory import LLaVAChatMemoryBuffer, LLaVAMemory
    from llavakit.llama_index.planning import PicturePromptHelper


class LLaVA(ModelMetadata):
    """LLaVA as an LLM of LlamaIndex: images and text in, text and tool calls out.

    >>> from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    >>> llm = LLaVA(model="demo", temperature=0)
    >>> question = ChatMessage(blocks=[
    ...     ImageBlock(path="circle.png"), TextBlock(text="What colour is the circle?"),
    ... ])  # doctest: +SKIP
    >>> llm.chat([question]).message.content  # doctest: +SKIP
    'red'

    Takes images in every block and node that LlamaIndex programs use (see
    :mod:`llavakit.llama_index.content_blocks`). All objects of one configuration, in all threads,
    share one model, which batches their requests. Cancelling an awaited call or closing a
    stream frees the model. Prompts are written by the checkpoint's own template
    (``conv_mode``), so that ``messages_to_prompt`` cannot be set.
    """

    json_mode: bool = False
    """Constrain answers to a JSON object, unless a call says otherwise; the name is Ollama's."""
    image_detail: Literal["low", "high", "auto"] | None = None
    """Accepted for programs written for OpenAI, and without effect: LLaVA's own processor decides
    the resolution of every image."""

    @model_validator(mode="after")
    def _json_mode_is_a_format(self) -> Self:
        if self.json_mode and self.format is None:
            self.format = "json"
        return self

    # One call

    def _prepared(
        self, messages: Sequence[ChatMessage], arguments: dict[str, Any]
    ) -> tuple[Backend, Call]:
        messages = self._with_system_prompt(messages)
        call = to_call(
            self._sampling(),
            arguments,
            tools=to_tools,
            messages=lambda: to_messages(messages, self._open_document),
        )
        return self.backend_for(), call

    async def _aprepared(
        self, messages: Sequence[ChatMessage], arguments: dict[str, Any]
    ) -> tuple[Backend, Call]:
        if has_media(messages):  # base64 of megabytes, pages of a PDF
            return await asyncio.to_thread(self._prepared, messages, arguments)
        return self._prepared(messages, arguments)

    def _with_system_prompt(self, messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        # Some paths of the framework have added it already, others have not.
        prompt = self.system_prompt
        if not prompt or any(
            message.role == MessageRole.SYSTEM and message.content == prompt for message in messages
        ):
            return messages
        return [ChatMessage(role=MessageRole.SYSTEM, content=prompt), *messages]

    def _prompt_messages(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    def _chat(self, messages: Sequence[ChatMessage], arguments: dict[str, Any]) -> ChatResponse:
        backend, call = self._prepared(messages, arguments)
        completion = backend.generate(call.messages, call.params, **call.options)
        return to_response(completion, self._model_name)

    async def _achat(
        self, messages: Sequence[ChatMessage], arguments: dict[str, Any]
    ) -> ChatResponse:
        backend, call = await self._aprepared(messages, arguments)
        completion = await backend.agenerate(call.messages, call.params, **call.options)
        return to_response(completion, self._model_name)

    def _stream(
        self, messages: Sequence[ChatMessage], arguments: dict[str, Any]
    ) -> Generator[ChatResponse, None, None]:
        # Submitted at once, so that bad input raises here and not at the first chunk.
        backend, call = self._prepared(messages, arguments)
        stream = backend.stream(call.messages, call.params, **call.options)
        return _responses(stream, Growing(self._model_name))

    async def _astream(
        self, messages: Sequence[ChatMessage], arguments: dict[str, Any]
    ) -> AsyncGenerator[ChatResponse, None]:
        backend, call = await self._aprepared(messages, arguments)
        growing = Growing(self._model_name)

        async def responses() -> AsyncGenerator[ChatResponse, None]:
            stream = backend.astream(call.messages, call.params, **call.options)
            async with aclosing(cast("Any", stream)) as chunks:
                async for chunk in chunks:
                    yield growing.add(chunk)

        return responses()

    # The framework's eight methods. Each reports itself to callbacks, so none calls another.

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation.

        Args:
            messages: the conversation, with images wherever they stand.
            **kwargs: fields of :class:`llavakit.SamplingParams`, ``tools``, ``tool_choice``,
                ``parallel_tool_calls``, ``timeout``, ``response_format``.

        Raises:
            InputError: something that cannot be translated; nothing was run.
        """
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream :meth:`chat`; closing the generator frees the model."""
        return self._stream(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Run :meth:`chat` without blocking the event loop; cancelling it frees the model."""
        return await self._achat(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Run :meth:`stream_chat` without blocking the event loop."""
        return await self._astream(messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, which is a user's message.

        Args:
            prompt: the text.
            formatted: whether ``completion_to_prompt`` was applied already.
            **kwargs: as in :meth:`chat`.
        """
        return to_completion(self._chat(self._prompt_messages(prompt, formatted), kwargs))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Stream :meth:`complete`."""
        return completions(self._stream(self._prompt_messages(prompt, formatted), kwargs))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Run :meth:`complete` without blocking the event loop."""
        return to_completion(await self._achat(self._prompt_messages(prompt, formatted), kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Run :meth:`stream_complete` without blocking the event loop."""
        return acompletions(await self._astream(self._prompt_messages(prompt, formatted), kwargs))

    # Tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        choice = kwargs.pop("tool_choice", None)
        if choice is None:
            choice = "required" if tool_required else "auto"
        return {
            **kwargs,
            "messages": messages,
            "tools": to_openai_tools(tools),
            "tool_choice": choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
        }

    @checked
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of a response, also of one that still grows.

        Raises:
            LlavaKitError: there is no call, and ``error_on_no_tool_call`` is set.
        """
        return to_selections(response, required=error_on_no_tool_call)

    # Tokens

    @checked
    def count_tokens(self, messages: Sequence[ChatMessage] | str, tools: Sequence[Any] = ()) -> int:
        """Count the tokens of the prompt, images and tools included; nothing is run.

        Of an image at a URL only the beginning is fetched, under the policy, to find its size.

        Args:
            messages: a conversation, or a question in plain words.
            tools: tools that are offered.
        """
        if isinstance(messages, str):
            messages = self._prompt_messages(messages, formatted=True)
        prompted = self._with_system_prompt(messages)
        conversation = to_messages(prompted, self._open_document)
        return self.backend_for().count_tokens(conversation, tools=to_tools(tools))

    def chat_prompt_helper(self, **settings: Any) -> PicturePromptHelper:
        """Return a prompt helper that plans with the real tokens of images.

        >>> get_response_synthesizer(
        ...     llm=llm, multimodal=True, chat_prompt_helper=llm.chat_prompt_helper()
        ... )  # doctest: +SKIP
        """
        # Here, because older versions of the framework have no chat prompt helper.
        from llavakit.llama_index.planning import PicturePromptHelper

        return PicturePromptHelper(self, **settings)

    def chat_memory_buffer(self, **settings: Any) -> LLaVAChatMemoryBuffer:
        """Return a ``ChatMemoryBuffer`` that counts as the model does, images included.

        Args:
            **settings: arguments of ``ChatMemoryBuffer.from_defaults``; ``token_limit`` is three
                quarters of the context unless it is given.
        """
        from llavakit.llama_index.memory import buffer_for

        return buffer_for(self, **settings)

    def memory(self, **settings: Any) -> LLaVAMemory:
        """Return a ``Memory`` that counts as the model does, images included.

        Args:
            **settings: arguments of ``Memory.from_defaults``; ``token_limit`` is three quarters of
                the context unless it is given.
        """
        from llavakit.llama_index.memory import memory_for

        return memory_for(self, **settings)


def _responses(stream: AnswerStream, growing: Growing) -> Generator[ChatResponse, None, None]:
    with stream:
        for chunk in stream:
            yield growing.add(chunk)


def completions(responses: Generator[ChatResponse, None, None]) -> CompletionResponseGen:
    """Convert a streamed chat to a streamed completion."""
    for response in responses:
        yield to_completion(response)


async def acompletions(
    responses: AsyncGenerator[ChatResponse, None],
) -> CompletionResponseAsyncGen:
    """Run :func:`completions` on an async stream."""
    async with aclosing(responses) as later:
        async for response in later:
            yield to_completion(response)
