"""A request's settings as the fields of a chat completion, for each kind of server.

Whatever a server would ignore is refused here, because servers say 200 to fields that they
do not know. All settings are sent, also those that llavakit would call neutral: vLLM and
SGLang take missing ones from the checkpoint's ``generation_config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llavakit.errors import ParameterError
from llavakit.remote.dialects import Dialect, is_lark, refused, schema_field
from llavakit.remote.text_tools import constraint_of_calls, offers_text_tools
from llavakit.values import Request, SamplingParams, Tool

_WHOLE_TEXT = 1 << 18
"""Tokens that llama.cpp's penalties look back on, and Ollama's, which runs it: more than contexts
have. It keeps a number of each, and refuses the -1 of its documentation."""


def to_fields(dialect: Dialect, request: Request) -> dict[str, Any]:
    """The fields of a chat completion beside ``model`` and ``messages``.

    Raises:
        ParameterError: something that this kind of server cannot honour.
    """
    params = request.params
    fields: dict[str, Any] = {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stream": True,
    }
    if dialect.stream_options:
        fields["stream_options"] = {"include_usage": True}
    if params.seed is not None:
        fields["seed"] = params.seed
    if params.stop and dialect.stops:
        fields["stop"] = list(params.stop)
    fields |= _sampling(dialect, params) | _shifts(dialect, params) | _logprobs(dialect, params)
    if offers_text_tools(dialect, request) and dialect.speaks:
        fields |= constraint_of_calls(dialect, request)
    else:
        fields |= _constraint(dialect, params)
    if dialect.takes_tools:
        fields |= _tools(dialect, request)
    if dialect.prefills and not request.continue_final_message:
        _check_turn(dialect, request)
    return fields | continuation(dialect, request)


def _check_turn(dialect: Dialect, request: Request) -> None:
    """Refuse a new turn behind one of the assistant where the server would continue that."""
    if request.messages and request.messages[-1].role == "assistant":
        raise ParameterError(
            f"The conversation ends with the assistant, whose last words this server "
            f"({dialect.title}) would continue; end with a message of the user, or ask for that by "
            "continue_final_message=True."
        )


def continuation(dialect: Dialect, request: Request) -> dict[str, Any]:
    """Return the fields of an answer that goes on; none of a new turn, every server's default.

    Raises:
        ParameterError: this kind of server does not know them.
    """
    if not request.continue_final_message:
        return {}
    if not dialect.continues:
        raise refused("continue_final_message", dialect)
    return {"add_generation_prompt": False, "continue_final_message": True}


def _sampling(dialect: Dialect, params: SamplingParams) -> dict[str, Any]:
    if dialect.samples == "fields":
        return {
            "top_k": params.top_k or -1,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
        }
    if dialect.samples == "generation_config":
        # Without it the server samples only if the checkpoint says so, whatever the temperature.
        config: dict[str, Any] = {"do_sample": bool(params.temperature)}
        if params.temperature:
            config |= {"top_k": params.top_k, "min_p": params.min_p}
        config["repetition_penalty"] = params.repetition_penalty
        return {"generation_config": json.dumps(config)}
    neutral, names = SamplingParams(), dict(dialect.sampling)
    fields: dict[str, Any] = {}
    for name in ("top_k", "min_p", "repetition_penalty"):
        if name in names:
            fields[names[name]] = getattr(params, name)
        elif getattr(params, name) != getattr(neutral, name):
            raise refused(name, dialect)
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    if dialect.name in ("llamacpp", "ollama") and any(
        getattr(params, name) != getattr(neutral, name) for name in penalties
    ):
        fields["repeat_last_n"] = _WHOLE_TEXT  # and not its last 64 tokens
    return fields


def _shifts(dialect: Dialect, params: SamplingParams) -> dict[str, Any]:
    """What is added to logits. No checkpoint sets it, so that it is sent only where it is set."""
    fields: dict[str, Any] = {}
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(params, name):
            if not dialect.penalises:
                raise refused(name, dialect)
            fields[name] = getattr(params, name)
    if params.logit_bias:
        if not dialect.biases:
            raise refused("logit_bias", dialect)
        biases = dict(params.logit_bias).items()
        # As floats: transformers refuses whole numbers.
        fields["logit_bias"] = (
            [[token, float(bias)] for token, bias in biases]
            if dialect.bias_pairs
            else {str(token): float(bias) for token, bias in biases}
        )
    return fields


def _logprobs(dialect: Dialect, params: SamplingParams) -> dict[str, Any]:
    if params.logprobs is None:
        return {}
    if not dialect.logprobs:
        raise refused("logprobs", dialect)
    return {"logprobs": True, "top_logprobs": max(params.logprobs, dialect.least_logprobs)}


def _constraint(dialect: Dialect, params: SamplingParams) -> dict[str, Any]:
    if params.grammar is not None:
        return _grammar(dialect, params.grammar)
    schema = params.json_schema
    if schema is None or not dialect.enforces:
        return {}
    if schema is True and not dialect.any_object:
        schema = {"type": "object"}
    if schema is True:
        return {"response_format": {"type": "json_object"}}
    return schema_field("answer", schema)


def _grammar(dialect: Dialect, grammar: str) -> dict[str, Any]:
    kind = "grammar" if is_lark(grammar) else "regex"
    if dialect.grammar == "structured_outputs":
        return {"structured_outputs": {kind: grammar}}
    if dialect.grammar == "regex" and kind == "regex":
        return {"regex": grammar}
    raise refused("grammar" if kind == "regex" else "a grammar in Lark", dialect)


def _tools(dialect: Dialect, request: Request) -> dict[str, Any]:
    if not request.tools or request.tool_choice == "none":
        return {}
    choice: Any = request.tool_choice
    if choice != "auto" and not dialect.chooses:
        raise refused(f"tool_choice={choice!r}", dialect)
    if choice not in ("auto", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    return {
        "tools": to_functions(dialect, request.tools),
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls,
    }


def to_functions(dialect: Dialect, tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Tools in OpenAI's notation."""
    strict = {"strict": True} if dialect.strict_tools else {}
    return [{"type": "function", "function": {**_function(tool), **strict}} for tool in tools]


def _function(tool: Tool) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}
