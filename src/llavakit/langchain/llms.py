"""``LLaVALLM``: a LLaVA model as a plain LangChain LLM, text in and text out."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import LLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, PrivateAttr

from llavakit._checks import check_integer, members
from llavakit.arguments import CALL_ARGUMENTS, check_known, over, to_params, unaliased
from llavakit.backend import question_about
from llavakit.errors import ParameterError, UnsupportedContentError
from llavakit.images import Picture, open_picture
from llavakit.langchain.canonical import is_remote
from llavakit.langchain.chunks import PROVIDER, to_usage
from llavakit.langchain.errors import in_langchains_tree
from llavakit.langchain.serializable import SerializableModel
from llavakit.langchain.tracing import traced_settings
from llavakit.settings import ModelSettings
from llavakit.streams import AnswerStream, gather
from llavakit.values import Completion, Image, Message, SamplingParams

_CALL = tuple({*CALL_ARGUMENTS, "model", "n"} - {"tools", "tool_choice", "parallel_tool_calls"})
AT_ONCE = 64
"""Most prompts of one call that wait or run at the same time."""


class LLaVALLM(SerializableModel, LLM, ModelSettings):
    """LLaVA as a completion model: a prompt, and images at call time, in; text out.

    >>> model = LLaVALLM(model="demo", temperature=0)
    >>> model.invoke("What colour is the circle?", images="circle.png")  # doctest: +SKIP
    'red'

    ``images`` is an image or a list of them: paths, URLs, bytes, PIL images, arrays. The prompt
    becomes a user's message behind its images, written with the model's conversation template.
    :class:`~llavakit.langchain.ChatLLaVA` does the same and more; this class is for programs
    that were written for LLMs.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    n: int | None = Field(default=None, ge=1)
    """Answers to each prompt; ``generate`` gives them all."""

    _images: tuple[Image, ...] = PrivateAttr(default=())
    _arguments: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return f"{PROVIDER}-llm"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        answers = {} if self.n is None else {"n": self.n}
        images = [_name(image) for image in self._images]
        return {**self.identity(), "images": images, **answers}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return traced_settings(self, "llm", stop, kwargs)

    def called_with(self, images: Any = None, **arguments: Any) -> Self:
        """Return the model with the arguments of a call as its settings, images opened.

        LangChain keys its cache by the model's settings and not by the arguments of a call: as
        settings, two images or two temperatures never share an answer.

        Raises:
            ParameterError: an unknown argument.
            ImageError, SourceError: an image that cannot be opened.
        """
        given = {k: v for k, v in unaliased(arguments).items() if v is not None}
        check_known(given, _CALL, "This call")
        if not given and images is None:
            return self
        model = given.pop("model", self.model)
        update: dict[str, Any] = {}
        if model != self.model:
            update = {"model": model, "backend": None}
        if "n" in given:
            update["n"] = check_integer("n", given.pop("n"), least=1)
        other = self.model_copy(update=update)
        other._arguments = {**self._arguments, **given}
        if images is not None:
            other._images = self._opened(images)
        to_params(other._sampling())  # raises for values out of range
        return other

    def _sampling(self) -> dict[str, Any]:
        return over(super()._sampling(), self._arguments)

    def _opened(self, images: Any) -> tuple[Image, ...]:
        several = images if isinstance(images, (list, tuple)) else [images]
        held = [one if isinstance(one, Image) else Image(one) for one in several]
        return tuple(
            image
            if is_remote(image)  # fetched by the model, and not for a trace
            else Image(open_picture(image.source, self.policy, from_url_field=image.from_url_field))
            for image in held
        )

    def _request(
        self, prompt: str, stop: list[str] | None
    ) -> tuple[Message, SamplingParams, dict[str, Any]]:
        settings = self._sampling() | ({} if stop is None else {"stop": stop})
        options = {"timeout": settings.get("timeout")}
        return question_about(list(self._images), prompt), to_params(settings), options

    # LangChain writes a prompt of messages as text, and leaves out everything else silently.

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        prompt = super()._convert_input(model_input)
        _check_text([prompt])
        return prompt

    def generate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        _check_text(members("prompts", prompts, PromptValue))
        return super().generate_prompt(prompts, *args, **kwargs)

    async def agenerate_prompt(
        self, prompts: list[PromptValue], *args: Any, **kwargs: Any
    ) -> LLMResult:
        _check_text(members("prompts", prompts, PromptValue))
        return await super().agenerate_prompt(prompts, *args, **kwargs)

    # LangChain's four entry points: each goes on with a model that holds the call's arguments.

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        prompts = members("prompts", prompts, str)
        arguments, rest = _split(kwargs)
        with in_langchains_tree():
            model = self.called_with(**arguments)
            return super(LLaVALLM, model).generate(prompts, stop, callbacks, **rest)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        prompts = members("prompts", prompts, str)
        arguments, rest = _split(kwargs)
        with in_langchains_tree():
            model = await self._acalled_with(arguments)
            return await super(LLaVALLM, model).agenerate(prompts, stop, callbacks, **rest)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        with in_langchains_tree():
            model = self.called_with(**kwargs)
            _one_answer(model.n)
            yield from super(LLaVALLM, model).stream(input, config, stop=stop)

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        with in_langchains_tree():
            model = await self._acalled_with(kwargs)
            _one_answer(model.n)
            stream = super(LLaVALLM, model).astream(input, config, stop=stop)
            async with aclosing(cast("Any", stream)) as texts:
                async for text in texts:
                    yield text

    async def _acalled_with(self, arguments: dict[str, Any]) -> Self:
        if arguments.get("images") is None:
            return self.called_with(**arguments)
        # Decoding an image takes milliseconds, which would block the event loop.
        return await run_in_executor(None, lambda: self.called_with(**arguments))

    # What LangChain calls at last

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        backend = self.backend_for()
        answers: list[Completion] = []
        waiting: deque[AnswerStream] = deque()
        try:
            for message, params, options in self._requests(prompts, stop):
                if len(waiting) == AT_ONCE:
                    answers.append(gather(waiting[0]))
                    waiting.popleft()
                waiting.append(backend.stream(message, params, **options))
            while waiting:
                answers.append(gather(waiting[0]))
                waiting.popleft()
        finally:
            for stream in waiting:
                stream.close()
        return _result(answers, self.model, self.n or 1)

    def _requests(
        self, prompts: Sequence[str], stop: list[str] | None
    ) -> Iterator[tuple[Message, SamplingParams, dict[str, Any]]]:
        """The requests, ``n`` for each prompt; with a seed, each has one more than the last."""
        for prompt in prompts:
            message, params, options = self._request(prompt, stop)
            for number in range(self.n or 1):
                seed = None if params.seed is None else params.seed + number
                yield message, replace(params, seed=seed), options

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        import asyncio

        backend = self.backend_for()
        places = asyncio.Semaphore(AT_ONCE)

        async def answer(asked: tuple[Message, SamplingParams, dict[str, Any]]) -> Completion:
            async with places:
                message, params, options = asked
                return await backend.agenerate(message, params, **options)

        tasks = [asyncio.ensure_future(answer(asked)) for asked in self._requests(prompts, stop)]
        try:
            return _result(await asyncio.gather(*tasks), self.model, self.n or 1)
        finally:
            for task in tasks:  # those that one failure or a cancellation leaves behind
                task.cancel()

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return self._generate([prompt], stop, run_manager).generations[0][0].text

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        message, params, options = self._request(prompt, stop)
        with self.backend_for().stream(message, params, **options) as chunks:
            for chunk in chunks:
                converted = GenerationChunk(
                    text=chunk.text, generation_info=_info(chunk.finish_reason, chunk.usage)
                )
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=converted)
                yield converted

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        message, params, options = self._request(prompt, stop)
        stream = self.backend_for().astream(message, params, **options)
        async with aclosing(cast("Any", stream)) as chunks:
            async for chunk in chunks:
                converted = GenerationChunk(
                    text=chunk.text, generation_info=_info(chunk.finish_reason, chunk.usage)
                )
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=converted)
                yield converted

    def get_num_tokens(self, text: str) -> int:
        """Count the tokens of ``text`` as a prompt, the template around it included."""
        return self.backend_for().count_tokens(question_about(list(self._images), text))


def _one_answer(n: int | None) -> None:
    if n is not None and n > 1:
        raise ParameterError(
            f"n is {n}, and a stream is one answer; call generate, or stream n times."
        )


def _check_text(prompts: Iterable[PromptValue]) -> None:
    for message in (message for prompt in prompts for message in prompt.to_messages()):
        kinds = [kind for kind in map(_kind, message.content) if kind != "text"]
        if not isinstance(message.content, str) and kinds:
            raise UnsupportedContentError(
                f"An LLM reads text, and a message holds a block of type {kinds[0]!r}; use "
                "the chat model, ChatLLaVA, or give images by images=."
            )


def _kind(block: Any) -> str:
    return "text" if isinstance(block, str) else str(block.get("type"))


def _split(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split arguments into ours and LangChain's own (tags, metadata, run names)."""
    own = ("tags", "metadata", "run_name", "run_id")
    rest = {name: value for name, value in arguments.items() if name in own}
    return {k: v for k, v in arguments.items() if k not in own}, rest


def _name(image: Image) -> str:
    """The name of an image in traces and keys."""
    source = image.source
    return f"sha256:{source.digest}" if isinstance(source, Picture) else str(source).strip()


def _info(finish_reason: str | None, usage: Any) -> dict[str, Any] | None:
    if finish_reason is None:
        return None
    return {"finish_reason": finish_reason, "usage_metadata": to_usage(usage)}


def _result(answers: Sequence[Completion], model: str, n: int) -> LLMResult:
    all_answers = [
        Generation(text=one.text, generation_info=_info(one.finish_reason, one.usage))
        for one in answers
    ]
    generations = [all_answers[start : start + n] for start in range(0, len(all_answers), n)]
    usage = {
        "prompt_tokens": sum(one.usage.prompt_tokens for one in answers),
        "completion_tokens": sum(one.usage.completion_tokens for one in answers),
        "total_tokens": sum(one.usage.total_tokens for one in answers),
    }
    return LLMResult(
        generations=cast("Any", generations),
        llm_output={"token_usage": usage, "model_name": model},
    )
