"""Structured prediction: every token of the answer is constrained by the schema.

The framework would use a call of a tool that has the schema for its arguments. That works
here too (``pydantic_program_mode="function"``), but JSON is shorter and asks less of a small
model. The framework takes pydantic classes alone; here any type that has a schema is taken.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import RootModel, create_model

from llavakit._checks import checked
from llavakit._json import is_whole
from llavakit.answer_types import AnswerType
from llavakit.errors import LlavaKitError

dispatcher = get_dispatcher(__name__)


class SchemaPrediction(FunctionCallingLLM):
    """A model whose ``structured_predict`` and its variants answer with JSON of the schema.

    So do ``as_structured_llm`` and everything else of the framework that builds on them.
    Another ``pydantic_program_mode`` than the default is left to the framework.
    """

    @property
    def _by_schema(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    @checked
    def as_structured_llm(self, output_cls: Any, **kwargs: Any) -> StructuredLLM:
        """Return a model whose answers are objects of a class, or values of any type with a schema.

        Raises:
            SchemaError: ``output_cls`` has no schema.
        """
        kind = AnswerType(output_cls)
        if _is_class(output_cls):
            return super().as_structured_llm(output_cls, **kwargs)
        return ValueLLM(llm=self, output_cls=_rooted(kind), **kwargs)

    @checked
    def structured_predict(
        self,
        output_cls: Any,
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Return an object of ``output_cls`` that the model fills in.

        Args:
            output_cls: a pydantic class, or any type that has a schema (see
                :class:`~llavakit.answer_types.AnswerType`).
            prompt: what is asked, images included.
            llm_kwargs: further arguments of the call.
            **prompt_args: values of the prompt's variables.

        Raises:
            SchemaError: ``output_cls`` has no schema.
            LlavaKitError: ``max_tokens`` cut the answer.
            ValidationError: the class has rules that its schema does not express.
        """
        kind = AnswerType(output_cls)
        if (container := self._container(kind)) is not None:
            return _contained(self.structured_predict(container, prompt, llm_kwargs, **prompt_args))
        if not self._by_schema:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _started(output_cls, prompt, prompt_args)
        messages = self._schema_messages(prompt, prompt_args)
        response = self.chat(messages, **_asking_for(kind, llm_kwargs))
        return _ended(_value_of(response, kind))

    @checked
    async def astructured_predict(
        self,
        output_cls: Any,
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Run :meth:`structured_predict` without blocking the event loop."""
        kind = AnswerType(output_cls)
        if (container := self._container(kind)) is not None:
            found = await self.astructured_predict(container, prompt, llm_kwargs, **prompt_args)
            return _contained(found)
        if not self._by_schema:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _started(output_cls, prompt, prompt_args)
        messages = self._schema_messages(prompt, prompt_args)
        response = await self.achat(messages, **_asking_for(kind, llm_kwargs))
        return _ended(_value_of(response, kind))

    @checked
    def stream_structured_predict(
        self,
        output_cls: Any,
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """Stream :meth:`structured_predict` as it grows; a value without fields comes once."""
        container = self._container(AnswerType(output_cls))
        if container is None:
            return super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        found = super().stream_structured_predict(container, prompt, llm_kwargs, **prompt_args)
        return (_contained(one) for one in found if isinstance(one, container))

    @checked
    async def astream_structured_predict(
        self,
        output_cls: Any,
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """Run :meth:`stream_structured_predict` without blocking the event loop."""
        container = self._container(AnswerType(output_cls))
        if container is None:
            return await super().astream_structured_predict(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
        found = await super().astream_structured_predict(
            container, prompt, llm_kwargs, **prompt_args
        )
        return (_contained(one) async for one in found if isinstance(one, container))

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if not self._by_schema:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        kind = AnswerType(output_cls)
        messages = self._schema_messages(prompt, prompt_args)
        responses = self.stream_chat(messages, **_asking_for(kind, llm_kwargs))
        growing = _GrowingObject(kind, self)
        return (one for response in responses for one in growing.add(response))

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if not self._by_schema:
            return await super()._structured_astream_call(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
        kind = AnswerType(output_cls)
        messages = self._schema_messages(prompt, prompt_args)
        responses = await self.astream_chat(messages, **_asking_for(kind, llm_kwargs))
        growing = _GrowingObject(kind, self)
        return (one async for response in responses for one in growing.add(response))

    def _container(self, kind: AnswerType) -> type[BaseModel] | None:
        """A pydantic class around a value of the type, where the framework takes no other type.

        Arguments of a tool are an object; the answer's text may be any JSON.
        """
        if _is_class(kind.kind) and (self._by_schema or kind.is_object):
            return None
        if self._by_schema:
            return _rooted(kind)
        return create_model("answer", value=(kind.known, ...))

    def _schema_messages(
        self, prompt: BasePromptTemplate, prompt_args: dict[str, Any]
    ) -> list[ChatMessage]:
        return self._extend_messages(prompt.format_messages(llm=self, **prompt_args))


class ValueLLM(StructuredLLM):
    """The framework's structured LLM for types that are not pydantic classes.

    ``raw`` of an answer is the value; its text is the value's JSON.
    """

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _unrooted(super().chat(messages, **kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return (_unrooted(one) for one in super().stream_chat(messages, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _unrooted(await super().achat(messages, **kwargs))

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        found = await super().astream_chat(messages, **kwargs)
        return (_unrooted(one) async for one in found)


def _unrooted(response: ChatResponse) -> ChatResponse:
    held: Any = response.raw
    return response.model_copy(update={"raw": held.root})


def _rooted(kind: AnswerType) -> type[BaseModel]:
    """A pydantic class that has only a value of the type."""
    return type(kind.name, (RootModel[kind.known],), {})  # type: ignore[name-defined]


def _contained(found: Any) -> Any:
    return found.root if isinstance(found, RootModel) else found.value


def _is_class(output_cls: Any) -> bool:
    return isinstance(output_cls, type) and issubclass(output_cls, BaseModel)


class _GrowingObject:
    """The object of a streamed answer; before the end with the fields that are complete.

    A value that has no fields is emitted once, at the end.
    """

    def __init__(self, kind: AnswerType, llm: FunctionCallingLLM) -> None:
        self._kind = kind
        self._llm = llm
        self._last: Any = None

    def add(self, response: ChatResponse) -> list[Any]:
        """Add a response and return the objects to emit by now."""
        if "finish_reason" in response.additional_kwargs:
            return [_value_of(response, self._kind)]
        if issubclass(self._kind.kind, RootModel):
            return []
        self._last = process_streaming_objects(
            response,
            self._kind.kind,
            cur_objects=None if self._last is None else [self._last],
            llm=self._llm,
        )
        return [self._last]


def _asking_for(kind: AnswerType, llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {**(llm_kwargs or {}), "json_schema": kind.schema}


def _value_of(response: ChatResponse, kind: AnswerType) -> Any:
    text = response.message.content or ""
    if response.additional_kwargs.get("finish_reason") == "length" and not is_whole(text):
        raise LlavaKitError(
            f"The answer was cut before its {kind.name} was complete; raise max_tokens."
        )
    return kind.value_of_json(text)


def _started(output_cls: Any, prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> None:
    dispatcher.event(
        LLMStructuredPredictStartEvent(
            output_cls=output_cls, template=prompt, template_args=prompt_args
        )
    )


def _ended(result: Any) -> Any:
    dispatcher.event(LLMStructuredPredictEndEvent(output=result))
    return result
