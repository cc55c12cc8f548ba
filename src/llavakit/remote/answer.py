"""The events of one streamed answer, made into chunks and judged at the end.

Text and calls are emitted as they come. That the answer is whole, and is what was asked for, is
known at the end only: the last chunk comes if it is, and an error if it is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llavakit.engine.detokenizer import StopStrings
from llavakit.errors import RemoteError
from llavakit.prompts.tool_calls import NotACallError, Pieces, ToolCallReader
from llavakit.prompts.tools import CALL_START
from llavakit.remote.address import RemoteConfig
from llavakit.remote.calls import CallFragments, call_fragments
from llavakit.remote.checks import AnswerChecks
from llavakit.remote.dialects import Dialect
from llavakit.remote.failures import error_status, refusal
from llavakit.remote.text_tools import answers_bare_call, offers_text_tools
from llavakit.values import (
    CUT_CALLS,
    Chunk,
    CutCall,
    FinishReason,
    Request,
    TokenLogprob,
    ToolCall,
    Usage,
)

DONE = "[DONE]"
_FINISHES: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class RemoteAnswer:
    """One answer while it streams.

    Args:
        request: what was asked.
        dialect: of the server.
        config: which server.

    Attributes:
        complete: nothing more is needed: ``[DONE]`` came, or a stop string.
    """

    def __init__(self, request: Request, dialect: Dialect, config: RemoteConfig) -> None:
        self.complete = False
        self._request = request
        self._dialect = dialect
        self._config = config
        self._stops = StopStrings(() if dialect.stops else request.params.stop)
        self._spoken = _text_tool_reader(dialect, request)
        self._calls = CallFragments()
        self._cut: tuple[CutCall, ...] = ()
        self._checks = AnswerChecks(request, dialect)
        self._text: list[str] = []
        self._begun = request.continue_final_message  # its first space is its own
        self._finish: FinishReason | None = None
        self._usage: Usage | None = None
        self._done = False
        self._has_logprobs = False

    def push(self, data: str) -> Iterator[Chunk]:
        """The chunks of one event.

        Raises:
            LlavaKitError: the server reports an error, or nothing that can be read.
        """
        if data.strip() == DONE:
            self._done = self.complete = True
            return
        event = self._event(data)
        usage = event.get("usage")
        if isinstance(usage, Mapping):
            self._usage = to_usage(usage)
        choices = event.get("choices") or ()
        for choice in choices:
            if choice.get("index", 0) == 0 and not self.complete:
                yield from self._choice(choice, choice.get("delta") or choice.get("message") or {})

    def end(self) -> Iterator[Chunk]:
        """What is left, and the last chunk.

        Raises:
            RemoteError: the answer is not whole, or not what was asked for.
        """
        finish = self._finish
        if finish is None or (self._dialect.done and not self.complete):
            lacks = "a finish_reason" if finish is None else DONE
            raise RemoteError(
                f"The server at {self._config.address} ended the stream without {lacks}: the "
                "answer broke off. Ask again."
            )
        cut = finish == "length"
        if self._stops.hit is None:
            yield from self._heard(self._stops.flush(), (), ())
        if self._spoken is not None:
            rest = self._read_spoken("", end=True, cut=cut)
            self._cut += rest.cut
            yield from self._emitted(rest.text, self._calls.add(rest.calls), ())
        yield from self._emitted("", self._calls.completed(cut=cut), ())
        calls = self._calls.all(cut=cut)
        if calls and finish == "stop":
            finish = "tool_calls"
        elif finish == "tool_calls" and not calls:
            finish = "stop"
        self._checks.check("".join(self._text), calls, finish)
        self._check_logprobs()
        if cut_calls := (*(self._calls.cut() if cut else ()), *self._cut):
            yield Chunk(cut_calls=cut_calls)
        yield Chunk(finish_reason=finish, usage=self._usage)

    def _event(self, data: str) -> Mapping[str, Any]:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, Mapping):
            if '"error"' in data[:40]:  # transformers serve writes its message without escapes
                raise refusal(0, data, self._config)
            raise RemoteError(
                f"The server at {self._config.address} sent what is no event of a chat completion; "
                "is base_url right?"
            )
        error = event.get("error")
        if error or event.get("object") == "error":
            raise refusal(error_status(error or event), data, self._config)
        return event

    def _choice(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> Iterator[Chunk]:
        logprobs = _logprobs(choice.get("logprobs"), self._request.params.logprobs or 0)
        self._has_logprobs = self._has_logprobs or bool(logprobs)
        text = delta.get("content") or delta.get("refusal") or ""
        calls = self._calls.push(call_fragments(delta.get("tool_calls") or ()))
        self._cut += _cut_calls(delta.get(CUT_CALLS) or ())
        yield from self._chunk(_as_text(text), calls, logprobs)
        reason = choice.get("finish_reason")
        if reason and self._finish is None:
            self._finish = self._finish_reason(str(reason))

    def _finish_reason(self, reason: str) -> FinishReason:
        if reason in _FINISHES:
            return _FINISHES[reason]
        raise RemoteError(
            f"The server at {self._config.address} ended the answer for the reason {reason!r}: "
            "it is not whole."
        )

    def _chunk(
        self,
        text: str,
        calls: tuple[ToolCall, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Iterator[Chunk]:
        yield from self._heard(self._stops.push(text), calls, logprobs)
        # Where a grammar holds the answer, the server ends it, and reports what it used.
        full = self._spoken is not None and self._spoken.full
        full = full and self._dialect.speaks != "grammar"
        if self._stops.hit is not None or full:
            self._finish, self.complete = self._finish or "stop", True

    def _heard(
        self, text: str, calls: tuple[ToolCall, ...], logprobs: tuple[TokenLogprob, ...]
    ) -> Iterator[Chunk]:
        """Text behind the stop strings: without the space it begins with, and without calls."""
        if not self._begun:
            # Models with a Vicuna prompt begin with a space that belongs to the prompt.
            text = text.lstrip()
            self._begun = bool(text)
        if self._spoken is not None:
            pieces = self._read_spoken(text)
            text, calls = pieces.text, (*calls, *self._calls.add(pieces.calls))
        yield from self._emitted(text, calls, logprobs)

    def _read_spoken(self, text: str, *, end: bool = False, cut: bool = False) -> Pieces:
        assert self._spoken is not None
        try:
            return self._spoken.flush(cut=cut) if end else self._spoken.push(text)
        except NotACallError as error:
            raise RemoteError(
                f"The model began a tool call and wrote {str(error).strip()[:120]!r}, which is "
                "none; this server does not hold it to the notation. Ask again, or use one that "
                "does (llavakit serve, vLLM)."
            ) from None

    def _emitted(
        self, text: str, calls: tuple[ToolCall, ...], logprobs: tuple[TokenLogprob, ...]
    ) -> Iterator[Chunk]:
        if self._checks.needs_text:
            self._text.append(text)
        if text or calls or logprobs:
            yield Chunk(text=text, tool_calls=calls, logprobs=logprobs)

    def _check_logprobs(self) -> None:
        asked = self._request.params.logprobs is not None
        if asked and not self._has_logprobs and (self._begun or self._calls.count):
            raise RemoteError(
                f"The server at {self._config.address} was asked for logprobs and sent none; "
                "leave them out."
            )


def _text_tool_reader(dialect: Dialect, request: Request) -> ToolCallReader | None:
    if not offers_text_tools(dialect, request):
        return None
    bare = answers_bare_call(dialect, request)
    reader = ToolCallReader(one=bare or not request.parallel_tool_calls)
    if bare:
        reader.push(CALL_START)
    return reader


def _cut_calls(reported: Any) -> tuple[CutCall, ...]:
    return tuple(CutCall(str(call["name"]), str(call["arguments"])) for call in reported)


def _as_text(content: Any) -> str:
    if isinstance(content, list):  # parts, of servers that answer in the notation of requests
        return "".join(str(part.get("text") or "") for part in content)
    return str(content)


def _logprobs(reported: Any, most: int) -> tuple[TokenLogprob, ...]:
    """Tokens with at most so many alternatives: some servers must be asked for more."""
    tokens = (reported or {}).get("content") or ()
    return tuple(
        TokenLogprob(
            str(one["token"]),
            float(one["logprob"]),
            tuple(
                (str(t["token"]), float(t["logprob"]))
                for t in (one.get("top_logprobs") or ())[:most]
            ),
        )
        for one in tokens
    )


def to_usage(reported: Mapping[str, Any]) -> Usage:
    """Return OpenAI's usage as llavakit's; what is not reported is 0."""
    details = reported.get("prompt_tokens_details") or {}
    return Usage(
        int(reported.get("prompt_tokens") or 0),
        int(reported.get("completion_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(details.get("image_tokens") or 0),
    )
