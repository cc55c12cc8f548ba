"""The original's tokenizers, and how they cut a prompt.

The original split a prompt at its images, tokenised each chunk alone with the slow
tokenizers of transformers 4.37, and dropped the BOS of all but the first
(``tokenizer_image_token`` in ``llava/mm_utils.py``). Fast tokenizers cut most prompts
differently, and a model that reads other tokens than it was trained with answers worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model.json_files import read_json
from llavakit.model.original.sentencepiece import SPACE, SentencePiece, read_sentencepiece
from llavakit.model.original.slow import SlowTokenizer
from llavakit.model.tokens import BREAK, PromptTokenizer
from llavakit.prompts.styles import IMAGE, Template

PAD = "<pad>"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")

EncodeChunk = Callable[[str, bool], list[int]]
"""(text, whether it begins a chunk) -> ids; what begins a chunk gets the BOS, if there is one."""


@dataclass(frozen=True)
class OriginalTokenizer:
    """The tokenizer of an original checkpoint.

    Attributes:
        hf: a fast HF tokenizer with the same ids and, last, the image token and padding. It
            decodes, and an export takes it along.
        encode: the ids of a chunk, exactly as the original made them.
        known: how many tokens the original knew: as many rows its embedding has.
        spaced: a space belongs before every chunk (what transformers calls ``legacy=False``),
            which ``hf`` does not write.
    """

    hf: Any
    encode: EncodeChunk
    known: int
    spaced: bool = False

    @property
    def image_id(self) -> int:
        """Id of the image token: no token of the original's, unless it had one of that name."""
        return int(self.hf.convert_tokens_to_ids(IMAGE))


class ChunkedPrompts(PromptTokenizer):
    """Renders turns and tokenises them chunk by chunk.

    Args:
        tokenizer: of the checkpoint.
        template: how turns are written.
        image_text: what stands for an image in the text.
    """

    def __init__(self, tokenizer: OriginalTokenizer, template: Template, image_text: str) -> None:
        super().__init__(tokenizer.hf, tokenizer.image_id, template, image_text=image_text)
        self._encode_chunk = tokenizer.encode
        added = tokenizer.hf.backend_tokenizer.get_added_tokens_decoder().values()
        self._special_texts = sorted({one.content for one in added}, key=len, reverse=True)
        bos = tokenizer.hf.bos_token_id
        self._bos: int | None = None if bos is None else int(bos)

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = []
        skipped = 0
        for number, chunk in enumerate(text.split(IMAGE)):
            pieces = chunk.split(BREAK)
            found = [self._encode_chunk(one, at == 0) for at, one in enumerate(pieces)]
            mine = [token for piece in found for token in piece]
            if number == 0:
                skipped = int(mine[:1] == [self._bos])
                ids += mine
            else:
                ids += [self.image_id, *mine[skipped:]]
        return ids


def read_tokenizer(path: Path, added: Sequence[str], *, fast: bool) -> OriginalTokenizer:
    """The tokenizer of a directory.

    Args:
        path: the directory.
        added: tokens that the model needs beside those of the files.
        fast: whether the original took transformers' fast tokenizer (it did for Mistral).

    Raises:
        CheckpointError: its files are missing or damaged.
    """
    if (path / "tokenizer.model").is_file():
        return _sentencepiece_tokenizer(path, added, fast)
    if (path / "tokenizer.json").is_file() or (path / "vocab.json").is_file():
        return _fast_tokenizer(path, added)
    raise CheckpointError(
        f"{path} has no tokenizer, neither tokenizer.model nor tokenizer.json; copy the files of "
        "the one that the language model was trained with."
    )


@dataclass(frozen=True)
class _Declared:
    """What the small files beside a ``tokenizer.model`` say.

    Attributes:
        names: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token``; None for none.
        extra: ids of added tokens, by their texts.
        legacy: whether a space is put before every stretch between special tokens.
        bos: whether a BOS is put before a chunk.
        special: texts of further special tokens.
    """

    names: dict[str, str | None]
    extra: dict[str, int] = field(default_factory=dict)
    legacy: bool = True
    bos: bool = True
    special: frozenset[str] = frozenset()


def _declared(path: Path) -> _Declared:
    files = {
        name: read_json(path / name) if (path / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    }
    settings, mapped = files["tokenizer_config.json"], files["special_tokens_map.json"]
    names: dict[str, str | None] = {}
    for name, usual in zip(_NAMES, ("<s>", "</s>", "<unk>", None), strict=True):
        # Files of early 2023 say "", and mean the usual ones.
        names[name] = _text(settings.get(name)) or _text(mapped.get(name)) or usual
    extra = {
        **{str(text): int(number) for text, number in files["added_tokens.json"].items()},
        **{
            str(token["content"]): int(number)
            for number, token in (settings.get("added_tokens_decoder") or {}).items()
        },
    }
    further = [
        *(settings.get("additional_special_tokens") or []),
        *(mapped.get("additional_special_tokens") or []),
    ]
    return _Declared(
        names=names,
        extra=extra,
        legacy=settings.get("legacy") is not False,
        bos=settings.get("add_bos_token") is not False,
        special=frozenset(text for one in further if (text := _text(one))),
    )


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


def _sentencepiece_tokenizer(path: Path, added: Sequence[str], fast: bool) -> OriginalTokenizer:
    from tokenizers import AddedToken, Tokenizer, models

    model = read_sentencepiece(path / "tokenizer.model")
    said = _declared(path)
    legacy = said.legacy or fast
    ids = {piece: number for number, piece in enumerate(model.pieces)}
    named = [text for text in said.names.values() if text]
    texts = [*_in_order(said.extra, ids, path), *named, *sorted(said.special), *added]
    words = models.BPE(
        ids, model.merges(), unk_token=model.unknown, fuse_unk=True, byte_fallback=True
    )
    full = Tokenizer(words)
    full.add_tokens([AddedToken(one, normalized=False) for one in model.user_defined])
    full.add_special_tokens([AddedToken(one, normalized=False) for one in dict.fromkeys(texts)])
    known = full.get_vocab_size()
    special = {text: found for text in texts if (found := full.token_to_id(text)) is not None}
    slow = SlowTokenizer(
        words=Tokenizer(words),
        model=model,
        special=special,
        strong=frozenset(named) | said.special,
        legacy=legacy,
        bos=full.token_to_id(said.names["bos_token"] or "") if said.bos else None,
    )
    hf = _wrapped(full, model, said, legacy=legacy)
    return OriginalTokenizer(hf, slow.encode, known, spaced=not legacy and model.prefixes)


def _in_order(extra: Mapping[str, int], ids: Mapping[str, int], path: Path) -> list[str]:
    """Added tokens by their ids, those of the vocabulary first."""
    behind = sorted((number, text) for text, number in extra.items() if text not in ids)
    if [number for number, _ in behind] != list(range(len(ids), len(ids) + len(behind))):
        raise CheckpointError(
            f"The added tokens of {path} leave gaps in the ids behind {len(ids)}; copy the "
            "tokenizer files that belong to this model."
        )
    return [*(text for text in extra if text in ids), *(text for _, text in behind)]


def _wrapped(full: Any, model: SentencePiece, said: _Declared, *, legacy: bool) -> Any:
    from tokenizers import decoders, normalizers, processors

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if legacy and model.prefixes:
        steps.append(normalizers.Prepend(SPACE))
    full.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    full.decoder = decoders.Sequence(
        [
            *(decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()),
            *([decoders.Strip(" ", 1, 0)] if model.prefixes else []),
        ]
    )
    bos = said.names["bos_token"]
    if said.bos and bos:
        full.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, full.token_to_id(bos))]
        )
    return _with_image_token(full, said.names, pieces=True)


def _fast_tokenizer(path: Path, added: Sequence[str]) -> OriginalTokenizer:
    from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

    kind = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else Qwen2TokenizerFast
    try:
        read = kind.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The tokenizer in {path} cannot be read: {error}") from error
    read.add_tokens(list(added), special_tokens=True)
    known = len(read)
    names = {name: _text(getattr(read, name)) for name in _NAMES}
    hf = _with_image_token(read.backend_tokenizer, names)

    def encode(text: str, begins: bool) -> list[int]:
        ids: list[int] = hf.encode(text, add_special_tokens=begins)
        return ids

    return OriginalTokenizer(hf, encode, known)


def _with_image_token(full: Any, names: Mapping[str, str | None], *, pieces: bool = False) -> Any:
    """The HF tokenizer, with the image token and padding behind all that the original knew.

    Padding is a token of its own where the original had none, or took the unknown token for
    it: that one may be part of an answer, and padding never is.
    """
    from transformers import PreTrainedTokenizerFast

    from llavakit.model.original.decoding import PieceTokenizer

    padding = names["pad_token"]
    if padding is None or padding == names["unk_token"]:
        padding = PAD
    full.add_special_tokens([IMAGE, padding])
    kind = PieceTokenizer if pieces else PreTrainedTokenizerFast
    return kind(
        tokenizer_object=full,
        **{name: text for name, text in {**names, "pad_token": padding}.items() if text},
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )
