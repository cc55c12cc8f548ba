"""Write a checkpoint of the original's in HF format, for programs that read only that.

Nothing here is needed to run such a checkpoint with llavakit. The weights go from file to file
one shard at a time; the model is never built.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError, ParameterError
from llavakit.model.chat_template import PROBE
from llavakit.model.loader import Reader, load_reader, settings_of
from llavakit.model.locate import locate
from llavakit.model.original.checkpoint import OriginalCheckpoint
from llavakit.model.original.config import is_original
from llavakit.model.original.jinja import chat_template
from llavakit.model.original.tensors import Tensors
from llavakit.model.original.weights import EMBEDDINGS
from llavakit.prompts.templates import template

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 4 << 30
"""The most that is in memory at once, and the size of a file."""


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model_base: str | os.PathLike[str] | None = None,
    conv_mode: str | None = None,
    dtype: str = "auto",
) -> Path:
    """Write a model of the original's as a directory that transformers and vLLM load.

    The directory appears whole or not at all.

    Args:
        model: directory or hub id of a checkpoint in the original format.
        out: the directory to make; it must not exist, or be empty.
        model_base: base of a LoRA or projector-only checkpoint; it is merged.
        conv_mode: the conversation template; None follows the original's rule for names.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"auto"`` for that of the files.

    Returns:
        ``out``.

    Raises:
        ParameterError: ``out`` holds something, or there is no such type.
        CheckpointError: the model is in HF format already, cannot be expressed in it, or
            cannot be written.
    """
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ParameterError(f"dtype is {dtype!r}; use auto, float32, float16 or bfloat16.")
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ParameterError(f"{out} exists and is not empty; name a new directory.")
    checkpoint = _opened(os.fspath(model), model_base, conv_mode)
    said = template(checkpoint.conv_mode)
    image_text = checkpoint.parts.config.image_text
    jinja = chat_template(said, image_text, spaced=checkpoint.tokenizer.spaced)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    try:
        beside.chmod(0o777 & ~_umask())
        _write(checkpoint, beside, jinja, dtype)
        _check_prompts(checkpoint, beside)
        beside.replace(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _opened(
    model: str, model_base: str | os.PathLike[str] | None, conv_mode: str | None
) -> OriginalCheckpoint:
    path = locate(os.path.expanduser(model), original=True)
    if not is_original(settings_of(path)):
        raise CheckpointError(f"{path} is in HF format already; use it as it is.")
    base = None if model_base is None else locate(os.fspath(model_base), original=True)
    checkpoint = OriginalCheckpoint(path, name=model, conv_mode=conv_mode, base=base)
    if not checkpoint.plain:
        said = checkpoint.parts.config
        raise CheckpointError(
            f"{said.file} asks for {said.projector} and {said.merge}, and transformers has no "
            "class for such a model; run it with llavakit, which reads it as it is."
        )
    return checkpoint


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(checkpoint: OriginalCheckpoint, path: Path, jinja: str, dtype: str) -> None:
    from transformers import GenerationConfig

    tensors = checkpoint.tensors()
    kind = tensors[EMBEDDINGS[0]][:1].dtype if dtype == "auto" else _torch_dtype(dtype)
    _write_tensors(tensors, path, kind)
    config = checkpoint.config
    next_generation = config.model_type == "llava_next"
    name = "LlavaNext" if next_generation else "Llava"
    config.architectures = [f"{name}ForConditionalGeneration"]
    config.dtype = kind
    config.save_pretrained(path)
    tokenizer = _plain_tokenizer(checkpoint.tokenizer.hf, jinja)
    reader = checkpoint.reader()
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(reader.special.stops),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=_spelt_stops(reader) or None,
    ).save_pretrained(path)
    _write_processor(checkpoint, tokenizer, path, jinja, f"{name}Processor")


def _spelt_stops(reader: Reader) -> list[str]:
    """Stop strings that no id stands for.

    ``generate`` of transformers asks for the tokenizer where there are any, so there are none
    that are not needed.
    """
    ids = reader.tokenizer.tokenizer.get_vocab()
    stops = reader.tokenizer.stop_strings
    return [one for one in stops if ids.get(one) not in reader.special.stops]


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _plain_tokenizer(hf: Any, jinja: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=hf.backend_tokenizer,
        **{name: getattr(hf, name) for name in names if getattr(hf, name) is not None},
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        chat_template=jinja,
    )


def _write_processor(
    checkpoint: OriginalCheckpoint, tokenizer: Any, path: Path, jinja: str, name: str
) -> None:
    import transformers

    config = checkpoint.config
    getattr(transformers, name)(
        image_processor=checkpoint.processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's CLS
        image_token="<image>",
        chat_template=jinja,
    ).save_pretrained(path)
    # Older programs look for the pictures' settings in a file of their own, and every program
    # knows these two class names.
    settings = checkpoint.processor.to_dict()
    settings["image_processor_type"] = name.replace("Processor", "ImageProcessor")
    settings["processor_class"] = name
    _write_json(path / "preprocessor_config.json", settings)
    file = path / "tokenizer_config.json"
    _write_json(
        file,
        {**json.loads(file.read_text("utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"},
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(tensors: Tensors, path: Path, dtype: Any) -> None:
    from safetensors.torch import save_file

    names: list[list[str]] = []
    total = 0
    for number, shard in enumerate(_shards(tensors, dtype)):
        save_file(shard, path / f"{number}.partial", metadata={"format": "pt"})
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
    _write_json(path / "model.safetensors.index.json", index)


def _shards(tensors: Tensors, dtype: Any) -> Iterator[dict[str, Tensor]]:
    """Tensors in their type, so many at a time as a file holds."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name in sorted(tensors):
        tensor = tensors[name][...].to(dtype).contiguous()
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _check_prompts(checkpoint: OriginalCheckpoint, path: Path) -> None:
    """A directory whose prompts differ would answer badly without a word; it is not kept."""
    mine, theirs = checkpoint.reader(), load_reader(path)
    same = (
        mine.tokenizer.encode(PROBE) == theirs.tokenizer.encode(PROBE)
        and mine.special.stops == theirs.special.stops
        and _spelt_stops(mine) == list(theirs.tokenizer.stop_strings)
    )
    if not same:
        raise CheckpointError(
            f"The prompts of {checkpoint.parts.path} cannot be written as the original writes "
            "them for other programs; run it with llavakit, which reads it as it is."
        )
