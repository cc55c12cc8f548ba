"""The compiled kernels through ctypes: found, proven, and called.

A library is used only if this processor has its instructions and if its numbers are right on a
trial (see :mod:`llavakit.kernels.trial`); else everything computes in torch, and the log says so.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SWITCH = "LLAVAKIT_KERNELS"
"""Environment variable: ``0`` computes in torch, a set's name (``avx2``) takes that one."""

MOST_ROWS = 32
"""Rows of a product with plain weights for which these kernels are made; more are work for a matrix
library. Packed weights have no other product, so that a row never depends on its neighbours."""

FP32, BF16, INT8, INT4 = range(4)
KINDS = {torch.float32: FP32, torch.bfloat16: BF16}


class Matrix(ctypes.Structure):
    """Weights [rows, columns] as the kernels read them; see ``cpu.cpp``."""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("groups", c_int64),
        ("kind", c_int32),
    )


class Units(ctypes.Structure):
    """Which tokens read which stretches of the arena; see ``cpu.cpp``."""

    _fields_ = (
        ("count", c_int64),
        ("tokens", c_void_p),
        ("token", c_void_p),
        ("tail_start", c_void_p),
        ("tail_length", c_void_p),
        ("shared", c_void_p),
        ("shared_start", c_void_p),
        ("shared_length", c_void_p),
    )


class Attention(ctypes.Structure):
    """One layer's attention; see ``cpu.cpp``."""

    _fields_ = (
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("query_row", c_int64),
        ("key_row", c_int64),
        ("value_row", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_head", c_int64),
        ("key_slot", c_int64),
        ("value_head", c_int64),
        ("value_slot", c_int64),
        ("slot", c_void_p),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("scaling", c_float),
        ("kind", c_int32),
        ("out", c_void_p),
    )


class Cache(ctypes.Structure):
    """One layer's keys and values in the arena; see ``cpu.cpp``."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_head", c_int64),
        ("key_slot", c_int64),
        ("value_head", c_int64),
        ("value_slot", c_int64),
    )


class Layer(ctypes.Structure):
    """One decoder layer's weights; see ``cpu.cpp``."""

    _fields_ = (
        ("norm", c_void_p),
        ("behind_norm", c_void_p),
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("scaling", c_float),
    )


class Decode(ctypes.Structure):
    """A pass through all layers of a decoder; see ``cpu.cpp``."""

    _fields_ = (
        ("layers", c_void_p),
        ("caches", c_void_p),
        ("count", c_int64),
        ("tokens", c_int64),
        ("size", c_int64),
        ("inner", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("half", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("slot", c_void_p),
        ("norm", c_void_p),
        ("eps", c_float),
        ("kind", c_int32),
        ("hidden", c_void_p),
        ("scratch", c_void_p),
        ("out", c_void_p),
    )


def matrix(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """Return a view of plain weights [rows, columns], fp32 or bf16; they must outlive it.

    Args:
        weight: contiguous, in main memory.
        bias: [rows] in fp32, or None.
    """
    assert weight.is_contiguous() and weight.device.type == "cpu"
    assert bias is None or (bias.is_contiguous() and bias.dtype == torch.float32)
    rows, columns = weight.shape
    place = None if bias is None else bias.data_ptr()
    return Matrix(weight.data_ptr(), None, place, rows, columns, 0, KINDS[weight.dtype])


class Kernels:
    """A loaded library.

    Args:
        path: the shared library.

    Attributes:
        name: name of its instruction set.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        library = ctypes.CDLL(str(path))
        pointer, whole = c_void_p, c_int64
        signatures: dict[str, list[Any]] = {
            "linear": [pointer, whole, POINTER(Matrix), pointer, c_int],
            "decode": [POINTER(Decode), POINTER(Units), c_int],
            "attend": [POINTER(Attention), POINTER(Units), c_int],
            "pack": [pointer, c_int, whole, whole, whole, c_int, pointer, pointer, c_int],
        }
        for name_, arguments in signatures.items():
            function = getattr(library, f"llavakit_{name_}")
            function.argtypes, function.restype = arguments, None
        self._linear, self._decode = library.llavakit_linear, library.llavakit_decode
        self._attend = library.llavakit_attend
        self._pack = library.llavakit_pack

    def linear(self, x: Tensor, weights: Matrix) -> Tensor:
        """Compute ``x @ weights.T + bias``: [M, columns] in fp32 -> [M, rows] in fp32."""
        x = x.contiguous()
        out = torch.empty((len(x), weights.rows), dtype=torch.float32)
        if len(x):  # nothing has no address
            self._linear(x.data_ptr(), len(x), byref(weights), out.data_ptr(), threads())
        return out

    def decode(self, decode: Decode, units: Units) -> None:
        """Run all layers and the norm behind them; the result is where ``decode.out`` points."""
        self._decode(byref(decode), byref(units), threads())

    def attend(self, attention: Attention, units: Units) -> None:
        """Store keys and values, then attend; the result is where ``attention.out`` points."""
        self._attend(byref(attention), byref(units), threads())

    def pack(self, weight: Tensor, bits: int, data: Tensor, scales: Tensor) -> None:
        """Round weights [rows, columns], fp32 or bf16 and finite, into ``data`` and ``scales``.

        These are those of :class:`llavakit.kernels.packing.Packed`, and are overwritten.
        """
        weight = weight.contiguous()
        rows, columns = weight.shape
        self._pack(
            *(weight.data_ptr(), KINDS[weight.dtype], rows, columns, scales.shape[1], bits),
            *(data.data_ptr(), scales.data_ptr(), threads()),
        )


def threads() -> int:
    """Return how many threads a kernel takes: torch's number, for they share its pool."""
    return torch.get_num_threads()


def _sets() -> list[str]:
    """Instruction sets of this processor, the best one first."""
    found = []
    flags = _flags()
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= flags:
        found.append("avx512")
    if {"avx2", "fma", "f16c"} <= flags:
        found.append("avx2")
    return [*found, "any"]


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        level = torch.backends.cpu.get_cpu_capability()
        return {"avx2", "fma", "f16c"} if level in ("AVX2", "AVX512") else set()
    line = next((one for one in text.splitlines() if one.startswith("flags")), "")
    return set(line.partition(":")[2].split())


@functools.cache
def kernels() -> Kernels | None:
    """Return the best library that is here and gives right numbers; None computes in torch."""
    switch = os.environ.get(SWITCH, "")
    if switch == "0":
        return None
    folder = Path(__file__).parent
    for name in _sets():
        if switch not in ("", "1", name):
            continue
        for path in sorted(folder.glob(f"_cpu_{name}.*")):
            if path.suffix not in (".so", ".dylib", ".pyd"):
                continue
            try:
                found = Kernels(path, name)
            except (OSError, AttributeError) as reason:
                log.info("the %s kernels cannot be loaded: %s", name, reason)
                continue
            from llavakit.kernels.trial import error_of

            error = error_of(found)
            if error is None:
                log.info("decoding uses the %s kernels", name)
                return found
            log.warning("the %s kernels give wrong numbers here (%s) and are not used", name, error)
    log.warning(
        "no compiled kernels here: answers are the same and slower; install llavakit with a C++ "
        "compiler at hand, or from a wheel, to have them"
    )
    return None
