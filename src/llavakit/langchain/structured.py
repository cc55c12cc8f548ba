"""Structured output: a chat model bound to a schema, followed by the parser for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from operator import itemgetter
from typing import Any, Literal, TypeAlias

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from llavakit._json import is_whole
from llavakit.errors import ParameterError
from llavakit.langchain.tools import json_schema_of, to_openai_tools

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
METHODS: tuple[Method, ...] = ("json_schema", "function_calling", "json_mode")


def structured(
    model: BaseChatModel,
    schema: Any,
    method: Method,
    *,
    include_raw: bool,
    strict: bool | None,
    **arguments: Any,
) -> Runnable[Any, Any]:
    """What ``with_structured_output`` gives; see there for the arguments."""
    if method not in METHODS:
        raise ParameterError(f"method is {method!r}; it must be one of {', '.join(METHODS)}.")
    if schema is None and method != "json_mode":
        raise ParameterError(f"The method {method!r} needs a schema.")
    if method == "json_mode" and strict is not None:
        raise ParameterError("strict has no meaning in json_mode; leave it out.")
    if schema is not None:
        arguments["ls_structured_output_format"] = {
            "kwargs": {"method": method, "strict": strict},
            "schema": schema,
        }
    if method == "function_calling":
        name = to_openai_tools([schema])[0]["function"]["name"]
        arguments = {"parallel_tool_calls": False, **arguments}
        bound = model.bind_tools([schema], tool_choice=name, strict=strict, **arguments)
        return _parsed(bound, _call_parser(schema, name), include_raw)
    bound = model.bind(response_format=_response_format(schema, method, strict), **arguments)
    return _parsed(bound, _text_parser(schema), include_raw)


def _response_format(schema: Any, method: Method, strict: bool | None) -> dict[str, Any]:
    if schema is None:
        return {"type": "json_object"}
    body = json_schema_of(schema, strict=strict)
    name = str(body.get("title", "answer"))
    return {"type": "json_schema", "json_schema": {"name": name, "schema": body}}


def _text_parser(schema: Any) -> BaseOutputParser[Any]:
    if _is_pydantic(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _call_parser(schema: Any, tool_name: str) -> BaseOutputParser[Any]:
    if _is_pydantic(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=tool_name, first_tool_only=True)


def _parsed(
    model: Runnable[Any, Any], parser: BaseOutputParser[Any], include_raw: bool
) -> Runnable[Any, Any]:
    whole: Runnable[Any, Any] = RunnableGenerator(_whole, _awhole, name="Whole") | parser
    if not include_raw:
        return model | whole
    success = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | whole, parsing_error=lambda _: None
    )
    failure = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | success.with_fallbacks([failure], exception_key="parsing_error")


def _whole(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    seen = _Seen()
    for message in messages:
        yield seen.uncut(message)


async def _awhole(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    seen = _Seen()
    async for message in messages:
        yield seen.uncut(message)


class _Seen:
    """What came so far of an answer.

    LangChain's parsers complete an object that was cut, with a part of its last value.
    """

    def __init__(self) -> None:
        self._text = ""
        self._called = False

    def uncut(self, message: BaseMessage) -> BaseMessage:
        """The message, unless the answer was cut within its object."""
        self._text += message.text
        self._called |= bool(getattr(message, "tool_calls", None))
        cut = message.response_metadata.get("finish_reason") == "length"
        if cut and not self._called and not is_whole(self._text):
            raise OutputParserException(
                "The answer was cut before its object was complete; raise max_tokens.",
                llm_output=self._text,
            )
        return message


def _is_pydantic(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)
