"""Structured prediction: every token of the answer is held to the schema.

The framework would go by a call of a tool that has the schema for its arguments. That works
here too (``pydantic_program_mode="function"``), but JSON is shorter and asks less of a small
model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode

from llavakit._json import is_whole
from llavakit.errors import LlavaKitError

dispatcher = get_dispatcher(__name__)


class SchemaPrediction(FunctionCallingLLM):
    """A model whose ``structured_predict`` and its sisters answer with JSON of the schema.

    So do ``as_structured_llm`` and everything else of the framework that builds on them.
    Another ``pydantic_program_mode`` than the default is left to the framework.
    """

    @property
    def _by_schema(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An object of ``output_cls`` that the model fills in.

        Args:
            output_cls: a pydantic class.
            prompt: what is asked, pictures included.
            llm_kwargs: further arguments of the call.
            **prompt_args: values of the prompt's variables.

        Raises:
            LlavaKitError: ``max_tokens`` cut the answer.
            ValidationError: the class has rules that its schema does not tell.
        """
        if not self._by_schema:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _started(output_cls, prompt, prompt_args)
        messages = self._schema_messages(prompt, prompt_args)
        response = self.chat(messages, **_asking_for(output_cls, llm_kwargs))
        return _ended(_object_of(response, output_cls))

    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """As :meth:`structured_predict`, never blocking the event loop."""
        if not self._by_schema:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _started(output_cls, prompt, prompt_args)
        messages = self._schema_messages(prompt, prompt_args)
        response = await self.achat(messages, **_asking_for(output_cls, llm_kwargs))
        return _ended(_object_of(response, output_cls))

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if not self._by_schema:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages = self._schema_messages(prompt, prompt_args)
        responses = self.stream_chat(messages, **_asking_for(output_cls, llm_kwargs))
        growing = _GrowingObject(output_cls, self)
        return (growing.add(response) for response in responses)

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
        messages = self._schema_messages(prompt, prompt_args)
        responses = await self.astream_chat(messages, **_asking_for(output_cls, llm_kwargs))
        growing = _GrowingObject(output_cls, self)
        return (growing.add(response) async for response in responses)

    def _schema_messages(
        self, prompt: PromptTemplate, prompt_args: dict[str, Any]
    ) -> list[ChatMessage]:
        return self._extend_messages(prompt.format_messages(llm=self, **prompt_args))


class _GrowingObject:
    """The object of a streamed answer; before the end with the fields that are there."""

    def __init__(self, output_cls: type[Any], llm: FunctionCallingLLM) -> None:
        self._output_cls = output_cls
        self._llm = llm
        self._last: Any = None

    def add(self, response: ChatResponse) -> Any:
        if "finish_reason" in response.additional_kwargs:
            return _object_of(response, self._output_cls)
        self._last = process_streaming_objects(
            response,
            self._output_cls,
            cur_objects=None if self._last is None else [self._last],
            llm=self._llm,
        )
        return self._last


def _asking_for(output_cls: type[Any], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {**(llm_kwargs or {}), "json_schema": output_cls.model_json_schema()}


def _object_of(response: ChatResponse, output_cls: type[Any]) -> Any:
    text = response.message.content or ""
    if response.additional_kwargs.get("finish_reason") == "length" and not is_whole(text):
        raise LlavaKitError(
            f"The answer was cut before its {output_cls.__name__} was complete; raise max_tokens."
        )
    return output_cls.model_validate_json(text)


def _started(
    output_cls: type[BaseModel], prompt: PromptTemplate, prompt_args: dict[str, Any]
) -> None:
    dispatcher.event(
        LLMStructuredPredictStartEvent(
            output_cls=output_cls, template=prompt, template_args=prompt_args
        )
    )


def _ended(result: Any) -> Any:
    dispatcher.event(LLMStructuredPredictEndEvent(output=result))
    return result
