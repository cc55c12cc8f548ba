"""Steps in static shapes: each shape's step recorded once to replay it, by CUDA graphs.

:class:`RecordedSteps` is what :mod:`~llavakit.engine.decode` and :mod:`~llavakit.engine.mixed` have
in common; their shapes, tables and passes are their own.
"""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llavakit.engine.transfer import to_device

log = logging.getLogger(__name__)

ShapeT = TypeVar("ShapeT", bound=Hashable)
Integers: TypeAlias = npt.NDArray[np.int32]
Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Makes of a step one that does the same, with what lies at the same addresses by then."""

WARM_UPS = 3


@dataclass(slots=True)
class Bucket:
    """What is kept of one shape of steps.

    Attributes:
        table: the integers that a step reads, on the device.
        uses: how often the shape was needed.
        replay: runs a step again, once it was captured.
        compiled: whether it was compiled, too.
        settled: whether it was tried to capture it.
    """

    table: Tensor
    uses: int = 0
    replay: Step | None = None
    compiled: bool = False
    settled: bool = False

    def fill(self, values: Tensor) -> None:
        """Copy the integers of another step, [as many], from main memory."""
        if self.table.is_cuda:
            self.table.copy_(values.pin_memory(), non_blocking=True)
        else:
            self.table.copy_(values)


def as_it_is(step: Step) -> Step:
    """The capture of a device that has none: every replay is a run."""
    step()  # what fails, fails here
    return step


class RecordedSteps(ABC, Generic[ShapeT]):
    """Runs the steps of each shape on one table of integers, which is copied to the device.

    A shape's step runs as it is until the shape was needed ``after`` times, and is then recorded,
    once. What cannot be recorded goes on as it is; a shape whose step fails is left to the
    engine's eager pass from then on. None of it ends a request.

    Args:
        device: what computes.
        capture: records a step.
        after: uses of a shape before its step is recorded.

    Attributes:
        capture: records a step.
        steps: how often a step was ``"captured"``, ``"compiled"`` (and captured) or
            ``"static"``, that is, run as it is.
        capture_refused: why a step was not recorded; None while there is no reason.
    """

    def __init__(self, device: torch.device, capture: Capture, after: int) -> None:
        self.capture = capture
        self.steps: Counter[str] = Counter()
        self.capture_refused: str | None = None
        self._device = device
        self._after = after
        self._buckets: dict[ShapeT, Bucket] = {}
        self._broken: set[ShapeT] = set()

    @abstractmethod
    def _step(self, table: Tensor, shape: ShapeT) -> Tensor:
        """Compute logits from a shape's table, waiting for nothing."""

    def _attempt(self, shape: ShapeT, table: Callable[[], Integers]) -> Tensor | None:
        """Return logits, which the next step overwrites; None if the shape is broken.

        Args:
            shape: the step's.
            table: makes its integers.
        """
        if shape in self._broken:
            return None
        try:
            return self._run(shape, table())
        except Exception:
            # The eager pass writes the same slots again, and an error that is not of this path's
            # making is met there again and reported to the right request.
            log.warning("a step of %s failed and is eager from now on", shape, exc_info=True)
            self._broken.add(shape)
            self._buckets.pop(shape, None)
            return None

    def _run(self, shape: ShapeT, table: Integers) -> Tensor:
        values = torch.from_numpy(table)
        bucket = self._buckets.get(shape)
        if bucket is None:
            bucket = self._bucket(shape, values)
        else:
            bucket.fill(values)
        bucket.uses += 1
        if bucket.uses > self._after and not bucket.settled:
            self._settle(shape, bucket)
        if bucket.replay is None:
            self.steps["static"] += 1
            return self._step(bucket.table, shape)
        self.steps["captured"] += 1
        if bucket.compiled:
            self.steps["compiled"] += 1
        return bucket.replay()

    def _bucket(self, shape: ShapeT, values: Tensor) -> Bucket:
        bucket = self._buckets[shape] = Bucket(to_device(values, self._device))
        return bucket

    def _prepare(
        self,
        shapes: Sequence[ShapeT],
        blank: Callable[[ShapeT], Integers],
        done: Callable[[int, ShapeT], None],
    ) -> None:
        """Record the steps of shapes before they are needed, with tables of padding alone.

        The largest, which come last, are first: the smaller ones then find room in the memory
        that graphs share.
        """
        for count, shape in enumerate(reversed(shapes), start=1):
            bucket = self._buckets.get(shape)
            if bucket is None:
                bucket = self._bucket(shape, torch.from_numpy(blank(shape)))
            if not bucket.settled:
                self._settle(shape, bucket)
            done(count, shape)

    def _settle(self, shape: ShapeT, bucket: Bucket) -> None:
        """Find a form of the shape's step that is fast to run again, if there is one."""
        bucket.settled = True
        try:
            bucket.replay = self.capture(functools.partial(self._step, bucket.table, shape))
        except Exception as error:
            log.warning("a step of %s cannot be captured and is not", shape, exc_info=True)
            self.capture_refused = reason_of(error)


def reason_of(error: Exception) -> str:
    """Return an error in a few words, for ``stats()``."""
    return f"{type(error).__name__}: {str(error)[:300]}"


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below ``least``, from 1 on."""
    return 1 << (max(1, least) - 1).bit_length()


class CudaGraphs:
    """Captures steps as CUDA graphs; all calls belong to one thread.

    All graphs share one pool. Their results stay alive and so have places of their own; what
    a step needs meanwhile does not outlive its replay, and is shared. Capturing the largest
    step first would save a little more, but steps are captured when they are first needed,
    and what a step of one token a row needs is small.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, step: Step) -> Step:
        with torch.cuda.device(self._device):
            self._warm_up(step)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may use CUDA meanwhile, and know nothing of this.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def _warm_up(self, step: Step) -> None:
        """Compile, load and allocate, as a capture may not, on the stream of the capture."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
