"""SentencePiece vocabularies, read without that library, and fast tokenizers of the original."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from llavakit.errors import CheckpointError
from llavakit.model.loader import load_reader
from llavakit.model.original.decoding import joined_pieces
from llavakit.model.original.sentencepiece import read_sentencepiece
from llavakit.model.original.tokenizer import ChunkedPrompts, OriginalTokenizer, read_tokenizer
from llavakit.prompts.templates import template
from tests.original import FIXTURES, SETTINGS, random_state, write

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    head = varint(number << 3 | (2 if isinstance(value, bytes) else 0))
    return head + (varint(len(value)) + value if isinstance(value, bytes) else varint(value))


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def spm(path: Path, *, user_defined: tuple[str, ...] = (), kind: int = 2, prefix: int = 1) -> Path:
    """A directory with a SentencePiece model of all bytes, "▁a", "ab", "abc" and others."""
    pieces: list[tuple[str, float, int]] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL)]
    pieces += [("</s>", 0.0, CONTROL), *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))]
    pieces += [(text, 0.0, USER_DEFINED) for text in user_defined]
    words = ["▁a", "ab", "abc", "▁", "a", "b", "c", "u", "s", "e", "r", "\n"]
    pieces += [(text, -float(rank), NORMAL) for rank, text in enumerate(words)]
    data = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, sort))
        for text, score, sort in pieces
    )
    data += field(2, field(3, kind)) + field(
        3, field(1, b"identity") + field(3, prefix) + field(4, 0)
    )
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.model").write_bytes(data)
    return path


def pieces(tokenizer: OriginalTokenizer, text: str) -> list[str]:
    prompts = ChunkedPrompts(tokenizer, template("v1"), "<image>")
    return tokenizer.hf.convert_ids_to_tokens(prompts.tokenize(text))


def test_higher_scores_are_merged_first(tmp_path: Path):
    tokenizer = read_tokenizer(spm(tmp_path), [], fast=False)
    assert pieces(tokenizer, "abc") == ["<s>", "▁a", "b", "c"]
    assert pieces(tokenizer, "cabcé") == ["<s>", "▁", "c", "abc", "<0xC3>", "<0xA9>"]


def test_user_defined_pieces_are_found_before_anything_is_merged(tmp_path: Path):
    tokenizer = read_tokenizer(spm(tmp_path, user_defined=("<|im_start|>",)), [], fast=False)
    said = "<|im_start|>user\n<image>\nabc"
    expected = ["<s>", "▁", "<|im_start|>", "u", "s", "e", "r", "\n", "<image>", "▁", "\n", "abc"]
    assert pieces(tokenizer, said) == expected


def test_legacy_puts_a_space_behind_every_special_token(tmp_path: Path):
    said = "b</s>b <image></s>b"
    legacy = read_tokenizer(spm(tmp_path), [], fast=False)
    assert pieces(legacy, said) == [
        "<s>",
        "▁",
        "b",
        "</s>",
        "▁",
        "b",
        "▁",
        "<image>",
        "</s>",
        "▁",
        "b",
    ]
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false}')
    newer = read_tokenizer(tmp_path, [], fast=False)
    assert pieces(newer, said) == ["<s>", "▁", "b", "</s>", "b", "▁", "<image>", "</s>", "b"]
    # The original took a fast tokenizer for Mistral, and those are all alike.
    assert pieces(read_tokenizer(tmp_path, [], fast=True), said) == pieces(legacy, said)


def test_no_bos_and_no_prefix_where_the_files_say_so(tmp_path: Path):
    path = spm(tmp_path, prefix=0)
    (path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert pieces(read_tokenizer(path, [], fast=False), "abc<image>b") == ["abc", "<image>", "b"]


def test_empty_names_of_early_2023_mean_the_usual_ones(tmp_path: Path):
    names = {"bos_token": "", "eos_token": {"content": ""}, "unk_token": ""}
    (spm(tmp_path) / "tokenizer_config.json").write_text(json.dumps(names))
    hf = read_tokenizer(tmp_path, [], fast=False).hf
    assert (hf.bos_token_id, hf.eos_token_id, hf.unk_token_id) == (1, 2, 0)


def test_image_token_and_padding_come_behind_all_others(tmp_path: Path):
    path = spm(tmp_path)
    (path / "added_tokens.json").write_text('{"<extra>": 271}')
    (path / "special_tokens_map.json").write_text('{"pad_token": "<unk>"}')
    tokenizer = read_tokenizer(path, ["<im_patch>"], fast=False)
    hf = tokenizer.hf
    assert hf.convert_ids_to_tokens([271, 272, 273, 274]) == [
        "<extra>",
        "<im_patch>",
        "<image>",
        "<pad>",
    ]
    assert (tokenizer.known, tokenizer.image_id, hf.pad_token_id) == (273, 273, 274)


def test_added_tokens_with_gaps_are_refused(tmp_path: Path):
    (spm(tmp_path) / "added_tokens.json").write_text('{"<extra>": 300}')
    with pytest.raises(CheckpointError, match="leave gaps"):
        read_tokenizer(tmp_path, [], fast=False)


def test_unigram_models_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no byte-pair model"):
        read_sentencepiece(spm(tmp_path, kind=1) / "tokenizer.model")


@pytest.mark.parametrize(
    ("spelt", "text"),
    [
        (["▁a", "<0xC3>", "<0xA9>"], "aé"),
        (["<0xEA>", "<0x53>", "b"], "\ufffdSb"),
        (["▁", "<0xE4>", "<0xB8>"], "\ufffd\ufffd"),
        (["<0xE4>", "<0xC3>", "<0xA9>", "▁c"], "\ufffdé c"),
        ([], ""),
    ],
)
def test_bytes_are_spelt_one_character_after_the_other(spelt: list[str], text: str):
    assert joined_pieces(spelt) == text


def test_qwen_s_fast_tokenizer(tmp_path: Path):
    """Tokens beside the vocabulary, no BOS, and a stop string that is no named special token."""
    words = {token: number for number, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    fast = Tokenizer(models.BPE(words, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    fast.save(str(tokens / "tokenizer.json"))
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": "{{ 1 }}"}
    (tokens / "tokenizer_config.json").write_text(json.dumps(names))
    settings = {**SETTINGS, "model_type": "llava_qwen", "eos_token_id": 256}
    path = write(tmp_path / "llava", settings, random_state(settings, 300), tokenizer=tokens)
    reader = load_reader(path, conv_mode="chatml_direct")
    prompts = reader.tokenizer
    ids = prompts.tokenize("<|im_start|>user\n<image>\nhi<|im_end|>")
    assert prompts.tokenizer.convert_ids_to_tokens(ids)[-3:] == ["h", "i", "<|im_end|>"]
    assert ids[0] == 257 and ids.count(reader.special.image) == 1
    assert reader.special.image == 259 and reader.config.text_config.vocab_size == 320
    assert reader.special.stops == {256, 258}


def test_tokenizer_of_the_golden_cases_is_read_whole(tmp_path: Path):
    model = read_sentencepiece(FIXTURES / "tok-legacy-True" / "tokenizer.model")
    assert len(model.pieces) == 1000 and model.unknown == "<unk>" and model.prefixes
    shutil.copy(FIXTURES / "tok-legacy-True" / "tokenizer.model", tmp_path)
    assert read_tokenizer(tmp_path, [], fast=False).hf.convert_tokens_to_ids("</s>") == 2


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The vocabulary of the golden cases, read by llavakit and by the library."""
    library = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(FIXTURES / "tok-legacy-True" / "tokenizer.model", folder)
    oracle = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return read_tokenizer(folder, [], fast=False).hf, oracle


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("USER: What is in the image? ASSISTANT:")
@example("  two  spaces,\ttabs\nand lines ")
@example("naïve café, 请问, 🙂 and \u200d joiners ▁")
@settings(max_examples=200, deadline=None)
def test_pieces_are_those_of_the_sentencepiece_library(both: tuple[Any, Any], text: str):
    """The library is the oracle; llavakit reads its files without it.

    The library reads its own pieces only: `<image>`, `<s>` and their kind are text to it.
    """
    ours, oracle = both
    assume(not any(token in text for token in ours.get_added_vocab()))
    assert ours.encode(text, add_special_tokens=False) == oracle.encode(text)


def test_the_vocabulary_is_that_of_the_sentencepiece_library(both: tuple[Any, Any]):
    ours, oracle = both
    numbers = range(oracle.vocab_size())
    assert [ours.convert_ids_to_tokens(n) for n in numbers] == [
        oracle.id_to_piece(n) for n in numbers
    ]
