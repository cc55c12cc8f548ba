"""``ChatLLaVA``: a LLaVA model as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, model_validator

from llavakit._checks import check_integer, checked
from llavakit.arguments import Call, to_call, to_tool_choice, unaliased
from llavakit.backend import Backend
from llavakit.documents.message import Attachment, page_images
from llavakit.errors import ParameterError
from llavakit.langchain.canonical import canonical, has_documents
from llavakit.langchain.chunks import PROVIDER, Streamed, to_result, to_results
from llavakit.langchain.errors import in_langchains_tree
from llavakit.langchain.inputs import RecordedInputs
from llavakit.langchain.messages import to_conversation, to_messages
from llavakit.langchain.plain import plain_messages
from llavakit.langchain.serializable import SerializableModel
from llavakit.langchain.structured import Method, structured
from llavakit.langchain.tools import to_openai_tools, to_tools, tools_of_call
from llavakit.langchain.tracing import traced_settings
from llavakit.model.catalog import context_length, takes_videos
from llavakit.settings import ModelSettings
from llavakit.values import Image


class ChatLLaVA(SerializableModel, RecordedInputs, ModelSettings):
    """LLaVA as a chat model: images and text in, text and tool calls out.

    >>> from langchain_core.messages import HumanMessage
    >>> model = ChatLLaVA(model="demo", temperature=0)
    >>> question = HumanMessage([
    ...     {"type": "text", "text": "What colour is the circle?"},
    ...     {"type": "image", "path": "circle.png"},
    ... ])
    >>> model.invoke([question]).content  # doctest: +SKIP
    'red'

    Takes every notation of images that LangChain programs use (see
    :mod:`llavakit.langchain.content_blocks`). All objects of one configuration, in all threads,
    share one model, which batches their requests, those of ``batch`` and ``abatch`` too.
    Cancelling ``ainvoke`` or closing a stream frees the model.

    Callbacks, traces and histories receive the messages as they were given, objects as base64
    (:mod:`llavakit.langchain.plain`); the LLM cache is keyed by the pixels
    (:mod:`llavakit.langchain.canonical`). Errors are LangChain's as well as llavakit's
    (:mod:`llavakit.langchain.errors`).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    # None, not False: LangChain takes a False that was set (and a copy by
    # `configurable_fields` sets every field) for "never stream".
    streaming: bool | None = None
    """Whether ``invoke`` streams, so that callbacks see each token."""
    stream_usage: bool = True
    """Whether the last chunk of a stream reports the token usage."""
    n: int | None = Field(default=None, ge=1)
    """Answers to one prompt, which is computed once; ``generate`` gives them all."""
    trace_images: Literal["inline", "digest"] = "inline"
    """What callbacks, and so traces and histories, receive of an image: the image, or the
    digest of its pixels. With ``"digest"`` a history that is kept through callbacks
    (``RunnableWithMessageHistory``) holds digests, which cannot be opened again."""

    @model_validator(mode="after")
    def _set_llavakit_version(self) -> ChatLLaVA:
        from llavakit import __version__

        self._add_version("llavakit", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        answers = {} if self.n is None else {"n": self.n}
        return {**self.identity(), "output_version": self.output_version, **answers}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # The key of the cache has every setting with its value, a default too; the framework
        # would take the object's serialised form, which leaves out backends and defaults.
        params = {**self._get_invocation_params(stop=stop, **kwargs), **kwargs}
        return str(sorted(params.items()))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return traced_settings(self, "chat", stop, kwargs)

    def _resolve_model_profile(self) -> ModelProfile:
        profile = ModelProfile(
            text_inputs=True,
            image_inputs=True,
            image_url_inputs=True,
            image_tool_message=True,
            pdf_inputs=True,
            audio_inputs=False,
            video_inputs=takes_videos(self.model),
            text_outputs=True,
            reasoning_output=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            temperature=True,
        )
        # What is known without opening the model.
        limit = self.context_length or context_length(self.model)
        if limit is not None:
            profile["max_input_tokens"] = limit
        return profile

    def _prepared(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, arguments: dict[str, Any]
    ) -> tuple[Backend, Call, str]:
        """The backend, the call for it, and the model's name for the answer."""
        given = unaliased(arguments if stop is None else {**arguments, "stop": stop})
        model = given.pop("model", None)
        call = to_call(
            self._sampling(),
            given,
            tools=tools_of_call,
            messages=lambda: to_conversation(messages, self._open_document),
            framework=("stream",),  # LangChain has heeded it before the arguments come here
        )
        return self.backend_for(model), call, model or self.model

    async def _aprepared(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, arguments: dict[str, Any]
    ) -> tuple[Backend, Call, str]:
        if has_documents(messages):  # one that has to be fetched and rendered
            return await run_in_executor(None, self._prepared, messages, stop, arguments)
        return self._prepared(messages, stop, arguments)

    def _open_document(self, document: Attachment) -> list[Image]:
        return page_images(document, self.max_pages, self.policy)

    @checked
    def canonical(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the messages as caches and the model see them."""
        return canonical(messages, self.policy, self.max_pages)

    @checked
    def recorded(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the messages as traces, callbacks and histories see them."""
        if self.trace_images == "digest":
            return self.canonical(messages)
        return plain_messages(messages)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with in_langchains_tree():
            n = self._answers(kwargs)
            backend, call, model = self._prepared(messages, stop, kwargs)
            if n == 1:
                answer = backend.generate(call.messages, call.params, **call.options)
                return to_result(answer, model)
            return to_results(
                backend.choices(call.messages, call.params, n=n, **call.options), model
            )

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with in_langchains_tree():
            n = self._answers(kwargs)
            backend, call, model = await self._aprepared(messages, stop, kwargs)
            if n == 1:
                answer = await backend.agenerate(call.messages, call.params, **call.options)
                return to_result(answer, model)
            answers = await backend.achoices(call.messages, call.params, n=n, **call.options)
            return to_results(answers, model)

    def _answers(self, arguments: dict[str, Any], *, streamed: bool = False) -> int:
        """The number of answers that a call asks for, removed from its arguments."""
        given = arguments.pop("n", None)
        n = check_integer("n", self.n or 1 if given is None else given, least=1)
        if streamed and n > 1:
            raise ParameterError(
                f"n is {n}, and a stream is one answer; call generate, or stream n times."
            )
        return n

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with in_langchains_tree():
            self._answers(kwargs, streamed=True)
            streamed = self._streamed(kwargs)
            backend, call, model = self._prepared(messages, stop, kwargs)
            answer = streamed(model)
            with backend.stream(call.messages, call.params, **call.options) as chunks:
                for chunk in chunks:
                    converted = answer.convert(chunk)
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=converted)
                    yield converted

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with in_langchains_tree():
            self._answers(kwargs, streamed=True)
            streamed = self._streamed(kwargs)
            backend, call, model = await self._aprepared(messages, stop, kwargs)
            answer = streamed(model)
            stream = backend.astream(call.messages, call.params, **call.options)
            async with aclosing(cast("Any", stream)) as chunks:
                async for chunk in chunks:
                    converted = answer.convert(chunk)
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=converted)
                    yield converted

    def _streamed(self, arguments: dict[str, Any]) -> Callable[[str], Streamed]:
        """A converter of the answer's chunks; its own settings are removed from the arguments."""
        given = arguments.pop("stream_usage", None)
        return partial(Streamed, usage=self.stream_usage if given is None else bool(given))

    # Tokens

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of ``text`` as a user's message, the template around it included."""
        return self.backend_for().count_tokens(text)

    @checked
    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count the tokens of the prompt, images and tools included; nothing is run.

        Of an image at a URL only the beginning is fetched, under the policy, to find its size.
        """
        if isinstance(messages, str):
            raise ParameterError(
                "messages is a string; give a list of messages, or get_num_tokens."
            )
        if not messages:
            return 0
        with in_langchains_tree():
            conversation = to_messages(self.canonical(messages), self._open_document)
            return self.backend_for().count_tokens(conversation, tools=to_tools(tools or ()))

    def get_token_ids(self, text: str) -> list[int]:
        """Return the ids of ``custom_get_token_ids``; a backend counts tokens and has no ids."""
        if self.custom_get_token_ids is None:
            raise NotImplementedError(
                "llavakit gives no token ids; use get_num_tokens, or set custom_get_token_ids."
            )
        return self.custom_get_token_ids(text)

    # Tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools that the model may call.

        Args:
            tools: functions, pydantic classes, LangChain tools, or dicts in OpenAI's,
                Anthropic's or Bedrock's notation.
            tool_choice: ``"auto"``, ``"none"``, ``"any"`` = ``"required"`` = True, the name
                of a tool, or a dict that names one.
            strict: whether schemas are closed; calls follow their schema either way.
            **kwargs: further arguments of the call (``parallel_tool_calls``,
                ``response_format``, ``temperature``, ...).

        Raises:
            ParameterError: ``tool_choice`` names no tool.
        """
        formatted = to_openai_tools(tools, strict=strict)
        if tool_choice is not None:
            kwargs["tool_choice"] = to_tool_choice(tool_choice, to_tools(formatted))
        return self.bind(tools=formatted, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return the model with answers that follow a schema.

        Args:
            schema: a pydantic class (answers are its instances), a TypedDict, a JSON schema
                or a tool in OpenAI's notation (answers are dicts).
            method: ``"json_schema"`` constrains every token to the schema;
                ``"function_calling"`` asks for a call of a tool of that schema;
                ``"json_mode"`` does the same, and without a schema constrains the
                answer to any JSON object, which the prompt describes.
            include_raw: answer with a dict of ``raw``, ``parsed`` and ``parsing_error``.
            strict: whether objects are closed (no further properties).
            **kwargs: further arguments of the call.

        Raises:
            ParameterError: an unknown method, no schema, or ``strict`` in JSON mode.
            SchemaError: ``schema`` has no JSON schema.
        """
        return structured(self, schema, method, include_raw=include_raw, strict=strict, **kwargs)
