"""The one seam: adapters, command line and servers see a :class:`Backend` and nothing below it.

A concrete backend implements :meth:`Backend.submit` and a few questions about the model;
everything else (sync and async, whole and streamed) is written here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

from llavakit import tracing
from llavakit._checks import kind, known, real, refused, whole
from llavakit._threads import off_loop
from llavakit.errors import MessageError, ParameterError
from llavakit.streams import AnswerStream, Gathering, gather
from llavakit.values import (
    REQUEST_OPTIONS,
    Chunk,
    Completion,
    Image,
    Message,
    Request,
    SamplingParams,
    Text,
    Tool,
    ToolChoice,
)

if TYPE_CHECKING:
    from llavakit.engine.config import EngineConfig
    from llavakit.sources import SourcePolicy

Messages: TypeAlias = Sequence[Message] | Message | str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a program may want to know of a model without running it.

    Attributes:
        name: as the user named it.
        context_length: tokens of prompt and answer together.
        image_inputs: whether the model takes pictures.
        tool_calling: whether tools can be offered (constrained decoding holds any model to it).
        revision: a digest or commit of the weights, where known.
    """

    name: str
    context_length: int
    image_inputs: bool = True
    tool_calling: bool = True
    revision: str = ""


class Backend(ABC):
    """A model that answers; shared by every chain, agent, retriever and thread of the process."""

    def __init_subclass__(cls, **options: Any) -> None:
        # All requests of all kinds of backends pass here, whoever calls submit.
        super().__init_subclass__(**options)
        if "submit" in vars(cls):
            cls.submit = _watched(cls.submit)  # type: ignore[method-assign, assignment]

    def __reduce__(self) -> NoReturn:
        raise ParameterError(
            "A backend cannot be pickled; call llavakit.load with the same arguments there."
        )

    def __deepcopy__(self, memo: object) -> Self:
        return self  # one engine, whoever holds it

    @abstractmethod
    def submit(self, request: Request) -> AnswerStream:
        """Queue a request; returns at once with the stream of its answer.

        Opens the pictures and counts the tokens on the calling thread, so that bad input
        raises here (:class:`~llavakit.errors.InputError`) and costs the model nothing.
        """

    @abstractmethod
    def count_tokens(self, messages: Messages, *, tools: Sequence[Tool] = ()) -> int:
        """Tokens of the prompt, pictures included; nothing is run and nothing is fetched.

        A stretch of a conversation that could not be answered can be counted all the same.
        """

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """Facts about the model; reads its configuration, not its weights."""

    @property
    def policy(self) -> SourcePolicy:
        """Which files and addresses pictures may come from."""
        from llavakit.sources import DEFAULT_POLICY

        return DEFAULT_POLICY

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Figures of the moment: requests running and waiting, caches, tokens."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether ``close()`` was called (or the engine has died): it takes no more requests."""

    @abstractmethod
    def close(self) -> None:
        """End every request with an error and free the weights; safe to call twice."""

    def stream(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> AnswerStream:
        """The answer in chunks; closing the stream cancels the request.

        Args:
            messages: a conversation, one message, or a plain question.
            params: how the answer is drawn.
            **options: ``tools``, ``tool_choice``, ``parallel_tool_calls``, ``timeout``
                (see :class:`~llavakit.values.Request`).
        """
        return self.submit(to_request(messages, params, **options))

    def generate(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """The whole answer; arguments as in :meth:`stream`."""
        with self.stream(messages, params, **options) as chunks:
            return gather(chunks)

    def choices(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int, **options: Any
    ) -> list[Completion]:
        """Several answers to one request; its prompt is computed once for all of them.

        Args:
            messages: as in :meth:`stream`.
            params: with a seed, the i-th answer is drawn with ``seed + i``.
            n: how many answers.
            **options: as in :meth:`stream`.
        """
        whole("n", n, least=1)
        request = to_request(messages, params, **options)
        first = request.params
        with contextlib.ExitStack() as open_streams:
            streams = []
            for number in range(n):
                seed = None if first.seed is None else first.seed + number
                stream = self.submit(replace(request, params=replace(first, seed=seed)))
                streams.append(open_streams.enter_context(stream))
            return [gather(stream) for stream in streams]

    async def astream(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Chunk, None]:
        """As :meth:`stream`, never blocking the event loop."""
        request = to_request(messages, params, **options)
        begun = off_loop(_preparing_pool(), lambda: self.submit(request), AnswerStream.close)
        async with contextlib.aclosing(await begun) as chunks:
            async for chunk in chunks:
                yield chunk

    async def agenerate(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """As :meth:`generate`, never blocking the event loop; cancelling it frees the model."""
        gathering = Gathering()
        async with contextlib.aclosing(self.astream(messages, params, **options)) as chunks:
            async for chunk in chunks:
                gathering.add(chunk)
        return gathering.completion()

    async def acount_tokens(self, messages: Messages, *, tools: Sequence[Tool] = ()) -> int:
        """As :meth:`count_tokens`, never blocking the event loop."""
        return await asyncio.to_thread(self.count_tokens, messages, tools=tools)

    def ask(self, image: Any, question: str, **params: Any) -> str:
        """One question about one picture or several; greedy unless told otherwise.

        Args:
            image: a picture (path, URL, bytes, PIL image, array), a list of them, or None.
            question: in plain words.
            **params: fields of :class:`SamplingParams`.
        """
        params.setdefault("temperature", 0.0)
        known(params, SamplingParams.names(), "ask")
        return self.generate(question_about(image, question), SamplingParams(**params)).text


def _watched(
    submit: Callable[[Any, Request], AnswerStream],
) -> Callable[[Any, Request], AnswerStream]:
    """``submit`` with a span, where somebody wants spans."""

    @functools.wraps(submit)
    def submit_watched(self: Backend, request: Request) -> AnswerStream:
        if not tracing.enabled():
            return submit(self, request)
        return tracing.traced(
            functools.partial(submit, self), request, functools.partial(_model_of, self)
        )

    return submit_watched


def _model_of(backend: Backend) -> str:
    """The model's name; asks nobody where it stands in the configuration."""
    config = getattr(backend, "config", None)
    return str(getattr(config, "model", None) or backend.info.name)


def question_about(image: Any, question: str) -> Message:
    """A user's message of one or several pictures and a question about them."""
    pictures = [] if image is None else image if isinstance(image, (list, tuple)) else [image]
    parts = [one if isinstance(one, Image) else Image(one) for one in pictures]
    return Message("user", [*parts, Text(question)])


def to_request(
    messages: Messages,
    params: SamplingParams | None = None,
    *,
    tools: Iterable[Tool] = (),
    tool_choice: ToolChoice = "auto",
    parallel_tool_calls: bool = True,
    timeout: float | None = None,
    **unknown: Any,
) -> Request:
    """A :class:`Request` from what callers find natural to pass."""
    for name in unknown:
        if name in SamplingParams.names():
            raise ParameterError(f"{name} goes into the params: SamplingParams({name}=...).")
    known(unknown, REQUEST_OPTIONS, "This call")
    conversation = _conversation(messages)
    if not (params is None or isinstance(params, SamplingParams)):
        raise ParameterError(
            f"params is of type {type(params).__name__}; give SamplingParams(...)."
        )
    tools = tuple(tools)
    for tool in tools:
        if not isinstance(tool, Tool):
            raise ParameterError(
                f"A tool is of type {type(tool).__name__}; give llavakit.Tool(...)."
            )
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"Two tools are called {name!r}; a call could mean either.")
    kind("parallel_tool_calls", parallel_tool_calls, bool, "True or False")
    if tool_choice not in ["auto", "none", "required", *names]:
        raise ParameterError(
            f"tool_choice is {tool_choice!r}; it must be auto, none, required or the name of a "
            f"tool ({', '.join(sorted(names)) or 'no tools were given'})."
        )
    if tool_choice == "required" and not tools:
        raise ParameterError("tool_choice is 'required', but no tools were given.")
    if timeout is not None:
        real("timeout", timeout, above=0)
    return Request(
        conversation,
        params or SamplingParams(),
        tools,
        tool_choice,
        parallel_tool_calls,
        timeout,
    )


def _conversation(messages: Messages) -> tuple[Message, ...]:
    if isinstance(messages, str):
        return (Message("user", messages),)
    given = messages if isinstance(messages, Iterable) else (messages,)
    conversation = tuple(given)
    for message in conversation:
        if not isinstance(message, Message):
            raise MessageError(
                f"A conversation holds llavakit.Message objects, not {type(message).__name__}; "
                'write llavakit.Message("user", "...").'
            )
    return conversation


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _preparing_pool() -> ThreadPoolExecutor:
    # Pictures are decoded and text is tokenised here for async callers; both release the GIL.
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2), "llavakit-prepare")
        return _pool


def _forget_pool() -> None:
    # A forked child inherits the object but not its threads.
    global _pool, _pool_lock, _backends_lock
    _pool, _pool_lock, _backends_lock = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


_backends: weakref.WeakValueDictionary[Any, Backend] = weakref.WeakValueDictionary()
_backends_lock = threading.Lock()


def load(
    model: str | os.PathLike[str],
    *,
    model_base: str | os.PathLike[str] | None = None,
    conv_mode: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: str | None = None,
    max_retries: int | None = None,
    timeout: float | None = None,
    source_policy: SourcePolicy | None = None,
    **settings: Any,
) -> Backend:
    """The backend of a model: the same object for the same configuration in one process.

    Nothing heavy happens here. The weights are loaded at the first use, once, and freed when
    the last holder of the backend lets go of it or calls ``close()``.

    Args:
        model: an alias (``"demo"``), a local directory, or a hub id; with ``base_url`` the
            server's name for it.
        model_base: the base model of a LoRA or projector-only checkpoint, named like a model.
        conv_mode: a conversation template by name; None takes the checkpoint's own.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        dtype: ``"auto"``, ``"float32"``, ``"float16"``, ``"bfloat16"``.
        quantization: ``"4bit"``, ``"8bit"`` or None; ``load_in_4bit`` and ``load_in_8bit``
            are understood too.
        base_url: address of an OpenAI-compatible server that runs the model, with or without
            ``/v1``. Of all other settings, it takes those below and ``context_length``.
        api_key: the server's key; None reads ``LLAVAKIT_API_KEY``, ``""`` is none.
        dialect: which kind of server it is: ``"llavakit"``, ``"vllm"``, ``"sglang"``,
            ``"transformers"`` or ``"generic"``; None finds out (see ``docs/remote.md``).
        max_retries: most further attempts, where a server gave no answer; the default is 2.
        timeout: seconds for a whole answer of a server, for requests that name none.
        source_policy: which files and addresses pictures may come from.
        **settings: further fields of :class:`~llavakit.engine.config.EngineConfig`, such as
            ``device_map="auto"`` for a model that is spread over several GPUs.

    Raises:
        ParameterError: settings that contradict each other or do not exist.
    """
    from llavakit.sources import SourcePolicy

    kind("model", model, (str, os.PathLike), "a name or a path")
    if not os.fspath(model):
        raise refused("model", model, "a name or a path")
    kind("base_url", base_url, (str, type(None)), "a server's address or None")
    kind(
        "source_policy",
        source_policy,
        (SourcePolicy, type(None)),
        "a llavakit.SourcePolicy or None",
    )
    kind("load_in_4bit", load_in_4bit, bool, "True or False")
    kind("load_in_8bit", load_in_8bit, bool, "True or False")
    policy = source_policy or SourcePolicy()
    if base_url is not None:
        here = {
            "model_base": model_base,
            "conv_mode": conv_mode,
            "device": None if device == "auto" else device,
            "dtype": None if dtype == "auto" else dtype,
            "quantization": quantization,
            "load_in_4bit": load_in_4bit or None,
            "load_in_8bit": load_in_8bit or None,
            **settings,
        }
        how = {"dialect": dialect, "max_retries": max_retries, "timeout": timeout}
        return _remote(os.fspath(model), base_url, api_key, policy, how, here)
    of_servers = {
        "api_key": api_key,
        "dialect": dialect,
        "max_retries": max_retries,
        "timeout": timeout,
    }
    for name, value in of_servers.items():
        if value is not None:
            raise ParameterError(f"{name} is for servers; give base_url too, or leave it out.")
    config = _engine_config(
        model=_located(model),
        model_base=None if model_base is None else _located(model_base),
        conv_mode=conv_mode,
        device=device,
        dtype=dtype,
        quantization=_quantization(quantization, load_in_4bit, load_in_8bit),
        **settings,
    )

    def build() -> Backend:
        from llavakit.local import LocalBackend

        return LocalBackend(config, policy)

    return shared((config, policy), build)


def _remote(
    model: str,
    base_url: str,
    api_key: str | None,
    policy: SourcePolicy,
    how: dict[str, Any],
    here: dict[str, Any],
) -> Backend:
    """The backend of a model on a server; ``here`` is what only a model in this process has."""
    from llavakit.remote.address import RemoteConfig, normalized

    limit = here.pop("context_length", None)
    given = sorted(name for name, value in here.items() if value is not None)
    if given:
        raise ParameterError(
            f"{given[0]} has no effect on a server (base_url); set it where the server is started."
        )
    key = os.environ.get("LLAVAKIT_API_KEY") if api_key is None else api_key
    config = RemoteConfig(
        model=model,
        address=normalized(base_url),
        api_key=key or None,
        context_length=limit,
        **{name: value for name, value in how.items() if value is not None},
    )

    def build() -> Backend:
        from llavakit.remote.client import RemoteBackend

        return RemoteBackend(config, policy)

    return shared((config, policy), build)


def shared(key: Any, build: Callable[[], Backend]) -> Backend:
    """The living backend of this key, or a new one; closed ones are replaced."""
    with _backends_lock:
        backend = _backends.get(key)
        if backend is None or backend.closed:
            backend = _backends[key] = build()
        return backend


def _engine_config(**settings: Any) -> EngineConfig:
    from llavakit.engine.config import EngineConfig

    unknown = sorted(set(settings) - {field.name for field in fields(EngineConfig)})
    if unknown:
        known = ", ".join(field.name for field in fields(EngineConfig))
        raise ParameterError(f"load() knows no setting {unknown[0]!r}; it knows {known}.")
    return EngineConfig(**settings)


def _located(model: str | os.PathLike[str]) -> str:
    # One directory reached by two spellings is one model; a name stays a name.
    name = os.path.expanduser(os.fspath(model))
    return os.path.realpath(name) if os.path.isdir(name) else name


def _quantization(named: str | None, in_4bit: bool, in_8bit: bool) -> str | None:
    named_by = ((named, named is not None), ("4bit", in_4bit), ("8bit", in_8bit))
    asked = {str(name) for name, given in named_by if given}
    if len(asked) > 1:
        raise ParameterError(f"Ask for one quantization, not for {' and '.join(sorted(asked))}.")
    return asked.pop() if asked else None
