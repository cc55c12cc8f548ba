"""From ids to text, token by token: no character is split, no stop string is emitted."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

_BROKEN = "\ufffd"
_GIVEN_UP = 8
"""Broken bytes in a row, and tokens, after which nothing can make characters of them."""

_SHORT = 2 * _GIVEN_UP
"""Ids of a short window: what was emitted last, and bytes that are no character yet. Text has five
at most (four bytes of a character); of an answer of broken bytes all windows are short, too."""

KEPT = 1 << 15
"""Short windows whose text is kept, of each tokenizer: some megabytes."""

Decode = Callable[[list[int]], str]


class _Decoder:
    """Ids to text by a compiled tokenizer; the text of a few ids, the usual case, is cached.

    A call releases the interpreter's lock, so that each call in a step of many rows may wait for
    other threads.
    """

    def __init__(self, backend: Any) -> None:
        self._decode = functools.partial(backend.decode, skip_special_tokens=True)
        self._short = functools.lru_cache(KEPT)(lambda *ids: str(self._decode(ids)))

    def __call__(self, ids: list[int]) -> str:
        return self._short(*ids) if len(ids) <= _SHORT else str(self._decode(ids))


_decoders: weakref.WeakKeyDictionary[Any, _Decoder] = weakref.WeakKeyDictionary()


def decoder_of(tokenizer: Any) -> Decode:
    """Return ``tokenizer.decode`` without special tokens and without any cleaning up.

    ``tokenizer.decode`` checks whether every id is a tensor, which takes four times as long as
    decoding. Where it only passes the ids on to the compiled tokenizer, they go there directly.
    """
    kind, backend = type(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    homes = [getattr(getattr(kind, name, None), "__module__", "") for name in ("decode", "_decode")]
    if backend is None or homes != [
        "transformers.tokenization_utils_base",
        "transformers.tokenization_utils_tokenizers",
    ]:
        return functools.partial(
            tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    decoder = _decoders.get(tokenizer)
    if decoder is None:  # it must not hold its key, or neither would ever go
        decoder = _decoders[tokenizer] = _Decoder(backend)
    return decoder


class Detokenizer:
    """Turns the ids of one answer into text as they come.

    Decodes a short window again and again instead of single tokens, because a token's text
    may depend on its neighbours (byte tokens, leading spaces).

    Args:
        tokenizer: an HF tokenizer.
        before: ids that the answer continues; their text is not emitted.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._decode = decoder_of(tokenizer)
        self._window = list(before)
        self._emitted = len(before)  # ids of the window whose text was emitted
        self._before = self._decode(self._window) if before else ""  # their text

    def push(self, token: int) -> str:
        """Return the text that is certain now; empty while a character is incomplete."""
        self._window.append(token)
        now = self._decode(self._window)
        if len(now) <= len(self._before):
            return ""
        if now.endswith(_BROKEN) and not self._hopeless(now):
            return ""
        return self._emit(now)

    def _hopeless(self, now: str) -> bool:
        """Whether the text ends with bytes that can never become a character.

        A character has four bytes at most. Without a limit, an answer of broken bytes would be
        decoded from its beginning for each of its tokens.
        """
        pending = len(self._window) - self._emitted
        return pending >= _GIVEN_UP and now.endswith(_BROKEN * _GIVEN_UP)

    def flush(self) -> str:
        """Return what is left at the end, even if it is an incomplete character."""
        if self._emitted == len(self._window):
            return ""
        return self._emit(self._decode(self._window))

    def _emit(self, now: str) -> str:
        text = now[len(self._before) :]
        del self._window[: self._emitted]
        self._emitted = len(self._window)
        self._before = self._decode(self._window)
        return text


class StopStrings:
    """Holds text back while it may still grow into a stop string.

    Attributes:
        hit: the stop string that ended the text, if one did.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """Return the text that is safe to emit; after a hit it is always empty."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            place, self.hit = min(places, key=lambda found: found[0])
            self._held = ""
            return text[:place]
        held = max(_overlap(text, stop) for stop in self._stops)
        safe = len(text) - held
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """Return what was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` (and is not all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
