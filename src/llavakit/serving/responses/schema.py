"""What a client may send to ``POST /v1/responses``, field by field.

What needs stored responses is a field here that takes nothing, so that its refusal says why.
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
from llavakit.serving.messages import Content
from llavakit.serving.unions import by_field, by_shape

_ITEMS = 4096


class ItemFields(CacheHint):
    """What every item of the input may have beside its content."""

    id: str | None = Field(default=None, description=f"{NO_EFFECT}: nothing is stored by it.")
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(
        default=None, description=f"{NO_EFFECT}: an item is taken as it is."
    )


class MessageItem(ItemFields):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: str | None = Field(default=None, description=f"{NO_EFFECT}: there is one phase.")


class FunctionCallItem(ItemFields):
    """A call that the model made; ``arguments`` is the JSON of an object."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str
    namespace: None = None


class FunctionCallOutputItem(ItemFields):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: Content


class ReasoningItem(ItemFields):
    """An earlier answer's thoughts, which are no part of the dialogue."""

    type: Literal["reasoning"]
    summary: list[Any] | None = Field(default=None, description=f"{NO_EFFECT}: see reasoning.")
    content: list[Any] | None = Field(default=None, description=f"{NO_EFFECT}: see reasoning.")
    encrypted_content: str | None = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA answers without thinking first."
    )


InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    by_field(
        "type", "message", "function_call", "function_call_output", "reasoning", usual="message"
    ),
]

Input = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=_ITEMS), Tag("<list>")],
    by_shape(string="a string", list="a list of items"),
]


class FunctionTool(CacheHint):
    """A function that the model may call; there are no tools of other types."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: SchemaObject | None = None
    strict: bool | None = None


class NamedFunctionChoice(Strict):
    """The one function that must be called, or may be."""

    type: Literal["function"]
    name: FunctionName


class AllowedFunctionsChoice(Strict):
    """The functions that may be called; the others are not shown to the model."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunctionChoice] = Field(min_length=1, max_length=128)


FunctionChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[
        Annotated[
            Annotated[NamedFunctionChoice, Tag("<function>")]
            | Annotated[AllowedFunctionsChoice, Tag("<allowed_tools>")],
            by_field("type", "function", "allowed_tools"),
        ],
        Tag("<object>"),
    ],
    by_shape(
        string="'none', 'auto' or 'required'",
        object="an object of type function or allowed_tools",
    ),
]


class PlainText(Strict):
    """Plain text."""

    type: Literal["text"]


class AnyObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class ObjectOfSchema(Strict):
    """JSON of a schema, always followed strictly."""

    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: SchemaObject = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """The form of the answer's text."""

    format: (
        Annotated[
            Annotated[PlainText, Tag("<text>")]
            | Annotated[AnyObject, Tag("<json_object>")]
            | Annotated[ObjectOfSchema, Tag("<json_schema>")],
            by_field("type", "text", "json_object", "json_schema"),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = Field(
        default=None, description=f"{NO_EFFECT}: only OpenAI's default is taken."
    )


class ReasoningOptions(Strict):
    """How much a model thinks first; LLaVA answers at once."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA answers without thinking first."
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description=f"{NO_EFFECT}: there are no thoughts to sum up."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description=f"{NO_EFFECT}: the older name of summary."
    )


class ResponseStreamOptions(Strict):
    """What a stream holds beside the answer."""

    include_obfuscation: Literal[False] | None = Field(
        default=None, description=f"{NO_EFFECT}: only false is taken; events are not padded."
    )


LOGPROBS = "message.output_text.logprobs"


class ResponsesRequest(NoEffect):
    """The body of ``POST /v1/responses``."""

    model: str
    input: Input
    instructions: str | None = None
    max_output_tokens: Whole | None = Field(default=None, ge=1, le=INT64)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        Field(default=None, max_length=16)
    )

    reasoning: ReasoningOptions | None = None
    truncation: Literal["disabled"] | None = Field(
        default=None, description=f"{NO_EFFECT}: only OpenAI's default is taken."
    )
    max_tool_calls: Whole | None = Field(
        default=None, ge=1, description=f"{NO_EFFECT}: it counts tools that the server runs."
    )
    background: Literal[False] | None = Field(
        default=None, description=f"{NO_EFFECT}: only false is taken."
    )
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    context_management: None = None
