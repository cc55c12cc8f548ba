"""From ids to text as SentencePiece does it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from llavakit.model.original.sentencepiece import SPACE


class PieceTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """A fast tokenizer that spells bytes as SentencePiece does.

    The fast decoder gives up every byte of a stretch in which one is wrong; SentencePiece goes
    on behind the wrong one. Models draw such stretches at a high temperature.
    """

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **unused: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        pieces = self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)
        return joined_pieces(pieces)


def joined_pieces(pieces: list[str]) -> str:
    """The text of pieces; the space before the first one was put there by the tokenizer."""
    text = ""
    spelt = bytearray()
    for piece in pieces:
        if len(piece) == 6 and piece.startswith("<0x"):
            spelt.append(int(piece[3:5], 16))
            continue
        text += _spelling(spelt) + piece.replace(SPACE, " ")
        spelt.clear()
    text += _spelling(spelt)
    return text[1:] if pieces and pieces[0].startswith(SPACE) else text


def _spelling(spelt: bytearray) -> str:
    """Bytes as text, every wrong one as a U+FFFD of its own."""
    text = ""
    while spelt:
        try:
            return text + spelt.decode("utf-8")
        except UnicodeDecodeError as error:
            text += spelt[: error.start].decode("utf-8") + "\ufffd"
            del spelt[: error.start + 1]
    return text
