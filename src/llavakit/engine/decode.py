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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import ArenaAttention, Tables
from llavakit.engine.config import EngineConfig
from llavakit.engine.graphs import (
    Bucket,
    Capture,
    CudaGraphs,
    Integers,
    RecordedSteps,
    as_it_is,
    power_of_two,
    reason_of,
)
from llavakit.engine.layout import Row, pieces_of
from llavakit.engine.pieces import AttentionCall, Kernel, working_kernel
from llavakit.model.decoder import FusedDecoder
from llavakit.model.llava import Llava

log = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 24, 32)
"""Rows that are captured; larger batches are multiples of 16."""
COMPILED_ROWS = 64
"""Of a batch. In larger ones products are nearly all the time, and they are cuBLAS's either way."""
MOST_ROWS = 1024
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


class Shape(NamedTuple):
    """A bucket; looked up for every step.

    Attributes:
        rows: places for sequences.
        pieces: places for each one's pieces.
        longest: no piece is longer.
    """

    rows: int
    pieces: int
    longest: int


class StaticDecode(RecordedSteps[Shape]):
    """Runs decode steps in static shapes.

    Args:
        model: with a fused decoder, on one device.
        arena: its keys and values.
        kernel: attends.
        capture: records a step.
        compile: gives the compiler for so many rows, or None.
        after: uses of a bucket before it is captured.
        fill: how many (split, key head) pairs make the device busy; 0 cuts nothing.

    Attributes:
        kernel: attends.
        compile_refused: why nothing more is compiled; None while there is no reason.
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
        super().__init__(model.device, capture, after)
        self._model = model
        self._arena = arena
        self.kernel = kernel
        self._decoder = model.fused
        self._compile = compile
        self._fill = fill
        self._sampled = torch.zeros(MOST_ROWS, dtype=torch.long, device=model.device)
        self.compile_refused: str | None = None

    @property
    def compiles(self) -> bool:
        """Whether buckets are compiled, as far as is known yet."""
        return self._compile is not None

    def __call__(
        self,
        rows: Sequence[Row],
        tokens: Sequence[int],
        sources: Sequence[int] = (),
        sampled: Tensor | None = None,
    ) -> Tensor | None:
        """Return logits [N, vocab] in fp32, or None if these rows are for the eager pass.

        The result is overwritten by the next step.

        Args:
            rows: one new token each.
            tokens: those tokens.
            sources: for each row the place of its token in ``sampled``, -1 if it is in ``tokens``;
                empty if all are.
            sampled: tokens that only the device knows yet, [D].
        """
        shape = self.shape(rows)
        if shape is None or shape in self._broken:
            return None
        if sampled is not None:
            if len(sampled) > MOST_ROWS:
                return None
            self._sampled[: len(sampled)].copy_(sampled)
        scratch = self._arena.scratch
        logits = self._attempt(shape, lambda: table_of(rows, tokens, shape, scratch, sources))
        return None if logits is None else logits[: len(rows)]

    def shape(self, rows: Sequence[Row]) -> Shape | None:
        """The bucket of these rows; None if their tree is too deep."""
        batch = batch_bucket(len(rows))
        depth = max([len(row.prefix) for row in rows]) + 1
        if depth > MOST_PIECES or batch > MOST_ROWS:
            return None
        count = self._pieces(batch, depth)
        longest = self._arena.scratch
        if self.kernel.padded:
            # As if nothing was cut: cheaper to know, and only a bound of what is padded.
            longest = max([row.longest for row in rows])
        return Shape(batch, count, self._rounded(longest))

    def warm_up(self, max_rows: int, progress: Callable[[int, int, str], None]) -> None:
        """Capture and compile what steps of up to ``max_rows`` rows need, before they come.

        Runs on the thread that steps run on. Padding rows alone are computed, which write to the
        scratch slot.

        Args:
            max_rows: of a step.
            progress: called with how many shapes are done, of how many, and the last one's name.
        """
        shapes = self.usual_shapes(max_rows)

        def done(count: int, shape: Shape) -> None:
            progress(count, len(shapes), f"{shape.rows} rows, {shape.pieces} pieces")

        scratch = self._arena.scratch
        self._prepare(shapes, lambda shape: table_of((), (), shape, scratch), done)

    def usual_shapes(self, max_rows: int) -> list[Shape]:
        """Shapes of sequences with and without a prefix."""
        rows = [batch for batch in BATCHES if batch <= max_rows]
        rows += range(BATCHES[-1] + 16, batch_bucket(max_rows) + 1, 16)
        if batch_bucket(max_rows) not in rows:
            rows.append(batch_bucket(max_rows))
        counts = {(batch, self._pieces(batch, depth)) for batch in rows for depth in (1, 2)}
        longest = self._rounded(self._arena.scratch)
        return [Shape(*one, longest) for one in sorted(counts)]

    def _pieces(self, batch: int, depth: int) -> int:
        # However short the rows are: an empty piece costs nearly nothing, another shape a capture.
        wanted = -(-self._fill // (batch * self._model.kv_heads))
        return power_of_two(max(depth, min(MOST_CUTS, wanted)))

    def _rounded(self, longest: int) -> int:
        return power_of_two(max(SHORTEST_PAD, longest)) if self.kernel.padded else longest

    def _settle(self, shape: Shape, bucket: Bucket) -> None:
        """Compile the shape's step and record it, or record it as it is."""
        if self._compile is not None and shape.rows <= COMPILED_ROWS:
            try:
                compile = self._compile(shape.rows)
                fast = functools.partial(
                    self._step, bucket.table, shape, self._decoder.compiled(compile)
                )
                with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
                    bucket.replay = self.capture(fast)
                bucket.settled = bucket.compiled = True
                return
            except Exception as error:
                log.warning(
                    "decode cannot be compiled and captured here; compiling is left out",
                    exc_info=True,
                )
                self._compile = None
                self.compile_refused = reason_of(error)
        super()._settle(shape, bucket)

    def _step(self, table: Tensor, shape: Shape, decoder: FusedDecoder | None = None) -> Tensor:
        """From the table (see :func:`table_of`) to logits [rows, vocab]; waits for nothing."""
        tokens, positions, slots, sources = table[:4].long().unbind(0)
        tokens = torch.where(sources < 0, tokens, self._sampled[sources.clamp_min(0)])
        tables = _tables(slots, table[4 : 4 + shape.pieces], table[4 + shape.pieces :], shape)
        attend = ArenaAttention(self._arena, lambda device: tables, self.kernel)
        hidden = (decoder or self._decoder)(self._model.embed(tokens), positions, attend)
        return self._model.logits(hidden)


def _tables(slots: Tensor, starts: Tensor, lengths: Tensor, shape: Shape) -> Tables:
    """One call over all pieces [P, B]; rows with fewer have pieces of length 0."""
    count, rows = starts.shape
    device = starts.device
    queries = torch.arange(count * rows + 1, dtype=torch.int32, device=device)
    call = AttentionCall(
        queries,
        torch.cat((starts.flatten(), starts[-1, -1:])),
        lengths.flatten(),
        most=1,
        longest=shape.longest,
        causal=True,
        gather=None if count == 1 else torch.arange(rows, device=device).repeat(count),
    )
    if count == 1:
        return Tables(slots, (call,), None)
    places = queries[:-1].view(count, rows)
    return Tables(slots, (call,), torch.where(lengths > 0, places, -1).T.contiguous().long())


def table_of(
    rows: Sequence[Row],
    tokens: Sequence[int],
    shape: Shape,
    scratch: int,
    sources: Sequence[int] = (),
) -> Integers:
    """A step's integers, [4 + 2 * pieces, rows].

    They are tokens, positions, slots, sources (see :meth:`StaticDecode.__call__`), starts and
    lengths. Padding rows write to the scratch slot and see that alone.
    """
    width = shape.rows
    # Lists, of which one array is made: each access to an element of an array takes longer.
    padding = width - len(rows)
    starts = [scratch] * (shape.pieces * width)
    lengths = [1] * width + [0] * ((shape.pieces - 1) * width)
    for column, row in enumerate(rows):
        for number, piece in enumerate(pieces_of(row, shape.pieces)):
            starts[number * width + column], lengths[number * width + column] = piece
    table = [
        *(*tokens, *[0] * padding),
        *(*[row.seen for row in rows], *[0] * padding),
        *(*[row.slot + row.start for row in rows], *[scratch] * padding),
        *(*(sources or [-1] * len(rows)), *[-1] * padding),
        *starts,
        *lengths,
    ]
    return np.array(table, np.int32).reshape(-1, width)


@functools.cache
def batch_bucket(count: int) -> int:
    """The smallest batch that is captured and holds so many rows."""
    return next((batch for batch in BATCHES if batch >= count), -(-count // 16) * 16)


def static_decode(
    model: Llava,
    arena: KVArena,
    config: EngineConfig,
    refused: dict[str, str] | None = None,
    tried: Kernel | None = None,
) -> StaticDecode | None:
    """The static path that the configuration asks for and the device can run; None is eager.

    Args:
        model: the loaded model.
        arena: its keys and values.
        config: what was asked.
        refused: takes the names of kernels that were passed over, and why.
        tried: what attends in passes of any kind here, so that it is not tried again.
    """
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
    shape = (model.fused.heads, model.kv_heads, model.head_dim)
    kernel = tried
    if kernel is None or not kernel.static:
        kernel = working_kernel(*shape, model.dtype, device, refused=refused)
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
