"""From ids to text, piece by piece: no character is split, no stop string gets out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"


class Detokenizer:
    """Turns the ids of one answer into text as they come.

    Decodes a short window again and again instead of single tokens, because a token's text
    may depend on its neighbours (byte tokens, leading spaces).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # the window that is decoded begins here
        self._told = 0  # ids before this have been told

    def push(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._told])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(_BROKEN):
            return ""
        self._start, self._told = self._told, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end, even if it is an incomplete character."""
        before = self._decode(self._ids[self._start : self._told])
        now = self._decode(self._ids[self._start :])
        self._start = self._told = len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
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
        """The text that is safe to tell; after a hit, nothing more is."""
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
        """What was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` (and is not all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
