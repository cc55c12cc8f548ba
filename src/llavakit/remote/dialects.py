"""How OpenAI-compatible servers differ, and how a request's settings are written for each.

Whatever a server would ignore is refused here, because servers say 200 to fields that they
do not know. All settings are sent, also those that llavakit would call neutral: vLLM and
SGLang take missing ones from the checkpoint's ``generation_config.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from llavakit.engine.grammar_text import grammar_of
from llavakit.errors import ParameterError
from llavakit.values import Request, SamplingParams, Tool

_NO_PARSER = re.compile(r"--tool-call-parser|--enable-auto-tool-choice")
"""vLLM's words for tools where it was not started with these options."""
_LARK = re.compile(r"^\s*start\s*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server.

    Attributes:
        name: as it is named in ``load(dialect=...)``.
        title: as errors call it.
        samples: how ``top_k``, ``min_p`` and ``repetition_penalty`` are sent: as fields of
            their own, inside ``generation_config``, under the names of ``sampling``, or not at all.
        sampling: those of the three that are taken, each with the server's name for it.
        penalises: whether it takes ``presence_penalty`` and ``frequency_penalty``.
        biases: whether it takes ``logit_bias``.
        stops: whether the server ends answers at ``stop``; else the client does.
        logprobs: whether it returns log probabilities.
        enforces: whether it takes ``tools`` and ``response_format``; else they are written into the
            prompt, and calls are read out of the text.
        grammar: how a regular expression and a Lark grammar are sent.
        done: whether a whole stream ends with ``[DONE]``.
        stream_options: whether usage must be asked for.
        keeps_turns: whether it puts turns together itself, as llavakit does.
        counts: what ``/tokenize`` counts: everything, text alone, the text that
            ``/apply-template`` makes of messages, or nothing.
        continues: whether it knows ``continue_final_message``.
        chooses: whether it obeys a ``tool_choice`` that demands a call.
        least_logprobs: alternatives that must be asked for, or there are no log probabilities.
        bias_pairs: whether ``logit_bias`` is sent as pairs and not as an object.
        any_object: whether it knows ``{"type": "json_object"}``; else a schema of any object is
            sent.
        speaks: whether tools are written into the prompt although schemas are enforced: answers
            are held to our notation of calls by a grammar, and calls are read out of the text.
    """

    name: str
    title: str
    samples: Literal["fields", "generation_config", "named", "no"] = "no"
    sampling: tuple[tuple[str, str], ...] = ()
    penalises: bool = True
    biases: bool = True
    stops: bool = True
    logprobs: bool = True
    enforces: bool = True
    grammar: Literal["structured_outputs", "regex", "no"] = "no"
    done: bool = False
    stream_options: bool = True
    keeps_turns: bool = False
    counts: Literal["all", "text", "template", "no"] = "no"
    continues: bool = False
    chooses: bool = True
    least_logprobs: int = 0
    bias_pairs: bool = False
    any_object: bool = True
    speaks: bool = False

    @property
    def takes_tools(self) -> bool:
        """Whether tools are sent as such."""
        return self.enforces and not self.speaks


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect(
                "llavakit",
                "llavakit",
                samples="fields",
                grammar="structured_outputs",
                done=True,
                keeps_turns=True,
                counts="all",
                continues=True,
            ),
            Dialect(
                "vllm",
                "vLLM",
                samples="fields",
                grammar="structured_outputs",
                done=True,
                counts="text",
                continues=True,
            ),
            Dialect("sglang", "SGLang", samples="fields", grammar="regex", done=True),
            Dialect(
                "transformers",
                "transformers serve",
                samples="generation_config",
                penalises=False,  # it makes a repetition penalty of one, and refuses the other
                stops=False,
                logprobs=False,
                enforces=False,
                stream_options=False,
            ),
            # https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
            Dialect(
                "llamacpp",
                "llama.cpp",
                samples="named",
                sampling=(
                    ("top_k", "top_k"),
                    ("min_p", "min_p"),
                    ("repetition_penalty", "repeat_penalty"),
                ),
                done=True,
                counts="template",
                least_logprobs=1,
                bias_pairs=True,
            ),
            # https://docs.ollama.com/api/openai-compatibility
            Dialect("ollama", "Ollama", biases=False, done=True, chooses=False),
            # https://lmstudio.ai/docs/developer/openai-compat/chat-completions
            Dialect(
                "lmstudio",
                "LM Studio",
                samples="named",
                sampling=(("top_k", "top_k"), ("repetition_penalty", "repeat_penalty")),
                logprobs=False,
                done=True,
                any_object=False,
            ),
            Dialect("generic", "OpenAI-compatible", biases=False),  # Ollama ignores them
        )
    }
)
"""Every dialect by its name."""


def without_tool_parser(dialect: Dialect, refusal: str) -> Dialect | None:
    """Return how a server is asked that refused tools because it was started without a parser.

    Args:
        dialect: of the server.
        refusal: what it said.

    Returns:
        None where that was not the reason, or the server takes no grammars.
    """
    if dialect.grammar != "structured_outputs" or not _NO_PARSER.search(refusal):
        return None
    return replace(dialect, speaks=True)


def is_lark(grammar: str) -> bool:
    """Whether a grammar is written in Lark; else it is a regular expression."""
    return _LARK.search(grammar) is not None


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
    if dialect.speaks and request.tools and request.tool_choice != "none":
        fields["structured_outputs"] = {"grammar": grammar_of(request)}
    else:
        fields |= _constraint(dialect, params)
    if dialect.takes_tools:
        fields |= _tools(dialect, request)
    return fields | continuation(dialect, request)


def continuation(dialect: Dialect, request: Request) -> dict[str, Any]:
    """Return the fields of an answer that goes on; none of a new turn, every server's default.

    Raises:
        ParameterError: this kind of server does not know them.
    """
    if not request.continue_final_message:
        return {}
    if not dialect.continues:
        raise _refused("continue_final_message", dialect)
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
            raise _refused(name, dialect)
    if dialect.name == "llamacpp" and params.repetition_penalty != neutral.repetition_penalty:
        fields["repeat_last_n"] = -1  # of the whole text, and not of its last 64 tokens
    return fields


def _shifts(dialect: Dialect, params: SamplingParams) -> dict[str, Any]:
    """What is added to logits. No checkpoint sets it, so that it is sent only where it is set."""
    fields: dict[str, Any] = {}
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(params, name):
            if not dialect.penalises:
                raise _refused(name, dialect)
            fields[name] = getattr(params, name)
    if params.logit_bias:
        if not dialect.biases:
            raise _refused("logit_bias", dialect)
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
        raise _refused("logprobs", dialect)
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
    inner = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def _grammar(dialect: Dialect, grammar: str) -> dict[str, Any]:
    kind = "grammar" if is_lark(grammar) else "regex"
    if dialect.grammar == "structured_outputs":
        return {"structured_outputs": {kind: grammar}}
    if dialect.grammar == "regex" and kind == "regex":
        return {"regex": grammar}
    raise _refused("grammar" if kind == "regex" else "a grammar in Lark", dialect)


def _tools(dialect: Dialect, request: Request) -> dict[str, Any]:
    if not request.tools or request.tool_choice == "none":
        return {}
    choice: Any = request.tool_choice
    if choice != "auto" and not dialect.chooses:
        raise _refused(f"tool_choice={choice!r}", dialect)
    if choice not in ("auto", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    return {
        "tools": [to_function(tool) for tool in request.tools],
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls,
    }


def to_function(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's notation."""
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    described = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": described}


def _refused(name: str, dialect: Dialect) -> ParameterError:
    able = [one.name for one in DIALECTS.values() if one.samples == "fields"]
    hint = (
        f"; if it is one of {', '.join(able)}, say so by dialect="
        if dialect.name == "generic"
        else ""
    )
    return ParameterError(
        f"This server ({dialect.title}) cannot honour {name}; leave it out{hint}."
    )
