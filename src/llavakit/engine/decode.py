"""Steps in which every sequence decodes one token, in static shapes: compiled and captured.

A step of n rows runs in the next larger *bucket* of rows, and of pieces (see ``pieces``). All
that it reads from the host is one table of integers, copied to the device once. A bucket is
run as it is until it was needed ``after`` times, and is then compiled and captured, once.
What cannot be compiled or captured goes on as it is; what cannot be run in static shapes at
all is left to the engine's eager pass. None of it ends a request.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row
from llavakit.engine.config import EngineConfig
from llavakit.engine.graphs import Capture, CudaGraphs, Step, as_it_is
from llavakit.engine.pieces import (
    LEAST_PIECE,
    Kernel,
    PieceAttention,
    merge,
    pieces_of,
    working_kernel,
)
from llavakit.engine.transfer import to_device
from llavakit.model.decoder import FusedDecoder
from llavakit.model.llava import Llava

log = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 24, 32)
MOST_PIECES = 32
"""Of a row. A tree that is deeper is left to the eager pass."""
MOST_CUTS = 16
SHORTEST_PAD = 64
"""Tokens. Padded kernels work in powers of two from here on."""
CAPTURE_AFTER = 16
"""Steps. Batches that only pass by, while requests come and go, are not worth a capture."""
RECOMPILES = 256
"""Buckets that torch.compile may specialise one function for; its own limit is 8."""

Compile = Callable[[int], Callable[[Any], Any]]
"""The compiler of functions for so many rows."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A bucket.

    Attributes:
        rows: places for sequences.
        pieces: places for each one's pieces.
        longest: no piece is longer.
    """

    rows: int
    pieces: int
    longest: int


@dataclass(slots=True)
class _Bucket:
    table: Tensor
    uses: int = 0
    replay: Step | None = None
    settled: bool = False
    """Whether it was tried to capture it."""


class StaticDecode:
    """Runs decode steps in static shapes.

    Args:
        model: with a fused decoder, on one device.
        arena: its keys and values.
        kernel: attends.
        capture: records a step.
        compile: gives the compiler for so many rows, or None.
        after: uses of a bucket before it is captured.
        fill: how many (piece, key head) pairs make the device busy; 0 cuts nothing.

    Attributes:
        steps: how often a step was ``"captured"`` or ``"static"``, that is, run as it is.
    """

    def __init__(
        self,
        model: Llava,
        arena: KVArena,
        kernel: Kernel,
        *,
        capture: Capture = as_it_is,
        compile: Compile | None = None,
        after: int = 0,
        fill: int = 0,
    ) -> None:
        assert model.fused is not None, "only a fused decoder runs in static shapes"
        self._model = model
        self._arena = arena
        self._kernel = kernel
        self._capture = capture
        self._decoder = model.fused
        self._compile = compile
        self._after = after
        self._fill = fill
        self._buckets: dict[Shape, _Bucket] = {}
        self._broken: set[Shape] = set()
        self.steps: Counter[str] = Counter()

    def __call__(self, rows: Sequence[Row], tokens: Sequence[int]) -> Tensor | None:
        """Logits [N, vocab] in fp32, or None if these rows are for the eager pass.

        The result is overwritten by the next step.

        Args:
            rows: one new token each.
            tokens: those tokens.
        """
        shape = self.shape(rows)
        if shape is None or shape in self._broken:
            return None
        try:
            return self._run(shape, table_of(rows, tokens, shape, self._arena.scratch))[: len(rows)]
        except Exception:
            # The eager pass writes the same slots again and meets the same error if it is not
            # of this path's making; there it is told to the right request.
            log.warning("decode of %s failed and is eager from now on", shape, exc_info=True)
            self._broken.add(shape)
            self._buckets.pop(shape, None)
            return None

    def shape(self, rows: Sequence[Row]) -> Shape | None:
        """The bucket of these rows; None if their tree is too deep."""
        batch = batch_bucket(len(rows))
        depth = max(len(row.prefix) for row in rows) + 1
        if depth > MOST_PIECES:
            return None
        seen = max(row.seen for row in rows) + 1
        wanted = -(-self._fill // (batch * self._model.kv_heads))
        count = _power_of_two(max(depth, min(MOST_CUTS, wanted, seen // LEAST_PIECE)))
        longest = self._arena.scratch
        if self._kernel.padded:
            pieces = (piece for row in rows for piece in pieces_of(row, count))
            longest = _power_of_two(max(SHORTEST_PAD, *(piece.length for piece in pieces)))
        return Shape(batch, count, longest)

    def _run(self, shape: Shape, table: npt.NDArray[np.int32]) -> Tensor:
        values = torch.from_numpy(table)
        bucket = self._buckets.get(shape)
        if bucket is None:
            bucket = self._buckets[shape] = _Bucket(to_device(values, self._model.device))
        elif bucket.table.is_cuda:
            bucket.table.copy_(values.pin_memory(), non_blocking=True)
        else:
            bucket.table.copy_(values)
        bucket.uses += 1
        if bucket.uses > self._after and not bucket.settled:
            bucket.settled = True
            bucket.replay = self._captured(shape, bucket.table)
        if bucket.replay is None:
            self.steps["static"] += 1
            return self._step(bucket.table, shape)
        self.steps["captured"] += 1
        return bucket.replay()

    def _captured(self, shape: Shape, table: Tensor) -> Step | None:
        """A form of the step that is fast to run again; None if there is none."""
        step = functools.partial(self._step, table, shape)
        if self._compile is not None:
            try:
                compile = self._compile(shape.rows)
                fast = functools.partial(
                    step, decoder=self._decoder.compiled(compile), merge=compile(merge)
                )
                with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
                    return self._capture(fast)
            except Exception:
                log.warning(
                    "decode cannot be compiled and captured here; compiling is left out",
                    exc_info=True,
                )
                self._compile = None
        try:
            return self._capture(step)
        except Exception:
            log.warning("decode of %s cannot be captured and is not", shape, exc_info=True)
            return None

    def _step(
        self,
        table: Tensor,
        shape: Shape,
        decoder: FusedDecoder | None = None,
        merge: Callable[[Tensor, Tensor, Tensor], Tensor] = merge,
    ) -> Tensor:
        """From the table (see :func:`table_of`) to logits [rows, vocab]; waits for nothing."""
        tokens, positions, slots = table[:3].long().unbind(0)
        starts, lengths = table[3 : 3 + shape.pieces], table[3 + shape.pieces :]
        attend = PieceAttention(
            self._arena, slots, starts, lengths, shape.longest, self._kernel, merge
        )
        hidden = (decoder or self._decoder)(self._model.embed(tokens), positions, attend)
        return self._model.logits(hidden)


def table_of(
    rows: Sequence[Row], tokens: Sequence[int], shape: Shape, scratch: int
) -> npt.NDArray[np.int32]:
    """A step's integers, [3 + 2 * pieces, rows]: tokens, positions, slots, starts, lengths.

    Padding rows write to the scratch slot and see that alone.
    """
    table = np.zeros((3 + 2 * shape.pieces, shape.rows), np.int32)
    starts, lengths = table[3 : 3 + shape.pieces], table[3 + shape.pieces :]
    table[2] = scratch
    starts[:] = scratch
    lengths[0] = 1
    for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        table[:3, place] = token, row.seen, row.slot + row.start
        pieces = pieces_of(row, shape.pieces)
        starts[: len(pieces), place] = [piece.start for piece in pieces]
        lengths[: len(pieces), place] = [piece.length for piece in pieces]
    return table


def batch_bucket(count: int) -> int:
    """The smallest batch that is captured and holds so many rows."""
    fitting = next((batch for batch in BATCHES if batch >= count), None)
    return fitting or -(-count // 16) * 16


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def static_decode(model: Llava, arena: KVArena, config: EngineConfig) -> StaticDecode | None:
    """The static path that the configuration asks for and the device can run; None is eager."""
    device = model.device
    on_gpu = device.type == "cuda"
    asked = config.static_decode is True or config.compile is True
    if not (asked or (on_gpu and config.static_decode == "auto")):
        return None
    if model.fused is None:
        level = logging.WARNING if asked else logging.INFO
        log.log(
            level,
            "a model that is quantised, adapted, on several devices or of another "
            "family than Llama, Mistral and Qwen2 decodes eagerly",
        )
        return None
    kernel = working_kernel(model.fused.heads, model.kv_heads, model.head_dim, model.dtype, device)
    if kernel is None:
        return None
    compiles = on_gpu and _has_triton() if config.compile == "auto" else config.compile
    fill = 2 * torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 0
    return StaticDecode(
        model,
        arena,
        kernel,
        capture=CudaGraphs(device) if on_gpu else as_it_is,
        compile=inductor if compiles else None,
        after=CAPTURE_AFTER,
        fill=fill,
    )


def inductor(rows: int) -> Callable[[Any], Any]:
    """``torch.compile`` for steps of so many rows.

    With one row, products of matrix and vector are nearly all the work. Inductor makes kernels
    of its own of them, with their neighbours fused, if it may tune these (see its
    ``decomposition.mm``; so does https://pytorch.org/blog/accelerating-generative-ai-2/);
    larger batches are for cuBLAS.
    """
    options: dict[str, Any] = {"coordinate_descent_tuning": True} if rows == 1 else {}
    return functools.partial(torch.compile, fullgraph=True, dynamic=False, options=options)


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())
