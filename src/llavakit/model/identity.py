"""Which model the files of a checkpoint are: by their content, wherever they lie.

Two directories have one identity if what changes a model's results is the same in both: settings,
tokenizer and weights. Caches, indexes and records of runs know a model by it. It is cheap: of
large weights it reads what tells one training from another, a few bytes of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llavakit.errors import CheckpointError
from llavakit.model.locate import PICKLED

_DESCRIBING = (
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
_PLACES = {"_name_or_path", "base_model_name_or_path", "mm_vision_tower", "vision_tower"}
"""Settings that say where something lies, which has an identity of its own."""
_NO_WEIGHTS = {"training_args.bin", "optimizer.bin", "scheduler.bin"}

_SMALL = 8 << 20
"""Bytes of a file up to which all of it is read."""
_SAMPLE = 4 << 10
"""Bytes that are read at each place of a larger one."""
_SPREAD = 256
"""Such places, evenly spread, besides those of its tensors."""
_MOST_HEADER = 64 << 20


def identity_of(directories: Iterable[Path]) -> str:
    """Return a digest of settings, tokenizers and weights that is the same for every copy.

    Files of up to 8 MiB are read as a whole. Of larger weights names, types and shapes are read,
    and of each tensor 4 KiB where it begins, in its middle and where it ends (of pickled ones the
    checksums that are written beside them): training changes all numbers of what it trains. A
    change of single numbers elsewhere is not seen.

    Args:
        directories: all that the model is made of (adapter, base, vision tower), in this order.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in directories:
        try:
            for name, content in (*_descriptions(path), *_weights(path)):
                digest.update(f"{name}\0{len(content)}\0".encode())
                digest.update(content)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or path} cannot be read ({error.strerror or error}); copy or "
                "download it again."
            ) from error
        digest.update(b"\0end\0")
    return digest.hexdigest()[:16]


def _descriptions(path: Path) -> Iterator[tuple[str, bytes]]:
    for name in _DESCRIBING:
        if (path / name).is_file():
            content = (path / name).read_bytes()
            yield name, _without_places(content) if name.endswith("config.json") else content


def _without_places(content: bytes) -> bytes:
    try:
        settings: Any = json.loads(content)
    except ValueError:  # its reader says so
        return content
    if not isinstance(settings, dict) or not _PLACES & settings.keys():
        return content
    left = {name: value for name, value in settings.items() if name not in _PLACES}
    return json.dumps(left, sort_keys=True).encode()


def _weights(path: Path) -> Iterator[tuple[str, bytes]]:
    pickled = {
        file
        for wanted, stand_in in PICKLED.items()
        if any(path.glob(stand_in))
        for file in path.glob(wanted)
    }
    for file in sorted({*path.glob("*.safetensors"), *path.glob("*.bin")} - pickled):
        if file.name not in _NO_WEIGHTS:
            yield file.name, _content(file)


def _content(file: Path) -> bytes:
    """What stands for a file's content: its digest, or that of its samples."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        length = file.stat().st_size
        digest.update(str(length).encode())
        if length <= _SMALL:
            digest.update(stream.read())
            return digest.digest()
        named, places = _layout(stream, length)
        digest.update(named)
        places |= {at * length // _SPREAD for at in range(_SPREAD + 1)}
        for place in sorted(places):
            # On both sides: one tensor ends where another one begins.
            stream.seek(min(max(0, place - _SAMPLE), length))
            digest.update(stream.read(2 * _SAMPLE))
    return digest.digest()


def _layout(stream: BinaryIO, length: int) -> tuple[bytes, set[int]]:
    """What a file says of its tensors, and places to read: their ends and middles."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
        said = [[one.filename.partition("/")[2], one.file_size, one.CRC] for one in members]
        begins = sorted(one.header_offset for one in members)
        named = json.dumps(said).encode()
    except zipfile.BadZipFile:
        named, begins = _safetensors_layout(stream, length)
    ends = [*begins[1:], length]
    middles = {(begin + end) // 2 for begin, end in zip(begins, ends, strict=False)}
    return named, {*begins, *middles}


def _safetensors_layout(stream: BinaryIO, length: int) -> tuple[bytes, list[int]]:
    """The header of a safetensors file, and where its tensors begin; nothing of other files."""
    stream.seek(0)
    (size,) = struct.unpack("<Q", stream.read(8))
    if size > min(length - 8, _MOST_HEADER):
        return b"", []
    header = stream.read(size)
    try:
        entries = json.loads(header)
        offsets = [
            int(one["data_offsets"][0]) for name, one in entries.items() if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # its reader says so
        return header, []
    return header, sorted(8 + size + one for one in offsets)
