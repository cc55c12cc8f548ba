"""Recording a step once to replay it: CUDA graphs, and where they are put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
