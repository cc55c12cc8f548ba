"""Whether an answer is what was asked for; servers say 200 and ignore what they do not know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from llavakit.engine.schema_faults import schema_named, tool_named
from llavakit.errors import RemoteError, SchemaError
from llavakit.remote.dialects import Dialect, is_lark
from llavakit.remote.validation import check_schema, faults
from llavakit.values import FinishReason, Request

_ADVICE = "ask again, or use a server that enforces it (llavakit serve, vLLM, SGLang)"


def check_request(request: Request) -> None:
    """Refuses schemas that an answer could not be checked against.

    Raises:
        SchemaError: a schema or a tool's parameters, or a grammar that is none.
    """
    schema = request.params.json_schema
    if schema is not None and schema is not True:
        check_schema(schema, schema_named(schema))
    for tool in request.tools:
        check_schema(tool.parameters, tool_named(tool.name))
    if request.params.grammar is not None:
        _matcher(request.params.grammar)


@dataclass(frozen=True, slots=True)
class CalledText:
    """A call as a server wrote it; the arguments should be JSON."""

    name: str
    arguments: str


class AnswerChecks:
    """What an answer to a request must hold.

    Args:
        request: what was asked.
        dialect: of the server that answered.
    """

    def __init__(self, request: Request, dialect: Dialect) -> None:
        self._request = request
        self._dialect = dialect
        params = request.params
        self.needs_text = params.json_schema is not None or params.grammar is not None

    def check(self, text: str, calls: Sequence[CalledText], finish: FinishReason) -> None:
        """Judges the whole answer.

        Args:
            text: its text, if ``needs_text``.
            calls: whole calls. One that the token limit cut is none, and not among them.
            finish: why it ended.

        Raises:
            RemoteError: it is not what was asked for.
        """
        try:
            self._check_calls(calls, finish)
            if finish == "stop" and not calls:
                self._check_text(text)
        except RecursionError as error:
            raise SchemaError("The schema refers to itself without end.") from error

    def _check_calls(self, calls: Sequence[CalledText], finish: FinishReason) -> None:
        request = self._request
        choice = request.tool_choice
        if not request.tools and calls:
            self._refuse("the server called a tool, and none was offered")
        if choice == "none" and calls:
            self._refuse("tool_choice is 'none', and the answer is a tool call")
        if not request.parallel_tool_calls and len(calls) > 1:
            self._refuse(f"one tool call at most was asked for, and {len(calls)} came")
        if choice not in ("auto", "none") and not calls and finish != "length":
            what = "a tool call" if choice == "required" else f"a call of {choice!r}"
            self._refuse(f"{what} was demanded, and the answer has none")
        for call in calls:
            self._check_call(call)

    def _check_call(self, call: CalledText) -> None:
        choice = self._request.tool_choice
        tools = {tool.name: tool for tool in self._request.tools}
        if call.name not in tools:
            offered = ", ".join(tools)
            self._refuse(f"the answer calls {call.name!r}; offered were {offered}")
        if choice not in ("auto", "required", call.name):
            self._refuse(f"a call of {choice!r} was demanded, and {call.name!r} was called")
        schema = {"type": "object", **tools[call.name].parameters}
        self._check_json(call.arguments, schema, f"the arguments of {call.name!r}")

    def _check_text(self, text: str) -> None:
        params = self._request.params
        if params.json_schema is not None:
            schema = {"type": "object"} if params.json_schema is True else params.json_schema
            self._check_json(text, schema, "the answer")
        elif params.grammar is not None and not _obeys(text, params.grammar):
            self._refuse("the answer does not follow the grammar")

    def _check_json(self, text: str, schema: Mapping[str, Any], what: str) -> None:
        try:
            value = _parsed(text)
        except (ValueError, RecursionError):
            self._refuse(f"{what} must be JSON of a schema and begins {text[:60]!r}")
        wrong = next(faults(value, schema), None)
        if wrong is not None:
            self._refuse(f"{what} must be JSON of a schema and is not: {wrong[0]}: {wrong[1]}")

    def _refuse(self, what: str) -> NoReturn:
        title = self._dialect.title
        why = "seems to have ignored it" if self._dialect.enforces else "enforces nothing"
        stop = "; a stop string may have cut it" if self._request.params.stop else ""
        raise RemoteError(
            f"{what[0].upper()}{what[1:]}{stop}. This server ({title}) {why}: {_ADVICE}."
        )


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _matcher(grammar: str) -> Any:
    """A matcher over bytes, of the library that the local engine decodes with."""
    import llguidance

    if not is_lark(grammar):
        grammar = llguidance.LLMatcher.grammar_from_regex(grammar)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    if matcher.is_error():
        reason = (str(matcher.get_error()).strip() or "no reason given").splitlines()[0]
        raise SchemaError(f"The grammar cannot be used: {reason}")
    return matcher


def _obeys(text: str, grammar: str) -> bool:
    matcher, tokens = _matcher(grammar), list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())
