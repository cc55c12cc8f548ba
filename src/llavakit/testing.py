"""A scripted backend for the tests of programs that use llavakit; no model, no torch.

>>> from llavakit.testing import FakeBackend
>>> FakeBackend(["a red circle"]).generate("What is this?").text
'a red circle'
"""

from __future__ import annotations

import itertools
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from llavakit.backend import Backend, Messages, ModelInfo, to_request
from llavakit.errors import EngineClosedError
from llavakit.sources import SourcePolicy
from llavakit.streams import AnswerStream, Channel
from llavakit.values import Chunk, Completion, Request, Tool, Usage

ScriptedAnswer: TypeAlias = str | Completion | BaseException
IMAGE_TOKENS = 64
"""Tokens that an image counts for."""


class FakeBackend(Backend):
    """A backend with scripted answers, one word a chunk, that records its requests.

    Args:
        answers: the answers, in turn and then from the first again; an exception is raised by
            the stream. Or a function from the request to an answer.
        name: the model's name.
        hang: leave the answer open after its last word, so that cancelling can be tested;
            ``close()`` ends it with an error, as that of a model does.
        policy: which files and addresses images may come from; may be set later.

    Attributes:
        requests: every request that was submitted.
        cancelled: how many streams were closed before their end.
    """

    def __init__(
        self,
        answers: Iterable[ScriptedAnswer] | Callable[[Request], ScriptedAnswer] = ("ok",),
        *,
        name: str = "fake",
        context_length: int = 4096,
        hang: bool = False,
        policy: SourcePolicy | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.cancelled = 0
        self.source_policy = policy or SourcePolicy()
        self._hang = hang
        self._lock = threading.Lock()
        self._hanging: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._closed = False
        self._info = ModelInfo(name, context_length)
        self._answer: Callable[[Request], ScriptedAnswer]
        if callable(answers):
            self._answer = answers
        else:
            script = itertools.cycle(answers)
            self._answer = lambda request: next(script)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def policy(self) -> SourcePolicy:
        return self.source_policy

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, request: Request) -> AnswerStream:
        if self._closed:
            raise EngineClosedError("This backend was closed; make a new one.")
        self.requests.append(request)
        channel = Channel()
        answer = self._answer(request)
        if isinstance(answer, BaseException):
            channel.fail(answer)
        else:
            self._put(request, answer, channel)
        return AnswerStream(channel, self._count_cancel)

    def _put(self, request: Request, answer: str | Completion, channel: Channel) -> None:
        completion = answer if isinstance(answer, Completion) else Completion(answer)
        words = _words(completion.text)
        for word in words:
            channel.put(Chunk(text=word))
        for call in completion.tool_calls:
            channel.put(Chunk(tool_calls=(call,)))
        if completion.cut_calls:
            channel.put(Chunk(cut_calls=completion.cut_calls))
        if self._hang:
            self._leave_open(channel)
            return
        reason = "tool_calls" if completion.tool_calls else completion.finish_reason
        usage = completion.usage
        if usage == Usage():
            usage = Usage(self._count(request), len(words) + 8 * len(completion.tool_calls))
        channel.put(Chunk(finish_reason=reason, usage=usage))

    def _leave_open(self, channel: Channel) -> None:
        with self._lock:
            self._hanging.add(channel)
        if self._closed:  # by another thread, since the request came in
            self._end_hanging()

    def _end_hanging(self) -> None:
        with self._lock:
            channels = list(self._hanging)
            self._hanging.clear()
        for channel in channels:
            channel.fail(EngineClosedError("This backend was closed; the request was ended."))

    def _count_cancel(self) -> None:
        self.cancelled += 1

    def count_tokens(
        self,
        messages: Messages,
        *,
        tools: Sequence[Tool] = (),
        continue_final_message: bool = False,
    ) -> int:
        return self._count(
            to_request(messages, tools=tools, continue_final_message=continue_final_message)
        )

    @staticmethod
    def _count(request: Request) -> int:
        pictures = sum(len(message.images) for message in request.messages)
        words = sum(len(message.text.split()) for message in request.messages)
        return words + IMAGE_TOKENS * pictures + 16 * len(request.tools)

    def stats(self) -> dict[str, Any]:
        return {"running": 0, "waiting": 0, "requests": len(self.requests)}

    def close(self) -> None:
        self._closed = True
        self._end_hanging()


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)
