"""A conversation as clients send it: messages, and blocks of text, images, files and videos."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from llavakit.serving.fields import NO_EFFECT, CacheHint, Strict, Whole
from llavakit.serving.unions import by_field, by_shape

Detail = Literal["auto", "low", "high", "original"] | None
"""OpenAI's wish for a resolution. LLaVA sees each image in the one way it was trained on."""


class BlockFields(CacheHint):
    """What every content block may have beside its content."""

    id: str | None = Field(default=None, description=f"{NO_EFFECT}: a name for the client.")
    index: Whole | str | None = Field(
        default=None, description=f"{NO_EFFECT}: blocks stand in the order of the list."
    )


class TextFields(BlockFields):
    """What all blocks of text have. One class a type: readers of the document want it so."""

    text: str
    annotations: list[Any] | None = Field(
        default=None, max_length=0, description=f"{NO_EFFECT}: only an empty list is taken."
    )


class TextBlock(TextFields):
    """A part of a message that is text."""

    type: Literal["text"]


class InputTextBlock(TextFields):
    """A part of a question, as the Responses API carries it."""

    type: Literal["input_text"]


class OutputTextBlock(TextFields):
    """A part of an answer, as the Responses API carries it."""

    type: Literal["output_text"]
    logprobs: list[Any] | None = Field(
        default=None, description=f"{NO_EFFECT}: how likely an earlier answer was."
    )


class RefusalBlock(BlockFields):
    """A part of an earlier answer that refused."""

    type: Literal["refusal"]
    refusal: str


class ImageFields(BlockFields):
    """What all blocks of images may have beside the image."""

    uuid: str | None = Field(
        default=None,
        description=f"{NO_EFFECT}: vLLM's name for a cached image; images are found by pixels.",
    )
    detail: Detail = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA sees each image in one resolution."
    )


class ImageUrl(Strict):
    """Where an image is: a data URI; an http(s) URL only if the server allows it."""

    url: str = Field(min_length=1)
    detail: Detail = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA sees each image in one resolution."
    )
    format: str | None = Field(
        default=None, description=f"{NO_EFFECT}: the bytes themselves say what they are."
    )


class ImageUrlBlock(ImageFields):
    """An image, as chat completions carry it."""

    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[ImageUrl, Tag("<object>")] | Annotated[str, Tag("<string>")],
        by_shape(object="an object with a url", string="a string"),
    ]


class InputImageBlock(ImageFields):
    """An image, as the Responses API carries it."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    file_id: None = None


class ImageBlock(ImageFields):
    """An image, as Hugging Face's and LangChain's blocks carry it; exactly one source."""

    type: Literal["image"]
    image: str | None = Field(default=None, min_length=1)
    url: str | None = Field(default=None, min_length=1)
    base64: str | None = Field(default=None, min_length=1)
    mime_type: str | None = Field(
        default=None, description=f"{NO_EFFECT}: the bytes themselves say what they are."
    )


class SentFile(Strict):
    """A PDF by value, as chat completions carry it."""

    file_data: str = Field(min_length=1)
    filename: str | None = None
    file_id: None = None


class FileBlock(BlockFields):
    """A PDF, as chat completions carry it: the model sees its pages."""

    type: Literal["file"]
    file: SentFile


class InputFileBlock(BlockFields):
    """A PDF, as the Responses API carries it; exactly one of ``file_data`` and ``file_url``."""

    type: Literal["input_file"]
    file_data: str | None = Field(default=None, min_length=1)
    file_url: str | None = Field(default=None, min_length=1)
    filename: str | None = None
    file_id: None = None
    detail: Detail = Field(
        default=None, description=f"{NO_EFFECT}: LLaVA sees each page in one resolution."
    )


FileBlocks = FileBlock | InputFileBlock
"""All blocks that carry a PDF."""

ImageBlocks = ImageUrlBlock | InputImageBlock | ImageBlock
"""All blocks that carry an image."""


class VideoUrl(Strict):
    """Where a video is: a data URI; an http(s) URL only if the server allows it."""

    url: str = Field(min_length=1)


class VideoFields(BlockFields):
    """What all blocks of videos may have beside the video."""

    uuid: str | None = Field(
        default=None,
        description=f"{NO_EFFECT}: vLLM's name for a cached video; videos are found by content.",
    )
    num_frames: Whole | None = Field(
        default=None, ge=1, description="Frames to look at; by default as many as in training."
    )
    fps: float | None = Field(
        default=None, gt=0, description="Frames of each second to look at, instead."
    )


class VideoUrlBlock(VideoFields):
    """A video, as vLLM's and SGLang's chat completions carry it."""

    type: Literal["video_url"]
    video_url: Annotated[
        Annotated[VideoUrl, Tag("<object>")] | Annotated[str, Tag("<string>")],
        by_shape(object="an object with a url", string="a string"),
    ]


class VideoBlock(VideoFields):
    """A video, as Hugging Face's and LangChain's blocks carry it; exactly one source."""

    type: Literal["video"]
    video: str | None = Field(default=None, min_length=1)
    url: str | None = Field(default=None, min_length=1)
    base64: str | None = Field(default=None, min_length=1)
    mime_type: str | None = Field(
        default=None, description=f"{NO_EFFECT}: the bytes themselves say what they are."
    )


VideoBlocks = VideoUrlBlock | VideoBlock
"""All blocks that carry a video."""

Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[InputTextBlock, Tag("<input_text>")]
    | Annotated[OutputTextBlock, Tag("<output_text>")]
    | Annotated[RefusalBlock, Tag("<refusal>")]
    | Annotated[ImageUrlBlock, Tag("<image_url>")]
    | Annotated[InputImageBlock, Tag("<input_image>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[VideoUrlBlock, Tag("<video_url>")]
    | Annotated[VideoBlock, Tag("<video>")]
    | Annotated[FileBlock, Tag("<file>")]
    | Annotated[InputFileBlock, Tag("<input_file>")],
    by_field(
        "type",
        *("text", "input_text", "output_text", "refusal"),
        *("image_url", "input_image", "image", "video_url", "video", "file", "input_file"),
    ),
]

Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Block], Field(max_length=1024), Tag("<list>")],
    by_shape(string="a string", list="a list of content blocks"),
]


class MessageFields(CacheHint):
    """What every message may have beside its content."""

    name: str | None = None
    id: str | None = Field(default=None, description=f"{NO_EFFECT}: a name for the client.")


class SystemMessage(MessageFields):
    """What is said before all else."""

    role: Literal["system"]
    content: Content


class DeveloperMessage(MessageFields):
    """OpenAI's newer name for a system message."""

    role: Literal["developer"]
    content: Content


class UserMessage(MessageFields):
    """A question, with images and videos."""

    role: Literal["user"]
    content: Content


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


class AssistantMessage(MessageFields):
    """An earlier answer, also as clients send back what they were given."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    tool_calls: list[MadeCall] | None = Field(default=None, max_length=128)
    cut_tool_calls: list[dict[str, Any]] | None = Field(
        default=None, description=f"{NO_EFFECT}: a call that was cut was never made."
    )
    reasoning_content: str | None = Field(
        default=None, description=f"{NO_EFFECT}: a model's thoughts are no part of the dialogue."
    )
    reasoning: str | None = Field(
        default=None, description=f"{NO_EFFECT}: vLLM's newer name for reasoning_content."
    )
    provider_specific_fields: dict[str, Any] | None = Field(
        default=None, description=f"{NO_EFFECT}: litellm's notes on an earlier answer."
    )
    annotations: list[Any] | None = Field(
        default=None, max_length=0, description=f"{NO_EFFECT}: only an empty list is taken."
    )
    audio: None = None
    function_call: None = None


class ToolMessage(MessageFields):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str = Field(min_length=1)


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[DeveloperMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    by_field("role", "system", "developer", "user", "assistant", "tool"),
]
