"""Chat completions: the notation that most clients speak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llavakit.serving.answers import Envelope, delta, to_json, usage
from llavakit.serving.chat_schema import ChatRequest
from llavakit.serving.errors import Refusal
from llavakit.serving.events import DONE, event
from llavakit.serving.notation import Asked, Served
from llavakit.serving.validation import parse
from llavakit.values import Chunk, Completion, Usage


def asked(body: bytes) -> Asked:
    """Read the body of ``POST /v1/chat/completions``.

    Raises:
        Refusal: it is not what it should be.
    """
    request = parse(ChatRequest, body)
    options = request.stream_options
    counts = bool(request.stream and options and options.continuous_usage_stats)
    return Asked(
        bodies=(request,),
        stream=bool(request.stream),
        writer=lambda served: ChatWriter(request, served, counts=counts),
        counts=counts,
    )


class ChatWriter:
    """Writes ``chat.completion`` and ``chat.completion.chunk``.

    Args:
        asked: the request.
        served: the model that answers.
        counts: give every event the usage so far.
    """

    def __init__(self, asked: ChatRequest, served: Served, *, counts: bool) -> None:
        self._envelope = Envelope(served.model, served.fingerprint)
        self._logprobs = bool(asked.logprobs)
        options = asked.stream_options
        self._total = options is not None and bool(options.include_usage)
        self._choices = asked.n or 1
        self._prompt = served.prompt_tokens
        self._counts = counts
        self._tokens: Counter[int] = Counter()
        self._calls: Counter[int] = Counter()
        self.id = self._envelope.id

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        return self._envelope.whole(completions, logprobs=self._logprobs)

    def begin(self) -> Iterable[bytes]:
        for index in range(self._choices):
            yield self._piece(index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        self._tokens[index] += len(chunk.logprobs)
        change = delta(chunk, self._calls[index])
        self._calls[index] += len(chunk.tool_calls)
        logprobs = chunk.logprobs if self._logprobs else ()
        if change or logprobs:
            yield self._piece(index, change, logprobs=logprobs)
        if chunk.finish_reason is not None:
            yield self._piece(index, {}, finish=chunk.finish_reason)

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        if self._total:
            yield event(to_json(self._envelope.total(usages)))
        yield DONE

    def failed(self, reason: Refusal) -> Iterable[bytes]:
        yield event(to_json(reason.body()))

    def _piece(self, index: int, change: Mapping[str, Any], **rest: Any) -> bytes:
        made = self._envelope.piece(index, change, **rest)
        if self._counts:
            made["usage"] = usage([Usage(self._prompt, self._tokens[index])])
        elif self._total:
            made["usage"] = None
        return event(to_json(made))
