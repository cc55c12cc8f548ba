"""``LlamaTokenizer`` of transformers 4.37, slow, as the original used it.

https://github.com/huggingface/transformers/blob/v4.37.2/src/transformers/models/llama/tokenization_llama.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llavakit.model.original.sentencepiece import SPACE, SentencePiece


@dataclass(frozen=True)
class SlowTokenizer:
    """Cuts text in both ways that the class knew (``legacy``).

    Attributes:
        words: byte-pair merges alone: no normalisation, no special tokens.
        model: the SentencePiece model.
        special: ids of tokens that are cut out of the text first.
        strong: those that swallow the space which was put before them (``legacy=False``).
        legacy: a space is put before every stretch, and not once before the chunk.
        bos: id that begins a chunk.
    """

    words: Any
    model: SentencePiece
    special: Mapping[str, int]
    strong: frozenset[str]
    legacy: bool
    bos: int | None
    _cut: re.Pattern[str] = field(init=False)
    _defined: re.Pattern[str] = field(init=False)
    _normalizer: Any = field(init=False)

    def __post_init__(self) -> None:
        from tokenizers import normalizers

        object.__setattr__(self, "_cut", _either(self.special))
        object.__setattr__(self, "_defined", _either(self.model.user_defined))
        charsmap = self.model.charsmap
        normalizer = normalizers.Precompiled(charsmap) if charsmap else None
        object.__setattr__(self, "_normalizer", normalizer)

    def encode(self, text: str, begins: bool) -> list[int]:
        """Ids of a chunk, or of what goes on with one."""
        ids = [self.bos] if begins and self.bos is not None else []
        if not self.legacy and text:
            text = text.replace(SPACE, " ")
            text = f" {text}" if begins and self.model.prefixes else text
        stretches = self._cut.split(text)
        if not self.legacy and begins and stretches[0] == " " and stretches[1:]:
            stretches[0] = "" if stretches[1] in self.strong else " "
        for number, stretch in enumerate(stretches):
            if number % 2:
                ids.append(self.special[stretch])
            elif stretch:
                ids += self._spelt(stretch, prefixed=self.legacy and (begins or number > 0))
        return ids

    def _spelt(self, text: str, *, prefixed: bool) -> list[int]:
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        text = text.replace(" ", SPACE)
        if prefixed and self.model.prefixes:
            text = SPACE + text
        ids: list[int] = []
        for number, part in enumerate(self._defined.split(text)):
            if number % 2:
                ids.append(self.words.token_to_id(part))
            elif part:
                ids += self.words.encode(part, add_special_tokens=False).ids
        return ids


def _either(texts: Sequence[str] | Mapping[str, int]) -> re.Pattern[str]:
    """Finds any of several texts, the longest first; finds nothing if there are none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})" if ordered else "((?!))")
