"""Write a checkpoint of the original's in HF format, for programs that read only that, or packed.

Nothing here is needed to run a checkpoint with llavakit. Weights that are not packed go from file
to file one shard at a time; the model is never built.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError, ParameterError
from llavakit.model.adapter import is_hf_adapter
from llavakit.model.description import check_same_prompts, write_json
from llavakit.model.loader import Reader, load_reader, settings_of
from llavakit.model.locate import locate
from llavakit.model.original.checkpoint import OriginalCheckpoint
from llavakit.model.original.config import is_original
from llavakit.model.original.description import check_plain
from llavakit.model.original.tensors import Tensors
from llavakit.model.original.weights import EMBEDDINGS
from llavakit.model.quantization import BITS, Quantization

if TYPE_CHECKING:
    from torch import Tensor

    from llavakit.model.packed_export import Source

SHARD_BYTES = 4 << 30
"""The most that is in memory at once, and the size of a file."""


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model_base: str | os.PathLike[str] | None = None,
    conv_mode: str | None = None,
    dtype: str = "auto",
    quantize: Quantization | None = None,
) -> Path:
    """Write a model of the original's, or an adapter with its base, as an HF directory.

    transformers and vLLM load it. With ``quantize`` any model is written, packed for a processor,
    and llavakit alone loads it.

    The directory appears whole or not at all.

    Args:
        model: directory or hub id of a checkpoint in the original format, or of an adapter; with
            ``quantize`` whatever ``llavakit.load`` takes.
        out: the directory to make; it must not exist, or be empty.
        model_base: base of a LoRA or projector-only checkpoint; it is merged. An adapter that
            names its base needs none if that is here.
        conv_mode: the conversation template; None follows the original's rule for names.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"auto"`` for that of the files.
            With ``quantize`` it is for what is not packed, and ``"auto"`` takes for each tensor
            16 bits if they lose nothing, and else fp32.
        quantize: ``"4bit"`` or ``"8bit"`` packs the language model's linear layers.

    Returns:
        ``out``.

    Raises:
        ParameterError: ``out`` holds something, or there is no such type or quantization.
        CheckpointError: the model is in HF format already (without ``quantize``), cannot be
            expressed in it, is packed already, or cannot be written.
    """
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ParameterError(f"dtype is {dtype!r}; use auto, float32, float16 or bfloat16.")
    if quantize is not None and quantize not in BITS:
        raise ParameterError(f"quantize is {quantize!r}; use 4bit or 8bit.")
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ParameterError(f"{out} exists and is not empty; name a new directory.")
    write = _writer(os.fspath(model), model_base, conv_mode, dtype, quantize)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    try:
        beside.chmod(0o777 & ~_umask())
        write(beside)
        beside.replace(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _writer(
    model: str,
    model_base: str | os.PathLike[str] | None,
    conv_mode: str | None,
    dtype: str,
    quantize: Quantization | None,
) -> Callable[[Path], None]:
    """What fills a directory; the checkpoint has been opened."""
    if quantize is not None:
        from llavakit.model.packed_export import open_source

        source = open_source(model, model_base, conv_mode)
        return lambda path: _write_packed(source, path, dtype, quantize)
    checkpoint = _opened(model, model_base, conv_mode)
    if isinstance(checkpoint, Reader):
        return lambda path: _write_adapted(checkpoint, path, dtype)
    return lambda path: _write(checkpoint, path, dtype)


def _opened(
    model: str, model_base: str | os.PathLike[str] | None, conv_mode: str | None
) -> OriginalCheckpoint | Reader:
    path = locate(os.path.expanduser(model), original=True)
    if is_hf_adapter(path):
        base = None if model_base is None else locate(os.fspath(model_base))
        return load_reader(path, conv_mode=conv_mode, name=model, model_base=base)
    if not is_original(settings_of(path)):
        raise CheckpointError(f"{path} is in HF format already; use it as it is.")
    base = None if model_base is None else locate(os.fspath(model_base), original=True)
    checkpoint = OriginalCheckpoint(path, name=model, conv_mode=conv_mode, base=base)
    check_plain(checkpoint)
    return checkpoint


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(checkpoint: OriginalCheckpoint, path: Path, dtype: str) -> None:
    tensors = checkpoint.tensors()
    kind = tensors[EMBEDDINGS[0]][:1].dtype if dtype == "auto" else _torch_dtype(dtype)
    checkpoint.config.dtype = kind
    describe(checkpoint.reader(), path)
    _write_tensors(tensors, path, kind)


def describe(reader: Reader, path: Path) -> None:
    """Write all files of a checkpoint in HF format but its weights.

    Raises:
        CheckpointError: its prompts cannot be written for other programs.
    """
    reader.describe(reader, path)
    check_same_prompts(reader, load_reader(path))


def _write_adapted(reader: Reader, path: Path, dtype: str) -> None:
    """An adapter merged into its base."""
    import torch

    kind = torch.float32 if dtype == "auto" else _torch_dtype(dtype)
    if dtype == "auto":
        kind = getattr(reader.config, "dtype", None) or torch.float32
    # The sum is rounded once, when it is written.
    model = reader.build({"dtype": torch.float32}).to(kind)
    describe(reader, path)
    model.save_pretrained(path)


def _write_packed(source: Source, path: Path, dtype: str, quantize: Quantization) -> None:
    from llavakit.model.packed_checkpoint import description, save_aligned
    from llavakit.model.packed_export import packed_tensors

    describe(source.reader, path)
    tensors = packed_tensors(source, quantize, None if dtype == "auto" else _torch_dtype(dtype))
    file = path / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**settings, "quantization_config": description(quantize)})
    _write_tensors(tensors, path, None, save_aligned)


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})


def _write_tensors(
    tensors: Tensors,
    path: Path,
    dtype: Any,
    save: Callable[[dict[str, Tensor], Path], None] = _save,
) -> None:
    """Write files of at most ``SHARD_BYTES``; without a ``dtype`` each tensor keeps its own."""
    names: list[list[str]] = []
    total = 0
    for number, shard in enumerate(_shards(tensors, dtype)):
        save(shard, path / f"{number}.partial")
        names.append(sorted(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(names) == 1:
        (path / "0.partial").rename(path / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (path / f"{number}.partial").rename(path / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(path / "model.safetensors.index.json", index)


def _shards(tensors: Tensors, dtype: Any) -> Iterator[dict[str, Tensor]]:
    """Tensors in their type, so many at a time as a file holds."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name in sorted(tensors):
        tensor = tensors[name][...]
        tensor = (tensor if dtype is None else tensor.to(dtype)).contiguous()
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard
