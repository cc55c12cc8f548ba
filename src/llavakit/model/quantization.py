"""Weights in 4 or 8 bits: packed by this package on a processor, by bitsandbytes elsewhere.

Only the linear layers of the language model are quantised. The vision tower and the
projector are small and read every image, so they keep their precision. The head decides
every token: bitsandbytes leaves it alone, and on a processor it has 8 bits. A checkpoint may
also hold weights that were packed before (:mod:`llavakit.model.packed_checkpoint`).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from llavakit.errors import CheckpointError, MissingDependencyError

if TYPE_CHECKING:
    from llavakit.model.packed import Change

Quantization = Literal["4bit", "8bit"]

KEPT = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""Modules that keep their precision, with their full names: transformers looks for a name at
the start or at the end of a module's path, so "vision_tower" alone would spare nothing."""

BITS = {"4bit": 4, "8bit": 8}

_PACKED_ROWS = 32


def packed_config(kind: Quantization, *, stored: bool = False, change: Change | None = None) -> Any:
    """Make the configuration for ``from_pretrained`` on a processor (see ``model.packed``).

    Args:
        kind: ``"4bit"`` or ``"8bit"``.
        stored: whether the weights are packed already and put in afterwards.
        change: what happens to each weight before it is packed.
    """
    from llavakit.model import packed

    return packed.packed_config(BITS[kind], KEPT[:2], stored=stored, change=change)


def bitsandbytes() -> Any:
    """The library.

    Raises:
        MissingDependencyError: it is not installed.
    """
    silence_advice()
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingDependencyError(
            "Models in 4 or 8 bits need bitsandbytes; install it with "
            '`pip install "llavakit[quant]"`.'
        ) from error


def silence_advice() -> None:
    """Let bitsandbytes, which peft and transformers' trainer import along, advise nothing.

    Where the processor has AVX512-BF16 it names a package that fetches code from the hub.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantization_config(kind: Quantization, dtype: Any) -> Any:
    """The ``BitsAndBytesConfig`` for ``from_pretrained``.

    Args:
        kind: ``"4bit"`` is nf4 with double quantisation (Dettmers et al. 2023, QLoRA);
            ``"8bit"`` is int8 by rows (Dettmers et al. 2022, LLM.int8()).
        dtype: type of the activations; 4-bit layers compute in it.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    bitsandbytes()
    from transformers import BitsAndBytesConfig

    if kind == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(KEPT),
        )
    # 8-bit layers compute in fp16 and say so at every call if the activations are not.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # Outliers are looked for in the whole batch, so that with a threshold (6 by default) a
    # sequence's answer depends on what runs beside it; without one it does not.
    return BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=list(KEPT)
    )


def check_quantized(model: Any, kind: Quantization) -> None:
    """Make sure that the right layers are quantised, because a wrong name goes unnoticed.

    Raises:
        CheckpointError: names the first layer that is quantised and must not be, or that
            should be and is not.
    """
    library = bitsandbytes()
    quantised = library.nn.Linear4bit if kind == "4bit" else library.nn.Linear8bitLt
    for name, layer in _linear_layers(model):
        if ".lora_" in name:  # an adapter beside the layer
            continue
        kept = any(name == one or name.startswith(f"{one}.") for one in KEPT)
        if kept and isinstance(layer, (library.nn.Linear4bit, library.nn.Linear8bitLt)):
            raise CheckpointError(
                f"{name} was quantised and must not be; load this checkpoint without quantization."
            )
        if not kept and not isinstance(layer, quantised):
            raise CheckpointError(
                f"{name} was not quantised to {kind}; load this checkpoint without quantization."
            )


def keep_unpackable(model: Any) -> None:
    """Leave 4-bit layers unpacked whose shape bitsandbytes cannot pack for this processor.

    Where the processor has AVX512-BF16, bitsandbytes 0.50 packs a layer's weights at its first
    use, in blocks that it takes to divide both sides, and fails where they do not.
    """
    for _, layer in _linear_layers(model):
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            rows, columns = layer.out_features, layer.in_features
            state = layer.weight.quant_state
            fits = rows % _PACKED_ROWS == 0 and columns % state.blocksize == 0
            layer.support_avx512bf16_for_cpu = fits


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def weight_bytes(module: Any) -> int:
    """Bytes of all weights of a module, with the scales and tables of quantised ones."""
    return sum(
        tensor.nbytes
        for parameter in module.parameters()
        for tensor in (parameter, *_constants(parameter))
    )


def _constants(parameter: Any) -> Iterator[Any]:
    """What bitsandbytes keeps beside a quantised weight."""
    scales = getattr(parameter, "SCB", None)
    if scales is not None:
        yield scales
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield state.absmax
        yield state.code
        if state.offset is not None:
            yield state.offset
        state = state.state2
