"""The configuration of an engine: resolved once, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llavakit._checks import check_instance, check_integer
from llavakit.errors import ParameterError
from llavakit.model.quantization import Quantization
from llavakit.prompts.templates import OWN, template

MIB = 1 << 20
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that makes two engines different; equal configurations share one engine.

    Attributes:
        model: an alias (``"demo"``), a local directory, or a hub id.
        model_base: the base model of a LoRA or projector-only checkpoint.
        conv_mode: the name of a conversation template (see :mod:`llavakit.prompts.templates`);
            None takes the checkpoint's own.
        revision: a branch, tag or commit on the hub.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        dtype: ``"auto"``, ``"float32"``, ``"float16"``, ``"bfloat16"``.
        quantization: ``"4bit"``, ``"8bit"`` or None; packed by llavakit on a processor, by
            bitsandbytes on CUDA.
        device_map: how layers are spread over several GPUs, such as ``"auto"`` (accelerate);
            None puts the whole model on ``device``.
        context_length: tokens of prompt and answer; None takes the model's own limit.
        max_concurrency: most sequences that run in one batch; ``"auto"``: 32, and on CUDA as many
            as the memory for keys and values holds (8 to 256, see ``engine.memory``).
        max_waiting: most requests that wait; one more raises ``QueueFullError``.
        prefill_chunk: most prompt tokens that one step computes.
        kv_cache_bytes: bytes for keys and values, running and kept; ``"auto"`` sizes it by
            the memory that is free.
        image_cache_bytes: bytes for the features of images that were encoded before.
        static_decode: whether decoding runs in static shapes and, on CUDA, is captured as
            graphs; ``"auto"``: on CUDA.
        compile: whether such steps are compiled (``torch.compile``); ``"auto"``: on CUDA, if
            Triton is installed. Each batch size is compiled once it is worth it, while
            requests wait.
        lookahead: whether a step is launched before the tokens of the one before are read on
            the host; ``"auto"``: on CUDA. A processor computes nothing meanwhile, and would
            pay for the step too many behind each answer.
    """

    model: str
    model_base: str | None = None
    conv_mode: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization | None = None
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    context_length: int | None = None
    max_concurrency: int | Literal["auto"] = "auto"
    max_waiting: int = 1024
    prefill_chunk: int = 2048
    kv_cache_bytes: int | Literal["auto"] = "auto"
    image_cache_bytes: int = 256 * MIB
    static_decode: bool | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    lookahead: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_instance("device", self.device, str, "the name of a device, such as cuda:0")
        if self.conv_mode is not None and self.conv_mode != OWN:
            template(self.conv_mode)  # raises for a name that does not exist
        if self.quantization not in (None, "4bit", "8bit"):
            raise ParameterError(
                f'quantization is {self.quantization!r}; use "4bit", "8bit" or None.'
            )
        if self.dtype not in ("auto", "float32", "float16", "bfloat16"):
            raise ParameterError(
                f'dtype is {self.dtype!r}; use "auto", "float32", "float16" or "bfloat16".'
            )
        for name in ("static_decode", "compile", "lookahead"):
            if getattr(self, name) not in (True, False, "auto"):
                raise ParameterError(
                    f'{name} is {getattr(self, name)!r}; use True, False or "auto".'
                )
        if self.compile is True and self.static_decode is False:
            raise ParameterError("compile needs static_decode; leave one of them out.")
        if self.device_map not in (None, *DEVICE_MAPS):
            raise ParameterError(
                f"device_map is {self.device_map!r}; use {', '.join(DEVICE_MAPS)} or None."
            )
        for name in ("max_waiting", "prefill_chunk"):
            check_integer(name, getattr(self, name), least=1)
        if self.max_concurrency != "auto":
            check_integer("max_concurrency", self.max_concurrency, least=1)
        check_integer("image_cache_bytes", self.image_cache_bytes, least=0)
        if self.context_length is not None:
            check_integer("context_length", self.context_length, least=1)
        if self.kv_cache_bytes != "auto":
            check_integer("kv_cache_bytes", self.kv_cache_bytes, least=1)
