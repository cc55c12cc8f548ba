"""The interface of all models: adapters, command line and servers use a :class:`Backend` alone.

A concrete backend implements :meth:`Backend.submit` and a few questions about the model;
everything else (sync and async, whole and streamed) is written here, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

from llavakit import tracing
from llavakit._checks import check_instance, check_integer, check_number, known
from llavakit._forks import ForkLock, in_child
from llavakit._threads import off_loop
from llavakit.errors import MessageError, ParameterError
from llavakit.streams import AnswerStream, Gathering, agather, gather, gather_all
from llavakit.values import (
    REQUEST_OPTIONS,
    Chunk,
    Completion,
    Image,
    Message,
    Part,
    Request,
    SamplingParams,
    Text,
    Tool,
    ToolChoice,
    Video,
)

if TYPE_CHECKING:
    from llavakit.embeddings import Embedding, EmbeddingSpace
    from llavakit.sources import SourcePolicy

NO_EMBEDDINGS = "Only a model in this process gives embeddings; load it without base_url for them."

Messages: TypeAlias = Sequence[Message] | Message | str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a model, known without running it.

    Attributes:
        name: the name that the user gave.
        context_length: tokens of prompt and answer together.
        image_inputs: whether the model takes images.
        tool_calling: whether tools can be offered (constrained decoding makes any model able to).
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
        # All requests of all kinds of backends pass here.
        super().__init_subclass__(**options)
        if "submit" in vars(cls):
            cls.submit = _watched(cls.submit)  # type: ignore[method-assign, assignment]

    def __reduce__(self) -> NoReturn:
        raise ParameterError(
            "A backend cannot be pickled; call llavakit.load with the same arguments there."
        )

    def __deepcopy__(self, memo: object) -> Self:
        return self  # one engine, however many hold it

    @abstractmethod
    def submit(self, request: Request) -> AnswerStream:
        """Queue a request; return the stream of its answer at once.

        Opens the images and counts the tokens on the calling thread, so that bad input
        raises here (:class:`~llavakit.errors.InputError`) and costs the model nothing.
        """

    @abstractmethod
    def count_tokens(
        self,
        messages: Messages,
        *,
        tools: Sequence[Tool] = (),
        continue_final_message: bool = False,
    ) -> int:
        """Count the tokens of the prompt, images included; nothing is run.

        Of an image at a URL only the beginning is fetched, under the policy, to find its size.

        A part of a conversation that could not be answered can be counted as well.

        Args:
            messages: the conversation.
            tools: that are offered.
            continue_final_message: whether the answer goes on with the last message.
        """

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """Facts about the model; reads its configuration, not its weights."""

    @property
    def policy(self) -> SourcePolicy:
        """Which files and addresses images may come from."""
        from llavakit.sources import DEFAULT_POLICY

        return DEFAULT_POLICY

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Return figures of the moment: requests running and waiting, caches, tokens."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether ``close()`` was called (or the engine has died): it takes no more requests."""

    @abstractmethod
    def close(self) -> None:
        """End every request with an error and free the weights; safe to call twice."""

    @property
    def has_retrieval_adapter(self) -> bool:
        """Whether :meth:`embed` works without an adapter that is named; reads no weights."""
        return False

    def embedding_space(self, adapter: str | os.PathLike[str] | None = None) -> EmbeddingSpace:
        """Return what embeddings by an adapter have in common; reads files, runs nothing.

        Args:
            adapter: as in :meth:`embed`.

        Raises:
            ParameterError: the model gives no embeddings.
            ModelError: the adapter is missing or damaged.
        """
        raise ParameterError(NO_EMBEDDINGS)

    def embed(
        self,
        *,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """Embed images or queries, so that a query finds the images that answer it.

        The same weights answer questions meanwhile, and their answers do not change. An image is
        one vector for each of its tokens, a query one for each token of its text.

        Args:
            images: whatever :class:`~llavakit.Image` takes. Give images or texts.
            texts: queries.
            adapter: directory of a retrieval adapter (`llavakit train retrieve`); None takes the
                one that came with the checkpoint.
            timeout: seconds for each.

        Raises:
            ParameterError: neither images nor texts are given, or both; or the model gives no
                embeddings.
            InputError: an image or a text cannot be read.
            ModelError: the adapter is missing, damaged, or of another model.
        """
        raise ParameterError(NO_EMBEDDINGS)

    async def aembed(self, **options: Any) -> list[Embedding]:
        """Run :meth:`embed` without blocking the event loop; cancelling it frees the model."""
        return await asyncio.to_thread(self.embed, **options)

    def warm_up(  # noqa: B027  # most backends have nothing to do
        self, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        """Load the model and do now what the first requests would wait for.

        A second call costs nothing. Only errors of loading are raised: what cannot be prepared is
        a warning, and is left to the requests. For a model on a server there is nothing to do.

        Args:
            progress: called after each task with how many are done, of how many, and the last
                one's name; on any thread.
        """

    def stream(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> AnswerStream:
        """Stream the answer in chunks; closing the stream cancels the request.

        Args:
            messages: a conversation, one message, or a plain question.
            params: how the answer is sampled.
            **options: ``tools``, ``tool_choice``, ``parallel_tool_calls``, ``timeout``,
                ``add_generation_prompt``, ``continue_final_message``
                (see :class:`~llavakit.values.Request`).
        """
        return self.submit(to_request(messages, params, **options))

    def generate(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """Return the whole answer; arguments as in :meth:`stream`."""
        with self.stream(messages, params, **options) as chunks:
            return gather(chunks)

    def choices(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int, **options: Any
    ) -> list[Completion]:
        """Return several answers to one request; its prompt is computed once for all of them.

        Each has a usage of its own; :meth:`~llavakit.values.Usage.of_choices` counts the prompt
        once, as OpenAI does.

        Args:
            messages: as in :meth:`stream`.
            params: with a seed, the i-th answer is sampled with ``seed + i``.
            n: how many answers.
            **options: as in :meth:`stream`.

        Raises:
            LlavaKitError: the first error of any of them; the others are cancelled.
        """
        requests = _requests(to_request(messages, params, **options), n)
        streams = self._submit_all(requests)
        try:
            return gather_all(streams)
        finally:
            _close_all(streams)

    def _submit_all(self, requests: Sequence[Request]) -> list[AnswerStream]:
        """Queue requests of one prompt, whose images are read once; all of them or none."""
        held = [_held(message, self.policy) for message in requests[0].messages]
        streams: list[AnswerStream] = []
        try:
            for request in requests:
                streams.append(self.submit(replace(request, messages=tuple(held))))
        except BaseException:
            _close_all(streams)
            raise
        return streams

    async def astream(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Chunk, None]:
        """Run :meth:`stream` without blocking the event loop."""
        request = to_request(messages, params, **options)
        begun = off_loop(_preparing_pool(), lambda: self.submit(request), AnswerStream.close)
        async with contextlib.aclosing(await begun) as chunks:
            async for chunk in chunks:
                yield chunk

    async def agenerate(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """Run :meth:`generate` without blocking the event loop; cancelling it frees the model."""
        gathering = Gathering()
        async with contextlib.aclosing(self.astream(messages, params, **options)) as chunks:
            async for chunk in chunks:
                gathering.add(chunk)
        return gathering.completion()

    async def achoices(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int, **options: Any
    ) -> list[Completion]:
        """Run :meth:`choices` without blocking the event loop; cancelling it cancels all."""
        requests = _requests(to_request(messages, params, **options), n)
        streams = await off_loop(_preparing_pool(), lambda: self._submit_all(requests), _close_all)
        tasks = [asyncio.ensure_future(agather(stream)) for stream in streams]
        try:
            return await asyncio.gather(*tasks)
        finally:
            _close_all(streams)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def acount_tokens(
        self,
        messages: Messages,
        *,
        tools: Sequence[Tool] = (),
        continue_final_message: bool = False,
    ) -> int:
        """Run :meth:`count_tokens` without blocking the event loop."""
        # Backends of others may not know it.
        continues = {"continue_final_message": True} if continue_final_message else {}
        return await asyncio.to_thread(self.count_tokens, messages, tools=tools, **continues)

    def ask(self, image: Any, question: str, **params: Any) -> str:
        """Ask one question about one image or several; greedy unless a temperature is given.

        Args:
            image: an image (path, URL, bytes, PIL image, array), a :class:`Video`, a list of
                them, or None.
            question: in plain words.
            **params: fields of :class:`SamplingParams`.
        """
        params.setdefault("temperature", 0.0)
        known(params, SamplingParams.names(), "ask")
        return self.generate(question_about(image, question), SamplingParams(**params)).text


def _requests(request: Request, n: int) -> list[Request]:
    """A request for each of ``n`` answers; seeds count up."""
    check_integer("n", n, least=1)
    seed = request.params.seed
    if seed is None:
        return [request] * n
    return [
        replace(request, params=replace(request.params, seed=seed + number)) for number in range(n)
    ]


def _held(message: Message, policy: SourcePolicy) -> Message:
    """The message with its media's bytes in place of their addresses, so they are read once."""
    if all(isinstance(part, Text) for part in message.content):
        return message
    return replace(message, content=tuple(_held_part(part, policy) for part in message.content))


def _held_part(part: Part, policy: SourcePolicy) -> Part:
    from llavakit.sources import read_source

    if isinstance(part, Text) or not isinstance(part.source, (str, Path)):
        return part
    data = read_source(part.source, policy, from_url_field=part.from_url_field)
    if isinstance(part, Video):
        return Video(data, num_frames=part.num_frames, fps=part.fps)
    return Image(data)


def _close_all(streams: Iterable[AnswerStream]) -> None:
    for stream in streams:
        stream.close()


def _watched(
    submit: Callable[[Any, Request], AnswerStream],
) -> Callable[[Any, Request], AnswerStream]:
    """``submit`` with a span, if tracing is enabled."""

    @functools.wraps(submit)
    def submit_watched(self: Backend, request: Request) -> AnswerStream:
        check_instance("request", request, Request, "a llavakit.Request")
        if not tracing.enabled():
            return submit(self, request)
        return tracing.traced(
            functools.partial(submit, self), request, functools.partial(_model_of, self)
        )

    return submit_watched


def _model_of(backend: Backend) -> str:
    """The model's name; from the configuration where it has one."""
    config = getattr(backend, "config", None)
    return str(getattr(config, "model", None) or backend.info.name)


def question_about(image: Any, question: str) -> Message:
    """Return a user's message of one or several images and a question about them."""
    pictures = [] if image is None else image if isinstance(image, (list, tuple)) else [image]
    parts = [one if isinstance(one, (Image, Video)) else Image(one) for one in pictures]
    return Message("user", [*parts, Text(question)])


def to_request(
    messages: Messages,
    params: SamplingParams | None = None,
    *,
    tools: Iterable[Tool] = (),
    tool_choice: ToolChoice = "auto",
    parallel_tool_calls: bool = True,
    timeout: float | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    **unknown: Any,
) -> Request:
    """Make a :class:`Request` of what callers find natural to pass."""
    for name in unknown:
        if name in SamplingParams.names():
            raise ParameterError(f"{name} goes into the params: SamplingParams({name}=...).")
    known(unknown, REQUEST_OPTIONS, "This call")
    conversation = _conversation(messages)
    if not (params is None or isinstance(params, SamplingParams)):
        raise ParameterError(
            f"params is of type {type(params).__name__}; give SamplingParams(...)."
        )
    check_instance("tools", tools, Iterable, "a list of llavakit.Tool objects")
    tools = tuple(tools)
    for tool in tools:
        if not isinstance(tool, Tool):
            raise ParameterError(
                f"A tool is of type {type(tool).__name__}; give llavakit.Tool(...)."
            )
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"Two tools are called {name!r}; give each a name of its own.")
    check_instance("parallel_tool_calls", parallel_tool_calls, bool, "True or False")
    if tool_choice not in ["auto", "none", "required", *names]:
        raise ParameterError(
            f"tool_choice is {tool_choice!r}; it must be auto, none, required or the name of a "
            f"tool ({', '.join(sorted(names)) or 'no tools were given'})."
        )
    if tool_choice == "required" and not tools:
        raise ParameterError("tool_choice is 'required', but no tools were given; give tools.")
    if timeout is not None:
        check_number("timeout", timeout, above=0)
    check_instance("continue_final_message", continue_final_message, bool, "True or False")
    return Request(
        conversation,
        params or SamplingParams(),
        tools,
        tool_choice,
        parallel_tool_calls,
        timeout,
        begins_a_turn(add_generation_prompt, continue_final_message),
        continue_final_message,
    )


def begins_a_turn(asked: bool | None, continues: bool) -> bool:
    """Return whether the answer is a turn of its own, which a final assistant message decides.

    Args:
        asked: ``add_generation_prompt``, None if it is not set.
        continues: ``continue_final_message``.

    Raises:
        ParameterError: both or neither would be set.
    """
    if asked is None:
        return not continues
    check_instance("add_generation_prompt", asked, bool, "True or False")
    if asked and continues:
        raise ParameterError(
            "add_generation_prompt and continue_final_message contradict each other: an answer "
            "begins a turn or goes on with one; set only one of them."
        )
    if not asked and not continues:
        raise ParameterError(
            "add_generation_prompt=False leaves the answer without a turn; set "
            "continue_final_message=True to go on with the last message, or leave both out."
        )
    return asked


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
_pool_lock = ForkLock()


def _preparing_pool() -> ThreadPoolExecutor:
    # Images are decoded and text is tokenised here for async callers; both release the GIL.
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2), "llavakit-prepare")
        return _pool


@in_child
def _forget_pool() -> None:
    # A forked child inherits the object but not its threads.
    global _pool
    _pool = None
