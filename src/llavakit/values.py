"""The values that travel through llavakit: messages in, chunks out.

Frozen, comparable, free of torch and of any framework. Nothing here reads a file or opens
a connection: an :class:`Image` only names its source (or holds pixels that were handed
over); :mod:`llavakit.images` opens it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llavakit._checks import kind, real, refused, strings, whole
from llavakit.errors import MessageError, ParameterError, SchemaError, UnsupportedContentError

if TYPE_CHECKING:
    from llavakit.images import Picture

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
ToolChoice: TypeAlias = str
"""``"auto"``, ``"none"``, ``"required"``, or the name of the one tool that must be called."""


def check_characters(text: str) -> None:
    """Refuses what is no text: halves of characters, which come of bytes that were read wrongly.

    Raises:
        MessageError: there is one; its place is told.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise MessageError(
            f"The text holds half a character ({half} at {error.start}), which no model can read; "
            "it was decoded wrongly."
        ) from error


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a message."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UnsupportedContentError(f"A text is a string, not {type(self.text).__name__}.")
        check_characters(self.text)


@dataclass(frozen=True, slots=True, init=False)
class Image:
    """A picture in a message.

    Args:
        source: anything that the picture door accepts: a path (``str`` or ``Path``), an
            http(s), ``file:`` or ``data:`` URL, bare base64, bytes, a binary file object, a
            PIL image, a numpy array, or a :class:`~llavakit.images.Picture`. Objects that
            can change later (file objects, PIL images, arrays) are read at once, so the
            value never changes behind the caller's back.
        from_url_field: the source stood in a URL field of a message. Such a string is
            never read as a path: only data and http(s) URLs are opened, and ``file:`` URLs
            below an allowed root (see :class:`~llavakit.SourcePolicy`).
    """

    source: str | Path | bytes | Picture
    from_url_field: bool = False

    def __init__(self, source: Any, *, from_url_field: bool = False) -> None:
        from llavakit.images import hold

        object.__setattr__(self, "source", hold(source))
        object.__setattr__(self, "from_url_field", from_url_field)


Part: TypeAlias = Text | Image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        id: unique within the conversation.
        name: the tool's name.
        arguments: the arguments as parsed JSON.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and isinstance(self.arguments, Mapping)):
            raise MessageError(
                f"A tool call has a name and a dict of arguments, not {self.name!r} and "
                f"{type(self.arguments).__name__}."
            )


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call; ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise refused("A tool's name", self.name, "a non-empty string")
        kind("A tool's description", self.description, str, "a string")
        kind("A tool's parameters", self.parameters, Mapping, "a JSON schema (a mapping)")
        said = self.parameters.get("type", "object")
        if said != "object" and not (isinstance(said, list) and "object" in said):
            raise SchemaError(
                f"The parameters of the tool {self.name!r} are of type {said!r}; the arguments of "
                "a call are an object."
            )


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One turn of a conversation.

    Args:
        role: ``"system"``, ``"user"``, ``"assistant"`` or ``"tool"``.
        content: a string, one part, or a sequence of strings and parts, in their order.
        tool_calls: calls that this (assistant) turn asked for.
        tool_call_id: in a tool turn, the call that it answers.
        name: an optional name of the speaker or of the tool.
    """

    role: Role
    content: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __init__(
        self,
        role: str,
        content: str | Part | Sequence[str | Part] = (),
        *,
        tool_calls: Sequence[ToolCall] = (),
        tool_call_id: str | None = None,
        name: str | None = None,
    ) -> None:
        if role not in ROLES:
            raise MessageError(f"Unknown role {role!r}; use one of {', '.join(ROLES)}.")
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "content", _parts(content))
        calls = tuple(tool_calls)
        if not all(isinstance(call, ToolCall) for call in calls):
            raise MessageError("tool_calls holds llavakit.ToolCall objects.")
        object.__setattr__(self, "tool_calls", calls)
        object.__setattr__(self, "tool_call_id", tool_call_id)
        object.__setattr__(self, "name", name)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, in their order."""
        return tuple(part for part in self.content if isinstance(part, Image))


def _parts(content: str | Part | Sequence[str | Part]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    if isinstance(content, (Text, Image)):
        return (content,)
    several = isinstance(content, Iterable) and not isinstance(content, (bytes, Mapping))
    parts: list[Part] = []
    for part in content if several else [content]:
        if isinstance(part, str):
            part = Text(part)
        if not isinstance(part, (Text, Image)):
            raise UnsupportedContentError(
                f"A message holds Text and Image parts, not {type(part).__name__}; "
                "wrap pictures in llavakit.Image."
            )
        parts.append(part)
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the answer is drawn from the model.

    Attributes:
        max_tokens: most tokens of the answer, at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: nucleus sampling, in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one, in [0, 1).
        repetition_penalty: > 1 makes repeated tokens less likely (Keskar et al. 2019).
        seed: the same seed gives the same answer, whatever runs beside it.
        stop: strings that end the answer; they never appear in it.
        logprobs: None, or the number of alternatives to report for each token (0..20).
        json_schema: a JSON schema (mapping), or True for any JSON object.
        grammar: a regular expression, or a Lark grammar that begins with ``start:``.
    """

    max_tokens: int = 512
    temperature: float = 0.2
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    json_schema: Mapping[str, Any] | Literal[True] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, value in {
            "max_tokens": whole("max_tokens", self.max_tokens, least=1),
            "temperature": real("temperature", self.temperature, least=0),
            "top_p": real("top_p", self.top_p, above=0, most=1),
            "top_k": whole("top_k", self.top_k, least=0),
            "min_p": real("min_p", self.min_p, least=0, below=1),
            "repetition_penalty": real("repetition_penalty", self.repetition_penalty, above=0),
            "seed": None if self.seed is None else whole("seed", self.seed),
            "stop": strings("stop", self.stop),
            "logprobs": None
            if self.logprobs is None
            else whole("logprobs", self.logprobs, least=0, most=20),
        }.items():
            object.__setattr__(self, name, value)
        schema, grammar = self.json_schema, self.grammar
        if not (schema is None or schema is True or isinstance(schema, Mapping)):
            raise refused("json_schema", schema, "a JSON schema (a mapping), True or None")
        if not (grammar is None or (isinstance(grammar, str) and grammar)):
            raise refused("grammar", grammar, "a regular expression, a Lark grammar or None")
        if schema is not None and grammar is not None:
            raise ParameterError("Give json_schema or grammar, not both.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all parameters."""
        return tuple(f.name for f in fields(cls))


@dataclass(frozen=True, slots=True)
class Request:
    """All that one answer depends on.

    Attributes:
        messages: the conversation so far.
        params: how the answer is drawn.
        tools: tools that the model may call.
        tool_choice: see :data:`ToolChoice`.
        parallel_tool_calls: whether one answer may hold several calls.
        timeout: seconds until the request is given up, queueing included; None waits.
    """

    messages: tuple[Message, ...]
    params: SamplingParams = SamplingParams()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    timeout: float | None = None


REQUEST_OPTIONS = tuple(f.name for f in fields(Request) if f.name not in ("messages", "params"))
"""What ``Backend.generate`` and its sisters take beside messages and parameters."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request; ``cached_tokens`` of the prompt needed no new computation."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer, its log probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallChunk:
    """A piece of a tool call while it streams.

    ``id`` and ``name`` come once, with the first piece; ``arguments`` is a piece of JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one has ``finish_reason`` and ``usage``, and only that.

    ``tool_calls`` has at most one piece of each call.
    """

    text: str = ""
    tool_calls: tuple[ToolCallChunk, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    logprobs: tuple[TokenLogprob, ...] = ()
