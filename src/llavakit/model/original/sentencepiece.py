"""``tokenizer.model``: the vocabulary of a SentencePiece model, read without that library.

The file is one protocol buffer, ``ModelProto`` of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Only the
byte-pair models of Llama, Vicuna, Mistral and Yi are known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llavakit.errors import CheckpointError

SPACE = "▁"
"""What stands for a space in pieces."""

_NORMAL, _USER_DEFINED = 1, 4  # of ModelProto.SentencePiece.Type
_BPE = 2  # of TrainerSpec.ModelType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """What a ``tokenizer.model`` says.

    Attributes:
        pieces: by their ids.
        scores: of each piece; of two possible merges the one with the higher score is made.
        mergeable: whether a piece is made by merging.
        user_defined: pieces that are found in a text before anything is merged.
        unknown: the piece of what has none.
        charsmap: rules of Unicode normalisation, compiled; empty for none.
        prefixes: whether a space is put before a text.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    mergeable: tuple[bool, ...]
    user_defined: tuple[str, ...]
    unknown: str
    charsmap: bytes
    prefixes: bool

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of pieces that are merged, the first ones first."""
        ids = {piece: number for number, piece in enumerate(self.pieces)}
        ranked = sorted(range(len(self.pieces)), key=lambda number: -self.scores[number])
        result: list[tuple[str, str]] = []
        for number in ranked:
            if not self.mergeable[number]:
                continue
            piece = self.pieces[number]
            halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
            known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
            result += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        return result


def read_sentencepiece(file: Path) -> SentencePiece:
    """Read a ``tokenizer.model``.

    Raises:
        CheckpointError: it is missing, damaged, or no byte-pair model.
    """
    try:
        return _parsed(file)
    except CheckpointError:
        raise
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{file} cannot be read as a SentencePiece model; copy or download it again ({error})."
        ) from error


def _parsed(file: Path) -> SentencePiece:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(file.read_bytes()):
        if field == 1:
            pieces.append(_piece(_bytes(value)))
        elif field == 2:
            trainer = dict(_fields(_bytes(value)))
        elif field == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    if trainer.get(3, 1) != _BPE or normalizer.get(4, 1):
        raise CheckpointError(
            f"{file} is no byte-pair model as Llama's and Mistral's are; only those are known."
        )
    return SentencePiece(
        pieces=tuple(text for text, _, _ in pieces),
        scores=tuple(score for _, score, _ in pieces),
        mergeable=tuple(kind == _NORMAL for _, _, kind in pieces),
        user_defined=tuple(text for text, _, kind in pieces if kind == _USER_DEFINED),
        unknown=_bytes(trainer.get(45, b"<unk>")).decode(),
        charsmap=_bytes(normalizer.get(2, b"")),
        prefixes=bool(normalizer.get(3, 1)),
    )


def _piece(message: bytes) -> tuple[str, float, int]:
    found = dict(_fields(message))
    (score,) = struct.unpack("<f", _bytes(found.get(2, bytes(4))))
    kind = found.get(3, _NORMAL)
    return _bytes(found[1]).decode("utf-8"), score, kind if isinstance(kind, int) else _NORMAL


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes were expected")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of a protocol buffer; of a wrong one, what comes before."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"there is no wire type {wire}")
        if at + length > len(message):
            raise ValueError("it ends too early")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
        shift += 7
