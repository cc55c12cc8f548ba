"""How OpenAI-compatible servers differ (:mod:`llavakit.remote.request_fields` writes for each)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from llavakit.errors import ParameterError

_LARK = re.compile(r"^\s*start\s*:", re.MULTILINE)


Speech: TypeAlias = Literal["", "grammar", "schema"]


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
        prefills: whether it always continues an assistant's message at the end, asked or not.
        chooses: whether it obeys a ``tool_choice`` that demands a call.
        strict_tools: whether it obeys a tool's schema only where the tool says ``strict``.
        least_logprobs: alternatives that must be asked for, or there are no log probabilities.
        bias_pairs: whether ``logit_bias`` is sent as pairs and not as an object.
        any_object: whether it knows ``{"type": "json_object"}``; else a schema of any object is
            sent.
        can_speak: what can hold an answer to calls where the server finds none by itself: a grammar
            of our notation, or the schema of one call.
        short_ids: set where ids of calls must be nine letters and digits: Mistral's chat templates.
        speaks: set where tools are written into the prompt although schemas are enforced, and calls
            are read out of the text (see :mod:`llavakit.remote.text_tools`).
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
    prefills: bool = False
    chooses: bool = True
    strict_tools: bool = False
    least_logprobs: int = 0
    bias_pairs: bool = False
    any_object: bool = True
    can_speak: Speech = ""
    short_ids: bool = False
    speaks: Speech = ""

    @property
    def takes_tools(self) -> bool:
        """Whether tools are sent as such."""
        return self.enforces and not self.speaks

    def with_tools_in_prompt(self) -> Dialect:
        """Return how this kind is asked where tools, calls and results are written as text."""
        return replace(self, speaks=self.can_speak)


_LLAMACPP_NAMES = (
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repeat_penalty"),
)

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
                strict_tools=True,  # seen of 0.32 with the hermes parser
                can_speak="grammar",
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
                sampling=_LLAMACPP_NAMES,
                done=True,
                counts="template",
                continues=True,
                prefills=True,
                can_speak="schema",
                least_logprobs=1,
                bias_pairs=True,
            ),
            # https://docs.ollama.com/api/chat; see llavakit.remote.ollama
            Dialect(
                "ollama",
                "Ollama",
                samples="named",
                sampling=_LLAMACPP_NAMES,  # it runs llama.cpp
                biases=False,
                done=True,
                chooses=False,
                can_speak="schema",
            ),
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


def is_lark(grammar: str) -> bool:
    """Whether a grammar is written in Lark; else it is a regular expression."""
    return _LARK.search(grammar) is not None


def schema_field(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field that asks for JSON of a schema, as OpenAI has it."""
    inner = {"name": name, "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def refused(name: str, dialect: Dialect) -> ParameterError:
    """Return the error for a setting that a kind of server cannot honour."""
    able = [one.name for one in DIALECTS.values() if one.samples == "fields"]
    hint = (
        f"; if it is one of {', '.join(able)}, say so by dialect="
        if dialect.name == "generic"
        else ""
    )
    return ParameterError(
        f"This server ({dialect.title}) cannot honour {name}; leave it out{hint}."
    )
