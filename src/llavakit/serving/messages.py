"""Messages as OpenAI's clients write them, and the blocks in which they carry images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag


class Strict(BaseModel):
    """No unknown fields, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer; JSON does not tell 4.0 from 4."""

Detail = Literal["auto", "low", "high", "original"] | None
"""OpenAI's wish for a resolution. LLaVA sees each image in the one way it was trained on."""


class TextFields(Strict):
    """What all blocks of text have. One class a type: readers of the document want it so."""

    text: str


class TextBlock(TextFields):
    """A piece of text."""

    type: Literal["text"]


class InputTextBlock(TextFields):
    """A piece of a question, as the Responses API carries it."""

    type: Literal["input_text"]


class OutputTextBlock(TextFields):
    """A piece of an answer, as the Responses API carries it."""

    type: Literal["output_text"]


class RefusalBlock(Strict):
    """A piece of an earlier answer that refused."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Strict):
    """Where an image is: a data URI; an http(s) URL only if the server allows it."""

    url: str = Field(min_length=1)
    detail: Detail = None


class ImageUrlBlock(Strict):
    """An image, as chat completions carry it."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class InputImageBlock(Strict):
    """An image, as the Responses API carries it."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    detail: Detail = None


class ImageBlock(Strict):
    """An image, as Hugging Face's and LangChain's blocks carry it; exactly one source."""

    type: Literal["image"]
    image: str | None = Field(default=None, min_length=1)
    url: str | None = Field(default=None, min_length=1)
    base64: str | None = Field(default=None, min_length=1)
    mime_type: str | None = None


Block = Annotated[
    TextBlock
    | InputTextBlock
    | OutputTextBlock
    | RefusalBlock
    | ImageUrlBlock
    | InputImageBlock
    | ImageBlock,
    Field(discriminator="type"),
]


def _content_kind(value: Any) -> str:
    return "<blocks>" if isinstance(value, list) else "<text>"


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Block], Field(max_length=1024), Tag("<blocks>")],
    Discriminator(_content_kind),
]


class SystemMessage(Strict):
    """What is said before all else."""

    role: Literal["system"]
    content: Content
    name: str | None = None


class DeveloperMessage(Strict):
    """OpenAI's newer name for a system message."""

    role: Literal["developer"]
    content: Content
    name: str | None = None


class UserMessage(Strict):
    """A question, with images."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Strict):
    """A call that the model made; ``arguments`` is the JSON of an object."""

    name: str = Field(min_length=1)
    arguments: str


class MadeCall(Strict):
    """A call of an earlier answer."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Whole | None = None


class AssistantMessage(Strict):
    """An earlier answer, also as clients send back what they were given.

    ``reasoning_content`` is a model's private thought and no part of the dialogue.
    """

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    tool_calls: list[MadeCall] | None = Field(default=None, max_length=128)
    name: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None


class ToolMessage(Strict):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str = Field(min_length=1)
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]
