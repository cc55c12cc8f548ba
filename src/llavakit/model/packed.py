"""Linear layers in 8 or 4 bits on a processor, packed one by one while a checkpoint is read.

transformers quantises weights as it loads them if it is given a quantizer; this one keeps a
matrix only until it is packed, so that the peak of memory is the packed model and one matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llavakit.errors import CheckpointError
from llavakit.kernels import huge_pages
from llavakit.kernels.native import kernels
from llavakit.kernels.packing import Packed, pack
from llavakit.kernels.products import Weights

METHOD = "llavakit"
"""Name of the method in transformers' register of quantizers."""

READ_AT_ONCE = 256 << 20
"""Bytes of weights that are packed before the pages that they were read from are let go."""

HEAD_BITS = 8
"""Of the output layer, whatever the others have: it decides every token."""

Change = Callable[[str, Tensor], Tensor]
"""(full name of a weight, weight) -> what is packed instead, such as its sum with an adapter's."""


class PackedLinear(nn.Linear):
    """A linear layer whose weights are packed; ``weight`` is an empty placeholder.

    Attributes:
        bits: 8 or 4.
        packed: the weights, until a larger matrix takes them over.
        fault: why weights could not be packed; reported when all are loaded, because transformers
            makes pages of errors in between.
    """

    def __init__(self, like: nn.Linear, bits: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        self.weight = like.weight
        self.bias = like.bias
        self.bits = bits
        self.fault: str | None = None
        self._packed: Packed | None = None
        self._weights: Weights | None = None
        self._in_file = False

    @property
    def packed(self) -> Packed:
        assert self._packed is not None, "the weights are packed, and here"
        return self._packed

    @property
    def empty(self) -> bool:
        """Whether no weights were packed yet."""
        return self._packed is None

    def take(self, weight: Tensor) -> Tensor:
        """Pack weights; gives the placeholder that stands for them."""
        try:
            self._packed = pack(weight, self.bits, kernels())
        except ValueError as error:
            self.fault = str(error)
        return torch.empty(0, dtype=weight.dtype)

    def hold(self, packed: Packed) -> None:
        """Take weights that were packed before and lie in a mapped file."""
        self._packed, self._in_file = packed, True
        self.weight = nn.Parameter(torch.empty(0, dtype=self.weight.dtype), requires_grad=False)

    def give_up(self) -> None:
        """Drop the weights: a larger matrix holds them now."""
        if self._in_file:
            # The file stays mapped for what is read in place; these pages need not stay.
            huge_pages.forget(self.packed.data)
            huge_pages.forget(self.packed.scales)
        self._packed = self._weights = None

    def forward(self, x: Tensor) -> Tensor:
        if self._weights is None:
            self._weights = Weights(self.packed, self.bias)
        rows = x.reshape(-1, self.in_features)
        return self._weights(rows).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


def replace_linear(
    model: nn.Module, bits: int, kept: tuple[str, ...], *, stored: bool = False
) -> None:
    """Put empty packed layers in the place of all linear ones but those below ``kept``.

    Args:
        model: with weights on the meta device.
        bits: 8 or 4.
        kept: modules that keep their precision, by their full names.
        stored: whether the weights are packed already, so that no others are to be read.
    """
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        if any(name == one or name.startswith(f"{one}.") for one in kept):
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        own = HEAD_BITS if name == "lm_head" else bits
        layer = PackedLinear(module, own)
        if stored:
            layer.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
        setattr(parent, name.rpartition(".")[2], layer)


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """Give all packed layers of a model by their full names."""
    return {name: one for name, one in model.named_modules() if isinstance(one, PackedLinear)}


def finish(model: nn.Module) -> None:
    """Make sure that every layer has its weights; packs an output layer tied to the embeddings.

    Raises:
        CheckpointError: a layer has none, or such as cannot be packed.
    """
    for name, module in packed_layers(model).items():
        weight = module.weight
        if module.empty and module.fault is None and weight.numel():
            if weight.device.type == "meta":
                raise CheckpointError(f"{name} has no weights; the checkpoint is incomplete.")
            # The embeddings keep the tied tensor; the layer gets one of its own.
            module.weight = nn.Parameter(module.take(weight.detach()), requires_grad=False)
        if module.empty:
            raise CheckpointError(
                f"{name} cannot be quantised: {module.fault or 'it has no weights'}; the "
                "checkpoint is damaged, download or copy it again."
            )


@functools.cache
def _config_class() -> type:
    """The configuration that transformers is given; registered with its quantizer, once."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(METHOD)
    class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
        def __init__(
            self,
            bits: int = 8,
            kept: tuple[str, ...] = (),
            stored: bool = False,
            change: Change | None = None,
            **unused: Any,
        ) -> None:
            self.quant_method = METHOD
            self.bits, self.kept = bits, tuple(kept)
            self.stored, self.change = stored, change

    class Pack(ConversionOps):  # type: ignore[misc]
        def __init__(self, change: Change | None) -> None:
            self.change = change
            self._read = 0

        def convert(
            self, input_dict: dict[str, Any], *args: Any, model: Any = None, **kwargs: Any
        ) -> dict[str, Any]:
            result = {}
            for name, value in input_dict.items():
                weight = value[0] if isinstance(value, list) else value
                module = model.get_submodule(name.rpartition(".")[0])
                wanted = (module.out_features, module.in_features)
                if tuple(weight.shape) != wanted:
                    raise ValueError(f"{name} is {tuple(weight.shape)} and should be {wanted}")
                changed = weight if self.change is None else self.change(name, weight)
                result[name] = nn.Parameter(module.take(changed), requires_grad=False)
                self._let_go(weight.nbytes)
            return result

        def _let_go(self, size: int) -> None:
            # Files stay mapped until all is read; what is packed need not stay in memory.
            self._read += size
            if self._read >= READ_AT_ONCE:
                self._read = 0
                huge_pages.forget_files()

    @register_quantizer(METHOD)
    class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
        requires_calibration = False

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            if self.quantization_config.stored:
                return False
            module, _, name = param_name.rpartition(".")
            return name == "weight" and isinstance(model.get_submodule(module), PackedLinear)

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            config = self.quantization_config
            replace_linear(model, config.bits, config.kept, stored=config.stored)
            return model

        @functools.cached_property
        def _pack(self) -> Any:
            return Pack(self.quantization_config.change)

        def get_quantize_ops(self) -> Any:
            return self._pack  # one for all, which counts what was read

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    return PackedConfig


def packed_config(
    bits: int, kept: tuple[str, ...], *, stored: bool = False, change: Change | None = None
) -> Any:
    """Make the configuration for ``from_pretrained``.

    Args:
        bits: 8 or 4.
        kept: modules that keep their precision, by their full names.
        stored: whether the weights are packed already and put in afterwards.
        change: what happens to each weight before it is packed.
    """
    return _config_class()(bits=bits, kept=kept, stored=stored, change=change)
