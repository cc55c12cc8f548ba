"""What a client may send, field by field: OpenAI's chat completions, and what is beyond them.

Strict on purpose: a field that nobody knows, or of another type, is an error and never
dropped. Fields of OpenAI's that cannot be honoured take the value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from llavakit.serving.messages import ChatMessage, Strict, Whole

SchemaObject: TypeAlias = dict[str, Any]
FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]


class FunctionDefinition(Strict):
    """A function that the model may call. Its arguments always follow the schema."""

    name: FunctionName
    description: str | None = None
    parameters: SchemaObject | None = None
    strict: bool | None = None


class ToolDefinition(Strict):
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
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(Strict):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
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
INT64 = 2**63 - 1
_MESSAGES = 4096


class ChatRequest(Strict):
    """The body of ``POST /v1/chat/completions``."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MESSAGES)

    max_tokens: Whole | None = Field(default=None, ge=1, le=INT64)
    max_completion_tokens: Whole | None = Field(default=None, ge=1, le=INT64)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: Whole | None = Field(default=None, ge=1)
    seed: Whole | None = Field(default=None, ge=-INT64, le=INT64)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    tools: list[ToolDefinition] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

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

    add_generation_prompt: bool | None = Field(
        default=None,
        description="Beyond OpenAI; vLLM's name. The answer is a new turn, whoever spoke last.",
    )
    continue_final_message: bool | None = Field(
        default=None,
        description="Beyond OpenAI; vLLM's name. The answer goes on with the last message, "
        "which is the assistant's.",
    )

    user: str | None = Field(default=None, description="Has no effect on the answer.")
    store: bool | None = Field(default=None, description="Has no effect: nothing is stored.")
    metadata: dict[str, str] | None = Field(default=None, description="Has no effect.")
    safety_identifier: str | None = Field(default=None, description="Has no effect.")
    prompt_cache_key: str | None = Field(
        default=None, description="Has no effect: prefixes are found by their content."
    )
    service_tier: Literal["auto", "default"] | None = None

    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(
        default=None, description="Token ids, as strings of digits, to -100..100."
    )
    modalities: list[Literal["text"]] | None = Field(default=None, min_length=1, max_length=1)


class TokenizeRequest(Strict):
    """The body of ``POST /tokenize``: messages, or a prompt that stands for a user's message."""

    model: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=_MESSAGES)
    prompt: str | None = None
    tools: list[ToolDefinition] | None = Field(default=None, max_length=128)
