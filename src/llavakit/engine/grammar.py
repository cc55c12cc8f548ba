"""Constrained decoding with llguidance: the tokens that a grammar allows.

https://github.com/guidance-ai/llguidance. Grammars are written in
:mod:`llavakit.engine.grammar_text`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llavakit.engine.grammar_text import START_RULE, json_of, quoted
from llavakit.engine.schema_faults import grammar_fault, schema_fault
from llavakit.engine.transfer import to_device
from llavakit.errors import SchemaError
from llavakit.values import Request


class _RefusedError(Exception):
    """llguidance's message about a grammar: a reason, and all of the grammar."""


class GrammarCompiler:
    """Makes matchers for one tokenizer; compiled grammars are kept.

    Args:
        tokenizer: a fast HF tokenizer.
        vocab_size: rows of the output layer.
        stops: ids that end an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, stops: Sequence[int]) -> None:
        self._source = tokenizer
        self._vocab_size = vocab_size
        self._stops = list(stops)
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiled = functools.lru_cache(maxsize=64)(self._compile)

    def spell(self, marker: str) -> str:
        """Return a marker as this tokenizer writes it: its own token, if it was added as one.

        Added tokens (Qwen has one for ``<tool_call>``) are never the spelling of plain text
        for llguidance, so a quoted marker would forbid the token that the model learnt.
        """
        added = {str(token): number for number, token in self._source.added_tokens_decoder.items()}
        return f"<[{added[marker]}]>" if marker in added else quoted(marker)

    def matcher(self, grammar: str, request: Request | None = None) -> Matcher:
        """Return a fresh matcher.

        Args:
            grammar: from :func:`llavakit.engine.grammar_text.grammar_of`.
            request: what it was made of, which errors then can name.

        Raises:
            SchemaError: the grammar cannot be compiled.
        """
        try:
            return Matcher(self._compiled(grammar).deep_copy(), self._vocab_size)
        except _RefusedError as error:
            raise SchemaError(self._fault(grammar, str(error), request)) from None

    def _fault(self, grammar: str, message: str, request: Request | None) -> str:
        given = None if request is None else request.params.grammar
        if given is not None:
            return grammar_fault(given, message, lark=bool(START_RULE.search(given)))
        found = None if request is None else schema_fault(request, self._reason)
        return found or grammar_fault(grammar, message, lark=True)

    def _reason(self, schema: Mapping[str, Any]) -> str | None:
        """Why a schema is refused, if it is."""
        try:
            self._compile(f"start: {json_of(schema, 'The schema')}\n")
        except _RefusedError as error:
            return str(error)
        return None

    def _compile(self, grammar: str) -> Any:
        import llguidance
        import llguidance.hf

        with self._lock:
            if self._tokenizer is None:
                # About a second for 32,000 tokens, so only when the first grammar comes.
                self._tokenizer = llguidance.hf.from_tokenizer(
                    self._source, n_vocab=self._vocab_size, eos_token=self._stops
                )
        # Its warnings go to stderr and quote what the model wrote; errors are read below instead.
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _RefusedError(str(matcher.get_error()))
        return matcher


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = torch.zeros((vocab_size + 31) // 32, dtype=torch.int32)

    def fill(self) -> None:
        """Work out which tokens may come next; on any thread, while the model runs."""
        self._matcher.unsafe_compute_mask_ptr(self._words.data_ptr(), self._words.numel() * 4)
        if self._matcher.is_error():
            # A matcher that gave up (a limit of its parser) would now ask for the end.
            raise SchemaError(
                f"The grammar is too complex ({_reason(self._matcher)}); simplify it."
            )

    @property
    def words(self) -> Tensor:
        """The mask of the last ``fill``: one bit a token, int32 words."""
        return self._words

    def accept(self, token: int) -> None:
        """Advance by a sampled token."""
        if not self._matcher.consume_token(token):
            raise SchemaError(
                f"The grammar refused a token ({_reason(self._matcher)}); simplify it."
            )

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can come."""
        return bool(self._matcher.is_stopped())


def _reason(matcher: Any) -> str:
    """The first line of llguidance's message; the others quote the whole grammar."""
    return (str(matcher.get_error()).strip() or "no reason given").splitlines()[0]


def unpack(words: Tensor, vocab_size: int) -> Tensor:
    """Unpack [N, ceil(vocab / 32)] int32 words to [N, vocab] bool."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> bits) & 1).flatten(1)[:, :vocab_size].bool()


def allowed(matchers: Sequence[Matcher | None], logits: Tensor) -> Tensor | None:
    """Return what the rows' grammars allow, shaped as the logits [N, vocab]; None without any."""
    if not any(matchers):
        return None
    vocabulary = logits.shape[-1]
    every = torch.full(((vocabulary + 31) // 32,), -1, dtype=torch.int32)
    words = torch.stack([every if matcher is None else matcher.words for matcher in matchers])
    return unpack(to_device(words, logits.device), vocabulary)
