"""Structured output: a chat model bound to a schema, followed by the parser for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, TypeAlias

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser, JsonOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass
from typing_extensions import is_typeddict

from llavakit._json import is_whole
from llavakit.answer_types import WRAPPED, AnswerType, is_object, strictly_closed, wrapped
from llavakit.errors import ParameterError
from llavakit.langchain.tools import json_schema_of
from llavakit.prompts.tools import prompt_schema

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
METHODS: tuple[Method, ...] = ("json_schema", "function_calling", "json_mode")


@dataclass(frozen=True)
class Wanted:
    """The answer that is wanted.

    Attributes:
        schema: its JSON schema.
        kind: the type of the answer; None takes JSON as it is.
    """

    schema: dict[str, Any]
    kind: AnswerType | None = None

    @property
    def name(self) -> str:
        """A name for the tool, or for the response format."""
        return str(self.schema.get("title") or (self.kind and self.kind.name) or "answer")

    @property
    def grows(self) -> bool:
        """Whether a stream gives the incomplete answer as it grows: an object without classes."""
        return self.kind is None or is_typeddict(self.kind.kind)

    @property
    def appears(self) -> bool:
        """Whether a stream gives the answer as soon as it is valid, as of pydantic's classes."""
        return self.kind is not None and _is_pydantic(self.kind.kind)


def structured(
    model: BaseChatModel,
    schema: Any,
    method: Method,
    *,
    include_raw: bool,
    strict: bool | None,
    **arguments: Any,
) -> Runnable[Any, Any]:
    """Implement ``with_structured_output``; see there for the arguments."""
    if method not in METHODS:
        raise ParameterError(f"method is {method!r}; it must be one of {', '.join(METHODS)}.")
    if method == "json_mode" and strict is not None:
        raise ParameterError("strict has no meaning in json_mode; leave it out.")
    if schema is None and method == "json_mode":
        free = model.bind(response_format={"type": "json_object"}, **arguments)
        return _parsed(free, JsonOutputParser(), include_raw)
    wanted = to_wanted(schema, strict=bool(strict))
    # Classes and schemas as they are; types that LangChain may not know by their schema.
    known = wanted.appears or wanted.kind is None
    shown = schema if known else {**prompt_schema(wanted.schema), "title": wanted.name}
    arguments["ls_structured_output_format"] = {
        "kwargs": {"method": method, "strict": strict},
        "schema": shown,
    }
    if method == "function_calling":
        tool = _as_tool(wanted)
        arguments = {"parallel_tool_calls": False, **arguments}
        calling = model.bind_tools([tool], tool_choice=tool["function"]["name"], **arguments)
        return _parsed(calling, _CallParser.of(wanted), include_raw)
    body = {"name": wanted.name, "schema": wanted.schema}
    response_format = {"type": "json_schema", "json_schema": body}
    bound = model.bind(response_format=response_format, **arguments)
    return _parsed(bound, _TextParser(wanted=wanted), include_raw)


def to_wanted(schema: Any, *, strict: bool = False) -> Wanted:
    """Resolve what a schema asks for.

    Args:
        schema: a JSON schema, a tool in OpenAI's notation, or a type (see
            :class:`~llavakit.answer_types.AnswerType`).
        strict: whether objects are closed.

    Raises:
        SchemaError: ``schema`` has no JSON schema.
    """
    if isinstance(schema, Mapping):
        wanted = Wanted(json_schema_of(schema))
    else:
        kind = AnswerType(schema)
        wanted = Wanted(kind.schema, kind)
    return Wanted(strictly_closed(wanted.schema), wanted.kind) if strict else wanted


def _as_tool(wanted: Wanted) -> dict[str, Any]:
    schema = wanted.schema
    function = {
        "name": tool_name(wanted.name),
        "description": str(schema.get("description") or ""),
        "parameters": schema if is_object(schema) else wrapped(schema),
    }
    return {"type": "function", "function": function}


def tool_name(name: str) -> str:
    """Return a name that servers accept for a tool: 64 letters, digits and marks at most."""
    kept = "".join(one if one.isascii() and (one.isalnum() or one in "_-") else "_" for one in name)
    return kept.strip("_")[:64] or "answer"


class _ToTheEnd(BaseCumulativeTransformOutputParser[Any]):
    """A parser whose stream ends as one call does: with the complete answer, or with its error.

    LangChain's own streams give what is valid so far, and end silently where nothing is.
    """

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        merged = _Merged()
        last: Any = merged
        for last in super()._transform(merged.all(input)):
            yield last
        if merged.message is not None and (final := self.parse_result([merged.result])) != last:
            yield final

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        merged = _Merged()
        last: Any = merged
        async for last in super()._atransform(merged.aall(input)):
            yield last
        if merged.message is not None and (final := self.parse_result([merged.result])) != last:
            yield final


class _Merged:
    """Merges the chunks of an answer that pass through."""

    def __init__(self) -> None:
        self.message: Any = None

    @property
    def result(self) -> Generation:
        if isinstance(self.message, str):
            return Generation(text=self.message)
        return ChatGeneration(message=self.message)

    def all(self, chunks: Iterator[str | BaseMessage]) -> Iterator[str | BaseMessage]:
        for chunk in chunks:
            self._add(chunk)
            yield chunk

    async def aall(
        self, chunks: AsyncIterator[str | BaseMessage]
    ) -> AsyncIterator[str | BaseMessage]:
        async for chunk in chunks:
            self._add(chunk)
            yield chunk

    def _add(self, chunk: Any) -> None:
        self.message = chunk if self.message is None else self.message + chunk


class _TextParser(_ToTheEnd, JsonOutputParser):
    """The answer's text as the value that is wanted."""

    wanted: Any  # a Wanted, which pydantic need not look into

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        data = super().parse_result(result, partial=partial)
        return _value(self.wanted, data, partial=partial)


class _CallParser(_ToTheEnd, JsonOutputKeyToolsParser):
    """The arguments of the one call as the value that is wanted."""

    wanted: Any  # a Wanted, which pydantic need not look into

    @classmethod
    def of(cls, wanted: Wanted) -> _CallParser:
        return cls(key_name=tool_name(wanted.name), first_tool_only=True, wanted=wanted)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        arguments = super().parse_result(result, partial=partial)
        if arguments is None:
            return None
        if is_object(self.wanted.schema):
            return _value(self.wanted, arguments, partial=partial)
        if WRAPPED not in arguments:
            if partial:
                return None
            raise OutputParserException(f"The call has no {WRAPPED!r}.", llm_output=str(arguments))
        return _value(self.wanted, arguments[WRAPPED], partial=partial)


def _value(wanted: Wanted, data: Any, *, partial: bool) -> Any:
    if wanted.kind is None or (partial and wanted.grows):
        return data
    if partial and not wanted.appears:
        return None
    try:
        return wanted.kind.value(data)
    except ValueError as error:  # pydantic's errors are, and those of the class's own validators
        if partial:
            return None
        text = json.dumps(data, ensure_ascii=False)
        raise OutputParserException(
            f"Failed to parse {wanted.name} from completion {text}. Got: {error}", llm_output=text
        ) from error


def _parsed(model: Runnable[Any, Any], parser: Any, include_raw: bool) -> Runnable[Any, Any]:
    whole: Runnable[Any, Any] = RunnableGenerator(_whole, _awhole, name="Whole") | parser
    if not include_raw:
        return model | whole
    success = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | whole, parsing_error=lambda _: None
    )
    failure = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | success.with_fallbacks([failure], exception_key="parsing_error")


def _whole(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    seen = _PartialAnswer()
    for message in messages:
        yield seen.uncut(message)


async def _awhole(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    seen = _PartialAnswer()
    async for message in messages:
        yield seen.uncut(message)


class _PartialAnswer:
    """The answer so far.

    LangChain's parsers complete an object that was cut, with a fragment of its last value.
    """

    def __init__(self) -> None:
        self._text = ""
        self._called = False

    def uncut(self, message: BaseMessage) -> BaseMessage:
        """Return the message; raise if the answer was cut within its object."""
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
