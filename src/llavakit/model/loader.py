"""A checkpoint's files as objects: first what reads prompts, later the weights.

The two halves are loaded apart, because counting tokens needs no weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError
from llavakit.model.chat_template import prompt_tokenizer
from llavakit.model.layout import ImageLayout, layout_of
from llavakit.model.preprocess import ImagePreprocessor, image_processor
from llavakit.model.quantization import Quantization, check_quantized, quantization_config
from llavakit.model.tokens import PromptTokenizer, Special, special_tokens

if TYPE_CHECKING:
    from llavakit.model.llava import Llava

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reader:
    """What turns a conversation into the model's input; holds no weights.

    Attributes:
        path: the checkpoint's directory.
        config: the HF configuration.
        tokenizer: renders and tokenises turns.
        preprocess: makes the vision tower's input.
        layout: counts a picture's tokens.
        special: ids with a meaning of their own.
        context_length: tokens of prompt and answer together.
        revision: identity of the weights.
    """

    path: Path
    config: Any
    tokenizer: PromptTokenizer
    preprocess: ImagePreprocessor
    layout: ImageLayout
    special: Special
    context_length: int
    revision: str


def load_reader(path: Path, *, conv_mode: str | None = None, name: str | None = None) -> Reader:
    """Tokenizer, template and image processor of a checkpoint directory in HF format.

    Args:
        path: the directory.
        conv_mode: a conversation template by name; None takes the checkpoint's own.
        name: what the model is called, where the directory does not say it (hub ids).

    Raises:
        CheckpointError: files are missing, broken, or of a family that is not known.
        ParameterError: no template is called ``conv_mode``.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        processor = image_processor(path, config)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a LLaVA checkpoint: {error}") from error
    layout = layout_of(config)
    prompts = prompt_tokenizer(
        tokenizer,
        int(config.image_token_id),
        path=path,
        conv_mode=conv_mode,
        name=name or str(path),
    )
    generation = None
    if (path / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(path)
    revision = _revision(path)
    return Reader(
        path=path,
        config=config,
        tokenizer=prompts,
        preprocess=ImagePreprocessor(processor, revision),
        layout=layout,
        special=special_tokens(tokenizer, config, generation, prompts.stop_strings),
        context_length=_context_length(config.text_config),
        revision=revision,
    )


def _context_length(text: Any) -> int:
    """Positions the decoder was made for; no further than a sliding window reaches."""
    window = getattr(text, "sliding_window", None)
    used = getattr(text, "use_sliding_window", True)
    return int(min(text.max_position_embeddings, window if window and used else 1 << 30))


def _revision(path: Path) -> str:
    """A digest of names, sizes and times of the weight files: cheap, and changes with them."""
    digest = hashlib.sha256(os.path.realpath(path).encode())
    for file in sorted(path.glob("*.safetensors")):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def load_weights(
    reader: Reader, *, device: str, dtype: str, quantization: Quantization | None = None
) -> Llava:
    """The model itself.

    Args:
        reader: from :func:`load_reader`.
        device: ``"auto"``, or a torch device.
        dtype: ``"auto"``, or the name of a torch type.
        quantization: ``"4bit"``, ``"8bit"`` or None (see :mod:`llavakit.model.quantization`).

    Raises:
        CheckpointError: weights are missing or do not fit the configuration.
        MissingDependencyError: quantization without bitsandbytes.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging as hf_logging

    from llavakit.model.llava import Llava

    place = torch.device(_device(device))
    kind = getattr(torch, _dtype(dtype, place.type))
    options: dict[str, Any] = {}
    if quantization is not None:
        # Layers are quantised where they are loaded; a quantised model is not moved any more.
        options["quantization_config"] = quantization_config(quantization, kind)
        options["device_map"] = {"": place}
    bar_was_on = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            reader.path, dtype=kind, output_loading_info=True, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The weights in {reader.path} cannot be loaded: {error}") from error
    finally:
        if bar_was_on:
            hf_logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{reader.path} lacks {len(missing)} tensors, among them {missing[0]}; "
            "its files are incomplete, download or copy them again."
        )
    if quantization is None:
        model = model.to(place)
    else:
        check_quantized(model, quantization)
    log.info("loaded %s on %s as %s", reader.path.name, place, quantization or kind)
    return Llava(model)


def _device(asked: str) -> str:
    import torch

    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(asked: str, device: str) -> str:
    import torch

    if asked != "auto":
        return asked
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    # Without AVX512-BF16 or AMX, 16 bits are several times slower than 32 on a processor.
    return "float16" if device == "mps" else "float32"
