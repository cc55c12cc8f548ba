"""Arguments as callers of the frameworks write them -> llavakit's own, merged and checked.

Pure functions over dictionaries that know no framework: what each framework's model class
accepts by name is the same. An unknown argument is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from llavakit import _checks
from llavakit.errors import ParameterError
from llavakit.prompts.conversation import check_answerable
from llavakit.values import REQUEST_OPTIONS, Message, SamplingParams, Tool

ALIASES = {
    "model_name": "model",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "request_timeout": "timeout",
    "num_ctx": "context_length",
    "context_window": "context_length",
    "openai_api_key": "api_key",
    "openai_api_base": "base_url",
    "api_base": "base_url",
    "async_client_kwargs": "client_kwargs",
    "async_http_client": "http_async_client",
    "additional_kwargs": "model_kwargs",
}
"""Names that other chat models use for the same settings."""

CALL_ARGUMENTS = (*SamplingParams.names(), "top_logprobs", *REQUEST_OPTIONS, "response_format")
"""Names of the arguments of a call."""

_CONSTRAINTS = frozenset({"response_format", "json_schema", "grammar"})
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}
_CHOICES = {"any": "required", "required": "required", "auto": "auto", "none": "none"}


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of ``Backend.generate`` and its variants."""

    messages: tuple[Message, ...]
    params: SamplingParams
    options: dict[str, Any]


def merged(
    settings: Mapping[str, Any], arguments: Mapping[str, Any], framework: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the settings of a model with the arguments of one call over them.

    None means "not set" in both.

    Args:
        settings: settings of the model object.
        arguments: arguments of the call, under any of their names.
        framework: names that only the framework understands.

    Raises:
        ParameterError: an unknown argument, or one that is given twice.
    """
    given = unaliased(arguments)
    check_known(given, (*CALL_ARGUMENTS, *framework), "This call")
    return over(settings, {name: value for name, value in given.items() if value is not None})


def to_call(
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    tools: Callable[[Sequence[Any]], tuple[Tool, ...]],
    messages: Callable[[], tuple[Message, ...]],
    framework: Sequence[str] = (),
) -> Call:
    """Return one call of a model, of what the object is set to and what the call itself says.

    Args:
        settings: sampling settings and timeout of the model object; None is "not set".
        arguments: arguments of the call, which win; None is "not set" here too.
        tools: reads a framework's tools.
        messages: reads the framework's messages; called once the arguments are known to be good.
        framework: names that only the framework understands.

    Raises:
        ParameterError: an unknown argument, or a value out of range.
        InputError: messages that cannot be honoured.
    """
    given = merged(settings, arguments, framework)
    options = to_options(given, tools(given.get("tools") or ()))
    conversation = messages()
    check_answerable(conversation, continues=options["continue_final_message"])
    return Call(conversation, to_params(given), options)


def over(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return one call's arguments laid over those of every call.

    A constraint of the call (a schema, a grammar) replaces the constraint of every call, whichever
    name either is given by.
    """
    replaced = _CONSTRAINTS if given.keys() & _CONSTRAINTS else frozenset()
    return {name: value for name, value in settings.items() if name not in replaced} | dict(given)


def to_options(settings: Mapping[str, Any], tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the options of ``Backend.generate`` among merged settings.

    Raises:
        ParameterError: ``tool_choice`` names an unknown tool.
    """
    parallel = settings.get("parallel_tool_calls")
    return {
        "tools": tuple(tools),
        "tool_choice": to_tool_choice(settings.get("tool_choice"), tools),
        "parallel_tool_calls": True if parallel is None else parallel,
        "timeout": settings.get("timeout"),
        "add_generation_prompt": settings.get("add_generation_prompt"),
        "continue_final_message": settings.get("continue_final_message") or False,
    }


def from_openai(tools: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Return tools of llavakit from functions in OpenAI's notation.

    Raises:
        ParameterError: a tool that is not in this notation.
    """
    return tuple(map(_from_openai, tools))


def _from_openai(tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not (isinstance(function, Mapping) and "name" in function):
        raise ParameterError(
            'A tool must be {"type": "function", "function": {"name": ..., "parameters": ...}}; '
            "bind_tools takes functions and classes too."
        )
    return Tool(
        name=function["name"],
        description=function.get("description") or "",
        parameters=function.get("parameters") or _NO_ARGUMENTS,
    )


def to_params(settings: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling parameters among ``settings``; what is missing or None takes its default.

    Raises:
        ParameterError: a value out of range, or two that contradict each other.
    """
    values = {
        name: settings[name]
        for name in SamplingParams.names()
        if name != "logprobs" and settings.get(name) is not None
    }
    values["logprobs"] = _logprobs(settings.get("logprobs"), settings.get("top_logprobs"))
    schema = to_schema(settings.get("response_format"))
    if schema is not None:
        if values.get("json_schema") is not None:
            raise ParameterError("Give response_format or json_schema, not both.")
        values["json_schema"] = schema
    return SamplingParams(**values)


def unaliased(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments under their own names (see :data:`ALIASES`).

    Raises:
        ParameterError: one setting given twice, under two names.
    """
    result: dict[str, Any] = {}
    for name, value in arguments.items():
        real = ALIASES.get(name, name)
        if real in result and result[real] != value:
            raise ParameterError(f"{real} is given twice, once as {name}; give it once.")
        result[real] = value
    return result


def check_known(arguments: Mapping[str, Any], known: Sequence[str], subject: str) -> None:
    """Refuse an argument that is not among ``known``, with the nearest name as advice."""
    _checks.known(arguments, known, subject, ALIASES)


def _logprobs(logprobs: bool | int | None, top: int | None) -> int | None:
    # OpenAI's pair is (True, n); llavakit's own is one number, of alternatives.
    if logprobs is False or logprobs is None:
        if top:
            raise ParameterError("top_logprobs needs logprobs=True.")
        return None
    return (top or 0) if logprobs is True else logprobs


def to_tool_choice(choice: Any, tools: Sequence[Tool]) -> str:
    """Return ``"auto"``, ``"none"``, ``"required"`` or the name of one tool.

    Args:
        choice: None, a bool, ``"any"`` or one of the above, or a dict of OpenAI's
            (``{"type": "function", "function": {"name": ...}}``) or Anthropic's notation.
        tools: the tools that are offered.

    Raises:
        ParameterError: an unknown tool, or an unknown notation.
    """
    if choice is None or choice is False:
        return "auto"
    if choice is True:
        return "required"
    if isinstance(choice, Mapping):
        inner = choice.get("function")
        name = inner.get("name") if isinstance(inner, Mapping) else choice.get("name")
        choice = name or choice.get("type")
    names = [tool.name for tool in tools]
    if choice in names:
        return str(choice)
    if isinstance(choice, str) and choice in _CHOICES:
        return _CHOICES[choice]
    offered = ", ".join(names) or "none were given"
    raise ParameterError(
        f"tool_choice is {choice!r}; it must be auto, none, any, required or the name of a tool "
        f"({offered})."
    )


def to_schema(response_format: Any) -> Mapping[str, Any] | Literal[True] | None:
    """Return the JSON schema of an OpenAI ``response_format``; True for any JSON object.

    Raises:
        ParameterError: an unknown notation.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return True
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)
        if isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
            return cast("Mapping[str, Any]", inner["schema"])
    raise ParameterError(
        'response_format must be {"type": "json_schema", "json_schema": {"schema": ...}}, '
        '{"type": "json_object"} or {"type": "text"}; a class is for structured output.'
    )
