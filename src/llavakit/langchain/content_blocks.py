"""Content blocks of every dialect -> llavakit parts.

A LangChain message may hold blocks in the notation of LangChain v0 and v1, OpenAI (chat
completions and responses), Anthropic, Google, Bedrock, MCP or Hugging Face. This module
knows where each of them has text, images, videos and tool calls. Fields that do not concern the
content (OpenAI's ``detail``, Anthropic's ``cache_control``) have no meaning here. It opens
nothing: an image stays a source, and the backend's policy decides whether it may be opened.
"""

from __future__ import annotations

import binascii
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar

from llavakit.documents.message import Attachment
from llavakit.errors import UnsupportedContentError
from llavakit.images import Picture
from llavakit.sources.formats import ALLOWED, sniff
from llavakit.values import Image, Text, ToolCall, Video

Block: TypeAlias = Mapping[str, Any]
Media = TypeVar("Media", Image, Video)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool's result that stands as a block in a user's message (Anthropic's habit)."""

    call_id: str
    content: Any


ContentPart: TypeAlias = Text | Image | Video | Attachment | ToolCall | ToolResult

TEXT_TYPES = {"text", "input_text", "output_text", "text-plain"}
IMAGE_TYPES = {"image", "image_url", "input_image"}
VIDEO_TYPES = {"video", "video_url", "input_video"}
FILE_TYPES = {"file", "input_file", "document", "media", "inline_data", "inlineData"}
CALL_TYPES = {"tool_use", "tool_call", "function_call"}
INVALID_CALL = "invalid_tool_call"
"""A call that could not be parsed; what is read of it is in ``invalid_tool_calls``."""
REASONING_TYPES = {"reasoning", "reasoning_content", "thinking", "redacted_thinking"}
"""A model's reasoning: left out of the history, as every provider does."""

# Where the dialects have the source, outermost first. Inline data is never read as a path,
# and neither is a URL; only a `path` field, or an object that is a path, names a file.
_NESTED = (
    *("image", "image_url", "video", "video_url", "source"),
    *("inline_data", "inlineData", "file", "document"),
)
_INLINE = ("base64", "data", "bytes", "file_data")
_ADDRESS = (
    *("url", "image_url", "video_url", "file_url", "file_uri", "fileUri", "uri"),
    *("image", "video", "source"),
)
SOURCE_FIELDS = frozenset({*_NESTED, *_INLINE, *_ADDRESS, "path", "mime_type", "source_type"})
"""Names of the fields of a block's source and its type."""
_SAMPLING = ("num_frames", "fps")
_OTHER_SAMPLING = ("nframes", "video_start", "video_end", "video_metadata", "videoMetadata")
_DECLARED = ("mime_type", "mimeType", "media_type", "mediaType", "format")
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)


def read_block(block: Block) -> list[ContentPart]:
    """Return the parts of a content block; none for reasoning, which is not dialogue.

    Raises:
        UnsupportedContentError: audio, or a block of an unknown type.
    """
    kind = type_of(block)
    if kind in REASONING_TYPES or kind in (INVALID_CALL, "tool_call_chunk"):
        return []
    if kind == "non_standard" and isinstance(block.get("value"), Mapping):
        return read_block(block["value"])
    if kind == "refusal":
        return [Text(str(block.get("refusal", "")))]
    if kind in TEXT_TYPES:
        return [_text(block)]
    if kind in CALL_TYPES:
        return [_call(block)]
    if kind == "tool_result":
        return [ToolResult(str(block.get("tool_use_id", "")), block.get("content") or "")]
    image = picture_of(block)
    if image is not None:
        return [image]
    video = video_of(block)
    if video is not None:
        return [video]
    document = document_of(block)
    if document is not None:
        return [document]
    if kind in FILE_TYPES:
        return [_text_file(block, kind)]
    _refuse(kind, "LLaVA takes text, images and videos")


def picture_of(block: Block) -> Image | None:
    """Return the image of a content block, or None if it has none.

    Raises:
        UnsupportedContentError: an image block without a source, or with a foreign id.
    """
    kind = type_of(block)
    if kind in IMAGE_TYPES:
        image = _image_in(block)
        if image is None:
            _refuse(kind, "it has no source; give it a url, base64 data, a path or a PIL image")
        return image
    if kind in FILE_TYPES and _content_kind(block) == "image":
        return _image_in(block)
    return None


def video_of(block: Block) -> Video | None:
    """Return the video of a content block, or None if it has none.

    ``num_frames`` and ``fps``, beside the source or within it, say which frames are looked at, as
    Hugging Face's and Qwen's blocks do.

    Raises:
        UnsupportedContentError: a video block without a source, or with a foreign id.
        ParameterError: both are given, or one is no such number.
    """
    kind = type_of(block)
    if kind not in VIDEO_TYPES and not (kind in FILE_TYPES and _content_kind(block) == "video"):
        return None
    source = _source_in(block, Video)
    if source is None:
        _refuse(kind, "it has no source; give it a url, base64 data or a path")
    fields = {**_innermost(block), **block}
    for name in _OTHER_SAMPLING:
        if fields.get(name) is not None:
            _refuse(kind, f"{name} is not known; say num_frames or fps, or cut the video")
    asked = {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}
    if not asked:
        return source
    return Video(source.source, from_url_field=source.from_url_field, **asked)


def document_of(block: Block) -> Attachment | None:
    """Return the PDF of a content block, or None if it has none.

    Raises:
        UnsupportedContentError: a PDF without a source, or with a foreign id.
    """
    kind = type_of(block)
    if kind not in FILE_TYPES or _content_kind(block) != "pdf":
        return None
    source = _image_in(block)
    if source is None:
        _refuse(kind, "it has no source; give the PDF's base64 data, a url or a path")
    return Attachment(source)


def type_of(block: Block) -> str:
    """Return the block's type; Bedrock and Google name it by the block's key instead."""
    if "type" in block:
        return str(block["type"])
    for key in ("text", *sorted(IMAGE_TYPES | VIDEO_TYPES), *sorted(FILE_TYPES)):
        if key in block:
            return key
    if "url" in block:  # as an ImagePromptTemplate makes it
        return "image"
    return str(next(iter(block), "empty"))


class PictureId(str):
    """The digest of a held image or video, which stands for it on its way to the model.

    A string, so that traces and cache keys see the digest and never megabytes or a memory
    address; the image or video itself is attached.
    """

    __slots__ = ("image",)
    image: Image | Video

    def __new__(cls, digest: str, image: Image | Video) -> PictureId:
        self = super().__new__(cls, f"sha256:{digest}")
        self.image = image
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureId, (self.removeprefix("sha256:"), self.image)


class HeldBase64(str):
    """The base64 of an image's PNG, which need not be decoded: the image is attached."""

    __slots__ = ("picture",)
    picture: Picture

    @classmethod
    def of(cls, picture: Picture) -> HeldBase64:
        """Return the base64 of an image."""
        self = cls(picture.data_uri().partition(",")[2])
        self.picture = picture
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def _image_in(fields: Block) -> Image | None:
    return _source_in(fields, Image)


def _source_in(fields: Block, kind: type[Media]) -> Media | None:
    file_id = fields.get("file_id", fields.get("id") if _is_id(fields) else None)
    if isinstance(file_id, PictureId) and isinstance(file_id.image, kind):
        return file_id.image
    if file_id is not None:
        _refuse(
            kind.__name__.lower(),
            f"it names a file by id ({str(file_id)[:40]!r}), and there is no file store here; "
            f"send the {kind.__name__.lower()} itself",
        )
    if fields.get("path") is not None:
        return kind(fields["path"])
    for name in _INLINE:
        if fields.get(name) is not None and not isinstance(fields[name], Mapping):
            return _opened(fields[name], kind)
    for name in _NESTED:
        if isinstance(fields.get(name), Mapping):
            return _source_in(fields[name], kind)
    for name in _ADDRESS:
        if fields.get(name) is not None:
            return _opened(fields[name], kind)
    return None


def _opened(source: Any, kind: type[Media]) -> Media:
    if isinstance(source, HeldBase64):
        source = source.picture
    return kind(source, from_url_field=isinstance(source, str))


def _is_id(fields: Block) -> bool:
    return fields.get("source_type") == "id"


def _text(block: Block) -> Text:
    if not isinstance(block.get("text"), str):
        _refuse(type_of(block), "its text is missing")
    return Text(block["text"])


def _call(block: Block) -> ToolCall:
    import json

    arguments = block.get("args", block.get("input", block.get("arguments")))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            _refuse(type_of(block), "its arguments are not JSON")
    call_id = block.get("call_id") or block.get("id") or ""
    return ToolCall(str(call_id), str(block.get("name", "")), dict(arguments or {}))


def _text_file(block: Block, kind: str) -> Text:
    content = _content_kind(block)
    if content == "text":
        text = block.get("url") if block.get("source_type") == "text" else None
        source = block.get("source")
        if isinstance(source, Mapping) and source.get("type") == "text":
            text = source.get("data")
        if isinstance(text, str):
            return Text(text)
        _refuse(kind, "it holds a text file; send the text as a text block")
    if content == "audio":
        _refuse(kind, "it holds audio, and LLaVA takes text, images and videos")
    _refuse(kind, "neither its type nor its bytes are those of an image, a video or a PDF")


def _content_kind(block: Block) -> str:
    """``"image"``, ``"pdf"``, ``"audio"``, ``"video"``, ``"text"`` or ``""``.

    Bytes at hand are sniffed; the declared type and the ending of an address count only
    where there are none.
    """
    if block.get("source_type") == "text":
        return "text"
    fields = _innermost(block)
    held = fields.get("file_id")
    if isinstance(held, PictureId):
        return "video" if isinstance(held.image, Video) else "image"
    if fields.get("type") == "text":
        return "text"
    for name in (*_INLINE, *_ADDRESS):
        if (head := head_of(fields.get(name))) and (kind := sniff(head)):
            return "image" if kind in ALLOWED else kind.lower()
    declared = str(next((m[k] for m in (fields, block) for k in _DECLARED if m.get(k)), ""))
    if not declared:
        names = (*_ADDRESS, "path", "filename")
        known = next((fields[name] for name in names if fields.get(name) is not None), "")
        if not isinstance(known, str):
            return "image"  # a PIL image, an array: nothing else is given as an object
        declared = mimetypes.guess_type(known.partition("?")[0])[0] or ""
    main, _, sub = declared.lower().partition("/")
    return "pdf" if "pdf" in (main, sub) else main


def _innermost(block: Block) -> Block:
    for name in _NESTED:
        if isinstance(block.get(name), Mapping):
            return _innermost(block[name])
    return block


def head_of(value: Any) -> bytes:
    """Return the first bytes of inline data, base64 or not; empty for anything else."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[:4096])
    if not isinstance(value, str):
        return b""
    text = value[:8192]
    if text.lstrip()[:5].lower() == "data:":
        text = text.partition(",")[2]
    elif _URL.match(text):
        return b""
    text = re.sub(r"\s+", "", text[:4096]).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(text[: len(text) // 4 * 4])
    except (binascii.Error, ValueError):
        return b""


def _refuse(kind: str, reason: str) -> NoReturn:
    raise UnsupportedContentError(f"The message has a block of type {kind!r}: {reason}.")
