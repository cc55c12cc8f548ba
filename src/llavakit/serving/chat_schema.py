"""The body of a chat completion, and of ``/tokenize``, field by field.

Fields of other servers that cannot be honoured take the one value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from llavakit.serving.fields import (
    INT64,
    NO_EFFECT,
    CacheHint,
    FunctionName,
    NoEffect,
    SchemaObject,
    Strict,
    Whole,
)
from llavakit.serving.messages import ChatMessage
from llavakit.serving.unions import by_field, by_shape


class FunctionDefinition(Strict):
    """A function that the model may call. Its arguments always follow the schema."""

    name: FunctionName
    description: str | None = None
    parameters: SchemaObject | None = None
    strict: bool | None = None


class ToolDefinition(CacheHint):
    """A tool; there are no others than functions."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    """Which of the tools may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice] = Field(min_length=1, max_length=128)


class AllowedToolsChoice(Strict):
    """The tools that may be called; the others are not shown to the model."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[
        Annotated[
            Annotated[NamedToolChoice, Tag("<function>")]
            | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
            by_field("type", "function", "allowed_tools"),
        ],
        Tag("<object>"),
    ],
    by_shape(
        string="'none', 'auto' or 'required'",
        object="an object of type function or allowed_tools",
    ),
]


class JsonSchema(Strict):
    """A schema that the answer follows, always strictly."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: SchemaObject = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    by_field("type", "text", "json_object", "json_schema"),
]


class StreamOptions(Strict):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None,
        description="Beyond OpenAI; vLLM's name. Every event has the usage so far.",
    )
    include_obfuscation: Literal[False] | None = None


_FORM = 100_000
"""Most characters of a grammar."""


class StructuredOutputs(Strict):
    """vLLM's way to ask for an answer of some form; exactly one of its fields."""

    json_: SchemaObject | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, min_length=1, max_length=_FORM)
    choice: list[Annotated[str, Field(min_length=1, max_length=1000)]] | None = Field(
        default=None, min_length=1, max_length=1000
    )
    grammar: str | None = Field(
        default=None,
        min_length=1,
        max_length=_FORM,
        description="A Lark grammar whose first rule is start.",
    )
    json_object: Literal[True] | None = None


StopString = Annotated[str, Field(min_length=1, max_length=1000)]
StopStrings = Annotated[
    Annotated[StopString, Tag("<string>")]
    | Annotated[list[StopString], Field(max_length=16), Tag("<list>")],
    by_shape(string="a string", list="a list of strings"),
]
_MESSAGES = 4096


class Neutral(Strict):
    """Fields of other servers, with the one value that asks for what happens anyway."""

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA answers without thinking first."
    )
    verbosity: Literal["medium"] | None = Field(
        default=None, description=f"{NO_EFFECT}: only OpenAI's default is taken."
    )
    prediction: dict[str, Any] | None = Field(
        default=None, description=f"{NO_EFFECT}: it would change the speed alone."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, max_length=0, description=f"{NO_EFFECT}: only an empty object is taken."
    )
    mm_processor_kwargs: dict[str, Any] | None = Field(
        default=None, max_length=0, description=f"{NO_EFFECT}: only an empty object is taken."
    )
    stop_token_ids: list[Any] | None = Field(
        default=None, max_length=0, description=f"{NO_EFFECT}: only an empty list is taken."
    )
    best_of: Literal[1] | None = Field(
        default=None, description=f"{NO_EFFECT}: only 1 is taken; n asks for several answers."
    )
    use_beam_search: Literal[False] | None = Field(
        default=None, description=f"{NO_EFFECT}: only false is taken; there is no beam search."
    )
    ignore_eos: Literal[False] | None = Field(
        default=None, description=f"{NO_EFFECT}: only false is taken."
    )
    min_tokens: Literal[0] | None = Field(
        default=None, description=f"{NO_EFFECT}: only 0 is taken."
    )
    skip_special_tokens: Literal[True] | None = Field(
        default=None, description=f"{NO_EFFECT}: only true is taken."
    )
    include_reasoning: bool | None = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA answers without thinking first."
    )
    request_id: str | None = Field(
        default=None, description=f"{NO_EFFECT}: the answer has an id of its own."
    )
    priority: Literal[0] | None = Field(default=None, description=f"{NO_EFFECT}: only 0 is taken.")
    functions: None = None
    function_call: None = None
    audio: None = None
    web_search_options: None = None


class Sampling(Strict):
    """How tokens are sampled, as chat completions and completions say it."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Whole | None = Field(default=None, ge=-INT64, le=INT64)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(
        default=None, description="Token ids, as strings of digits, to -100..100."
    )
    top_k: Whole | None = Field(
        default=None, ge=-1, le=INT64, description="Beyond OpenAI; -1 and 0 keep all tokens."
    )
    min_p: float | None = Field(default=None, ge=0, lt=1, description="Beyond OpenAI.")
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=100, description="Beyond OpenAI."
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="Beyond OpenAI; vLLM's name and form."
    )


class ChatRequest(Sampling, NoEffect, Neutral):
    """The body of ``POST /v1/chat/completions``."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MESSAGES)

    max_tokens: Whole | None = Field(default=None, ge=1, le=INT64)
    max_completion_tokens: Whole | None = Field(default=None, ge=1, le=INT64)
    n: Whole | None = Field(default=None, ge=1)
    stop: StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    tools: list[ToolDefinition] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    add_generation_prompt: bool | None = Field(
        default=None,
        description="Beyond OpenAI; vLLM's name. The answer is a new turn, whichever turn is last.",
    )
    continue_final_message: bool | None = Field(
        default=None,
        description="Beyond OpenAI; vLLM's name. The answer goes on with the last message, "
        "which is the assistant's.",
    )

    modalities: list[Literal["text"]] | None = Field(default=None, min_length=1, max_length=1)


class TokenizeRequest(Strict):
    """The body of ``POST /tokenize``: messages, or a prompt that stands for a user's message."""

    model: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=_MESSAGES)
    prompt: str | None = None
    tools: list[ToolDefinition] | None = Field(default=None, max_length=128)
    add_generation_prompt: bool | None = Field(
        default=None, description="As in chat completions; true contradicts the next field."
    )
    continue_final_message: bool | None = Field(
        default=None, description="As in chat completions: the last message goes on."
    )
