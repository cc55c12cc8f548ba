"""The older completions: a prompt and its answer, without turns.

LLaVA was trained on turns of a dialogue alone, so that a prompt stands for a user's message, as it
does in ``/tokenize``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from llavakit.serving.answers import LOWEST, to_json, usage
from llavakit.serving.chat_schema import ChatRequest, Sampling, StopStrings, StreamOptions
from llavakit.serving.errors import Refusal
from llavakit.serving.events import DONE, event
from llavakit.serving.fields import INT64, NO_EFFECT, Whole
from llavakit.serving.messages import UserMessage
from llavakit.serving.notation import Asked, Served
from llavakit.serving.unions import by_shape
from llavakit.serving.validation import parse
from llavakit.values import Chunk, Completion, TokenLogprob, Usage

Prompt = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[str], Field(min_length=1, max_length=16), Tag("<list>")],
    by_shape(string="a string", list="a list of strings"),
]


class CompletionRequest(Sampling):
    """The body of ``POST /v1/completions``."""

    model: str
    prompt: Prompt
    max_tokens: Whole | None = Field(
        default=None, ge=1, le=INT64, description="16 where it is not given, as OpenAI has it."
    )
    n: Whole | None = Field(default=None, ge=1)
    best_of: Literal[1] | None = Field(
        default=None, description=f"{NO_EFFECT}: only 1 is taken; n asks for several answers."
    )
    stop: StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Whole | None = Field(default=None, ge=0, le=20)
    echo: bool | None = Field(default=None, description="The prompt goes before each answer.")
    suffix: Literal[""] | None = Field(
        default=None, description=f"{NO_EFFECT}: only an empty one is taken; nothing is inserted."
    )
    user: str | None = Field(
        default=None, description=f"{NO_EFFECT}: a name for the client's user."
    )


_SAME = ("model", "n", "stop", "stream", "stream_options", *Sampling.model_fields)
_USUAL_TOKENS = 16


def asked(body: bytes) -> Asked:
    """Read the body of ``POST /v1/completions``.

    Raises:
        Refusal: it is not what it should be.
    """
    request = parse(CompletionRequest, body)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    options = request.stream_options
    if options is not None and options.continuous_usage_stats:
        raise Refusal(
            400,
            "continuous_usage_stats is for chat completions; leave it out.",
            code="unsupported_parameter",
            param="stream_options.continuous_usage_stats",
        )
    if request.echo and request.logprobs is not None:
        raise Refusal(
            400,
            "echo with logprobs would need those of the prompt, which there are not; send one.",
            code="unsupported_parameter",
            param="echo",
        )
    same = {name: getattr(request, name) for name in _SAME}
    tokens = _USUAL_TOKENS if request.max_tokens is None else request.max_tokens
    bodies = tuple(
        ChatRequest(
            messages=[UserMessage(role="user", content=prompt)],
            max_tokens=tokens,
            logprobs=None if request.logprobs is None else True,
            top_logprobs=request.logprobs,
            **same,
        )
        for prompt in prompts
    )

    def place(number: int, block: int | None) -> str:
        return "prompt"

    return Asked(
        bodies, bool(request.stream), lambda served: _Writer(request, prompts, served), place
    )


class _Writer:
    """Writes ``text_completion``."""

    def __init__(self, request: CompletionRequest, prompts: Sequence[str], served: Served) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._served = served
        choices = request.n or 1
        self._before = [
            prompt if request.echo else "" for prompt in prompts for _ in range(choices)
        ]
        self._choices = choices
        self._logprobs = request.logprobs is not None
        options = request.stream_options
        self._total = options is not None and bool(options.include_usage)
        self._lengths = [0] * len(self._before)

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        choices = [
            self._choice(index, self._before[index] + one.text, one.logprobs, one.finish_reason)
            for index, one in enumerate(completions)
        ]
        return self._body(choices) | {"usage": self._usage([one.usage for one in completions])}

    def begin(self) -> Iterable[bytes]:
        for index, text in enumerate(self._before):
            if text:
                yield self._event([self._choice(index, text, (), None)])

    def chunk(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        if chunk.text or (chunk.logprobs and self._logprobs):
            yield self._event([self._choice(index, chunk.text, chunk.logprobs, None)])
        if chunk.finish_reason is not None:
            yield self._event([self._choice(index, "", (), chunk.finish_reason)])

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        if self._total:
            yield event(to_json(self._body([]) | {"usage": self._usage(usages)}))
        yield DONE

    def failed(self, reason: Refusal) -> Iterable[bytes]:
        yield event(to_json(reason.body()))

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        body = self._body(choices)
        return event(to_json(body | {"usage": None} if self._total else body))

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._served.model,
            "system_fingerprint": self._served.fingerprint,
            "choices": choices,
        }

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        reported = None
        if self._logprobs and (logprobs or finish is None):
            reported = self._reported(index, logprobs)
        return {"index": index, "text": text, "logprobs": reported, "finish_reason": finish}

    def _reported(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Log probabilities in the older form; offsets count the characters of the answer."""
        offsets = []
        for token in logprobs:
            offsets.append(self._lengths[index])
            self._lengths[index] += len(token.token)
        return {
            "tokens": [token.token for token in logprobs],
            "token_logprobs": [max(token.logprob, LOWEST) for token in logprobs],
            "top_logprobs": [
                {text: max(value, LOWEST) for text, value in token.top} for token in logprobs
            ],
            "text_offset": offsets,
        }

    def _usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """All tokens; each prompt counts once, however many answers it has."""
        each = [
            Usage.of_choices(usages[at : at + self._choices])
            for at in range(0, len(usages), self._choices)
        ]
        total = Usage(
            prompt_tokens=sum(one.prompt_tokens for one in each),
            completion_tokens=sum(one.completion_tokens for one in each),
            cached_tokens=sum(one.cached_tokens for one in each),
        )
        return usage([total])
