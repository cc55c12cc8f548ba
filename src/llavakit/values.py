"""The values that travel through llavakit: messages in, chunks out.

Frozen, comparable, free of torch and of any framework. Nothing here reads a file or opens
a connection: an :class:`Image` only names its source (or holds pixels that were given);
:mod:`llavakit.images` opens it, and :mod:`llavakit.videos` a :class:`Video`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llavakit._checks import check_instance, check_integer, check_number, members, refused, strings
from llavakit.errors import MessageError, ParameterError, SchemaError, UnsupportedContentError

if TYPE_CHECKING:
    from llavakit.images import Picture

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
ToolChoice: TypeAlias = str
"""``"auto"``, ``"none"``, ``"required"``, or the name of the one tool that must be called."""


def check_characters(text: str) -> None:
    """Refuse text with halves of characters (lone surrogates), which come of a wrong decoding.

    Raises:
        MessageError: there is one; the message has its place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise MessageError(
            f"The text holds half a character ({half} at {error.start}), which no model can read; "
            "it was decoded wrongly, so decode its bytes as UTF-8."
        ) from error


@dataclass(frozen=True, slots=True)
class Text:
    """A text part of a message."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UnsupportedContentError(
                f"A text is a string, not {type(self.text).__name__}; give a str."
            )
        check_characters(self.text)


@dataclass(frozen=True, slots=True, init=False)
class Image:
    """An image in a message.

    Args:
        source: anything that :mod:`llavakit.images` accepts: a path (``str`` or ``Path``), an
            http(s), ``file:`` or ``data:`` URL, bare base64, bytes, a binary file object, a
            PIL image, a numpy array, or a :class:`~llavakit.images.Picture`. Objects that
            can change later (file objects, PIL images, arrays) are read at once, so that the
            value never changes afterwards.
        from_url_field: the source comes from a URL field of a message. Such a string is
            never read as a path: only data and http(s) URLs are opened, and ``file:`` URLs
            below an allowed root (see :class:`~llavakit.SourcePolicy`).
    """

    source: str | Path | bytes | Picture
    from_url_field: bool = False

    def __init__(self, source: Any, *, from_url_field: bool = False) -> None:
        from llavakit.images import hold

        object.__setattr__(self, "source", hold(source))
        object.__setattr__(self, "from_url_field", from_url_field)


@dataclass(frozen=True, slots=True, init=False)
class Video:
    """A video in a message, for models that take videos.

    The model looks at some of its frames: as many as its checkpoint names, or was trained with,
    spread over the whole video, unless the caller says otherwise.

    Args:
        source: a path (``str`` or ``Path``), an http(s), ``file:`` or ``data:`` URL, bare
            base64, bytes, or a binary file object, which is read at once.
        num_frames: how many frames are looked at; of a shorter video all.
        fps: how many frames of each second, instead.
        from_url_field: as of :class:`Image`.
    """

    source: str | Path | bytes
    num_frames: int | None = None
    fps: float | None = None
    from_url_field: bool = False

    def __init__(
        self,
        source: Any,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        from_url_field: bool = False,
    ) -> None:
        from llavakit.videos import FrameSampling, hold

        FrameSampling(num_frames, fps)  # raises where they are wrong
        object.__setattr__(self, "source", hold(source))
        object.__setattr__(self, "num_frames", num_frames)
        object.__setattr__(self, "fps", fps)
        object.__setattr__(self, "from_url_field", from_url_field)


Part: TypeAlias = Text | Image | Video


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
                f"{type(self.arguments).__name__}; give them parsed."
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
        check_instance("A tool's description", self.description, str, "a string")
        check_instance("A tool's parameters", self.parameters, Mapping, "a JSON schema (a mapping)")
        kind = self.parameters.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise SchemaError(
                f"The parameters of the tool {self.name!r} are of type {kind!r}; the arguments of "
                "a call must be an object."
            )


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One turn of a conversation.

    Args:
        role: ``"system"``, ``"user"``, ``"assistant"`` or ``"tool"``.
        content: a string, one part, or a sequence of strings and parts, in their order.
        tool_calls: calls that this (assistant) turn asked for.
        tool_call_id: in a tool turn, the call that it answers.
        name: an optional name of the participant or of the tool.
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
        check_instance("tool_calls", tool_calls, Iterable, "a list of llavakit.ToolCall objects")
        calls = tuple(tool_calls)
        if not all(isinstance(call, ToolCall) for call in calls):
            raise MessageError(
                "tool_calls must hold llavakit.ToolCall objects; make them of name and arguments."
            )
        object.__setattr__(self, "tool_calls", calls)
        object.__setattr__(self, "tool_call_id", tool_call_id)
        object.__setattr__(self, "name", name)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The images, in their order."""
        return tuple(part for part in self.content if isinstance(part, Image))

    @property
    def videos(self) -> tuple[Video, ...]:
        """The videos, in their order."""
        return tuple(part for part in self.content if isinstance(part, Video))


def _parts(content: str | Part | Sequence[str | Part]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    if isinstance(content, (Text, Image, Video)):
        return (content,)
    several = isinstance(content, Iterable) and not isinstance(content, (bytes, Mapping))
    parts: list[Part] = []
    for part in content if several else [content]:
        if isinstance(part, str):
            part = Text(part)
        if not isinstance(part, (Text, Image, Video)):
            raise UnsupportedContentError(
                f"A message holds Text, Image and Video parts, not {type(part).__name__}; "
                "wrap images in llavakit.Image, and videos in llavakit.Video."
            )
        parts.append(part)
    return tuple(parts)


LogitBias: TypeAlias = Mapping[Any, float] | tuple[tuple[int, float], ...]
"""Numbers added to the logits of tokens; sorted pairs in a :class:`SamplingParams`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the answer is sampled.

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
        presence_penalty: subtracted from the logit of each token in the answer, -2..2 (OpenAI).
        frequency_penalty: the same, once for each time that it occurs, -2..2 (OpenAI).
        logit_bias: what is added to the logits of tokens, -100..100, by their ids (int, or digits
            as in JSON); 100 all but forces a token, and -100 all but forbids it. Kept as sorted
            pairs. A grammar has precedence over it.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: LogitBias = ()

    def __post_init__(self) -> None:
        for name, value in {
            "max_tokens": check_integer("max_tokens", self.max_tokens, least=1),
            "temperature": check_number("temperature", self.temperature, least=0),
            "top_p": check_number("top_p", self.top_p, above=0, most=1),
            "top_k": check_integer("top_k", self.top_k, least=0),
            "min_p": check_number("min_p", self.min_p, least=0, below=1),
            "repetition_penalty": check_number(
                "repetition_penalty", self.repetition_penalty, above=0
            ),
            "seed": None if self.seed is None else check_integer("seed", self.seed),
            "stop": strings("stop", self.stop),
            "logprobs": None
            if self.logprobs is None
            else check_integer("logprobs", self.logprobs, least=0, most=20),
            "presence_penalty": check_number(
                "presence_penalty", self.presence_penalty, least=-2, most=2
            ),
            "frequency_penalty": check_number(
                "frequency_penalty", self.frequency_penalty, least=-2, most=2
            ),
            "logit_bias": _biases(self.logit_bias),
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
        """Return the names of all parameters."""
        return tuple(f.name for f in fields(cls))


_MOST_DIGITS = 18
"""Most digits of a token id; Python itself refuses to read numbers of thousands."""


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Convert a ``logit_bias`` to pairs, sorted by the token; None gives none.

    Raises:
        ParameterError: it is not a ``logit_bias``, or names a token twice.
    """
    if given is None:
        return ()
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not (isinstance(pairs, (list, tuple)) and all(map(_is_pair, pairs))):
        raise refused("logit_bias", given, "a mapping of token ids to numbers from -100 to 100")
    biases: dict[int, float] = {}
    for token, bias in pairs:
        number = check_integer("A token id of logit_bias", _token_id(token), least=0)
        if number in biases:
            raise ParameterError(f"logit_bias names the token {number} twice; give it one value.")
        biases[number] = check_number(
            f"logit_bias of the token {number}", bias, least=-100, most=100
        )
    return tuple(sorted(biases.items()))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _token_id(token: Any) -> Any:
    """Convert digits, which JSON has for keys, to a number; leave anything else as it is."""
    if isinstance(token, str) and token.isdecimal() and len(token) <= _MOST_DIGITS:
        return int(token)
    return token


@dataclass(frozen=True, slots=True)
class Request:
    """All that one answer depends on.

    Attributes:
        messages: the conversation so far.
        params: how the answer is sampled.
        tools: tools that the model may call.
        tool_choice: see :data:`ToolChoice`.
        parallel_tool_calls: whether one answer may hold several calls.
        timeout: seconds until the request is given up, queueing included; None waits.
        add_generation_prompt: the answer is a new turn of the assistant, whatever the last one is.
        continue_final_message: the answer goes on with the last message, which is the
            assistant's, instead; a schema or grammar holds for what is new. Both names are
            vLLM's, and one of the two is true.
    """

    messages: tuple[Message, ...]
    params: SamplingParams = SamplingParams()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    timeout: float | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


REQUEST_OPTIONS = tuple(f.name for f in fields(Request) if f.name not in ("messages", "params"))
"""Arguments of ``Backend.generate`` and its variants besides messages and parameters."""


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

    @classmethod
    def of_choices(cls, usages: Iterable[Usage]) -> Usage:
        """Sum the usage of several answers; their prompt counts once, as OpenAI counts ``n``."""
        counted: list[Usage] = members("usages", usages, Usage) or [Usage()]
        answers = sum(one.completion_tokens for one in counted)
        return replace(counted[0], completion_tokens=answers)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer, its log probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


CUT_CALLS = "cut_tool_calls"
"""The field in which llavakit's server reports cut calls, besides OpenAI's own fields."""


@dataclass(frozen=True, slots=True)
class CutCall:
    """A tool call that the end of the answer cut: never to be run, and never to be completed.

    What is missing cannot be guessed: ``{"amount": 345`` may have been about to say 3456.

    Attributes:
        name: the tool's name, as far as it came.
        arguments: the JSON of the arguments, as far as it came.
    """

    name: str
    arguments: str = ""

    @property
    def reason(self) -> str:
        """One sentence that says why it is not a call, and what to do."""
        return (
            f"The call of {self.name or 'a tool'!r} was cut before its arguments were complete and "
            "was not run; raise max_tokens."
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A fragment of an answer. The last one has ``finish_reason`` and ``usage``, and only these.

    Calls are emitted when they are complete, so that no program completes a fragment of one; a call
    that a limit cut is reported once, before the last chunk, in ``cut_calls``.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    cut_calls: tuple[CutCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete answer."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    logprobs: tuple[TokenLogprob, ...] = ()
    cut_calls: tuple[CutCall, ...] = ()
