"""An answer while it is being sampled: tokens in, chunks out, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llavakit.engine.detokenizer import Detokenizer, StopStrings
from llavakit.engine.grammar import Matcher
from llavakit.engine.sampler import Draw, Drawn
from llavakit.prompts.tool_calls import ToolCallReader
from llavakit.values import Chunk, CutCall, FinishReason, Request, TokenLogprob, ToolCall

TokenText = Callable[[int], str]

_CONTEXT = 8
"""Prompt ids kept for an answer that continues them: a character may take several."""


class Answer:
    """The state behind one answer.

    Args:
        request: what was asked.
        tokenizer: an HF tokenizer.
        stops: ids that end an answer.
        max_tokens: most tokens that it may have.
        matcher: the grammar that it must follow, if any.
        stop_strings: strings that end it, besides those of the request.
        prompt: the ids before it.

    Attributes:
        draw: how its tokens are sampled.
        tokens: how many were sampled.
        finish_reason: None while it goes on.
        looks_back: whether the host must know the tokens so far before the next one can be
            sampled (a grammar, penalties).
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Any,
        stops: frozenset[int],
        max_tokens: int,
        matcher: Matcher | None = None,
        stop_strings: Sequence[str] = (),
        prompt: Sequence[int] = (),
    ) -> None:
        self.draw = Draw(request.params)
        self.matcher = matcher
        self.looks_back = matcher is not None or self.draw.penalises
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self._stops = stops
        self._max_tokens = max_tokens
        self._tokenizer = tokenizer
        continues = request.continue_final_message
        self._detokenizer = Detokenizer(tokenizer, prompt[-_CONTEXT:] if continues else ())
        self._stop_strings = StopStrings((*request.params.stop, *stop_strings))
        offers_tools = bool(request.tools) and request.tool_choice != "none"
        self._calls = ToolCallReader() if offers_tools else None
        self._begun = continues  # then a leading space belongs to the answer
        self._logprobs: list[TokenLogprob] = []

    def push(self, sampled: Drawn) -> Chunk | None:
        """Take in a sampled token; return what can be emitted by now.

        Sets ``finish_reason`` when it was the last one.
        """
        self.tokens += 1
        if sampled.logprob is not None:
            self._logprobs.append(self._logprob(sampled))
        if sampled.token in self._stops:
            self._end("stop")
            return self._chunk("", last=True)
        if self.matcher is not None:
            self.matcher.accept(sampled.token)
        text = self._stop_strings.push(self._detokenizer.push(sampled.token))
        if self._stop_strings.hit is not None or (self.matcher and self.matcher.finished):
            self._end("stop")
        elif self.tokens >= self._max_tokens:
            self._end("length")
        return self._chunk(text, last=self.finish_reason is not None)

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason

    def _chunk(self, text: str, *, last: bool) -> Chunk | None:
        if last:
            if self._stop_strings.hit is None:
                text += self._stop_strings.push(self._detokenizer.flush())
                text += self._stop_strings.flush()
            if self._stop_strings.hit is not None:
                self.finish_reason = "stop"
        if not self._begun:
            # Models with a Vicuna prompt begin with a space that belongs to the prompt.
            text = text.lstrip()
            self._begun = bool(text)
        if self._calls is None:
            return self._emitted(text)
        fragment = self._calls.push(text)
        if not last:
            return self._emitted(fragment.text, fragment.calls)
        # A grammar ends behind a complete call: whatever ends inside one was cut.
        rest = self._calls.flush(cut=True)
        if self._calls.count and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        calls = (*fragment.calls, *rest.calls)
        return self._emitted(fragment.text + rest.text, calls, rest.cut)

    def _emitted(
        self, text: str, calls: tuple[ToolCall, ...] = (), cut: tuple[CutCall, ...] = ()
    ) -> Chunk | None:
        """A chunk with the log probabilities of its tokens; None if there is nothing to emit."""
        if not (text or calls or cut or (self._logprobs and self.finish_reason)):
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Chunk(text=text, tool_calls=calls, cut_calls=cut, logprobs=logprobs)

    def _logprob(self, sampled: Drawn) -> TokenLogprob:
        assert sampled.logprob is not None
        top = tuple((self._text(token), logprob) for token, logprob in sampled.top)
        return TokenLogprob(self._text(sampled.token), sampled.logprob, top)

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False))
