"""llavakit's engine as the benchmark sees it. Everything that reaches inside it stands here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.gpu.asking import opened
from benchmarks.gpu.machine import Bench, free, wait
from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of, pass_kernel
from llavakit.engine.config import EngineConfig
from llavakit.engine.decode import StaticDecode
from llavakit.engine.engine import Engine
from llavakit.engine.graphs import CudaGraphs, as_it_is
from llavakit.engine.pieces import working_kernel
from llavakit.model.llava import Llava
from llavakit.model.loader import load_reader, load_weights
from llavakit.values import Image

How = Literal["eager", "captured", "compiled"]

COUNTS = (
    "steps",
    "eager_steps",
    "static_steps",
    "captured_steps",
    "static_mixed_steps",
    "captured_mixed_steps",
    "compiled_steps",
    "halved_steps",
    "failed",
)
STATES = ("attention_kernel", "attention_refused", "compile_refused", "capture_refused")


def chosen_kernel(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[str | None, list[str]]:
    """The name of the attention that decoding takes here, and what the log says about others."""
    with heard("llavakit.engine") as said:
        kernel = working_kernel(heads, kv_heads, dim, dtype, device)
    return (None if kernel is None else kernel.name), said


@contextmanager
def heard(name: str) -> Iterator[list[str]]:
    """Collect what a logger says meanwhile, 300 characters of each message."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage()[:300])

    logger, listener = logging.getLogger(name), Listener()
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


def settings(bench: Bench, how: How, path: Path, **more: Any) -> EngineConfig:
    """The configuration of an engine whose steps run in this way."""
    return EngineConfig(
        str(path),
        device=str(bench.device),
        static_decode=how != "eager",
        compile=how == "compiled",
        **more,
    )


@contextmanager
def engine(bench: Bench, llava: Llava, path: Path, how: How, most: int) -> Iterator[Engine]:
    """An engine around a model that was built in memory, for ``most`` requests together."""
    slot = KVArena.bytes_per_token(llava.layers, llava.kv_heads, llava.head_dim, llava.dtype)
    config = settings(
        bench, how, path, max_concurrency=most, kv_cache_bytes=bench.sizes.slots * slot
    )
    made = Engine(load_reader(path), config, llava)
    try:
        yield made
    finally:
        made.close()
        del made
        free()


@contextmanager
def loaded(bench: Bench, path: Path, how: How, dtype: str) -> Iterator[Engine]:
    """An engine that reads the weights of a checkpoint."""
    reader = load_reader(path)
    llava = load_weights(reader, device=str(bench.device), dtype=dtype)
    made = Engine(reader, settings(bench, how, path, kv_cache_bytes=64 << 20), llava)
    try:
        yield made
    finally:
        made.close()


def ran(engine: Engine, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """How the steps ran since ``before``, an earlier ``engine.stats()``.

    Only what this engine tells: older ones count less.
    """
    after, earlier = engine.stats(), before or {}
    counts = {name: after[name] - earlier.get(name, 0) for name in COUNTS if name in after}
    return counts | {name: _short(after[name]) for name in STATES if name in after}


def _short(state: Any) -> Any:
    """The same with messages of 160 characters at most."""
    if isinstance(state, dict):
        return {name: _short(one) for name, one in state.items()}
    return state[:160] if isinstance(state, str) else state


def verdict(ran: dict[str, Any], how: How, *, every: bool = True) -> dict[str, Any]:
    """Fields that say whether steps ran as they were meant to.

    Args:
        ran: see :func:`ran`.
        how: they were meant to run.
        every: whether all that only decode must have; else some are enough.
    """
    if how == "eager":
        return {"ok": True}
    wanted = ran.get(f"{how}_steps")
    if wanted is None:
        return {"ok": False, "error": f"this engine does not count {how} steps"}
    refused = [str(ran[name]) for name in STATES[1:] if ran.get(name)]
    if not wanted:
        return {"ok": False, "error": "; ".join([f"no step was {how}", *refused])}
    others = ran.get("static_steps", 0)
    if how == "compiled":
        others += ran.get("captured_steps", 0) - wanted
    if others and every:
        return {"ok": False, "error": f"{others} steps of static shape were not {how}"}
    return {"ok": True}


def encode_pixels(llava: Llava, path: Path, pictures: Sequence[Any]) -> Callable[[], Any]:
    """Make what encodes all images in one batch; preprocessing is done here and now."""
    reader = load_reader(path)
    pixels = [reader.preprocess(opened(Image(picture))) for picture in pictures]
    for one in pixels:
        one.inputs()

    def encode() -> None:
        with torch.inference_mode():
            llava.encode_images(pixels)

    return encode


class Forced:
    """Logits of given tokens, by the engine's own passes.

    Args:
        path: of the checkpoint.
        bench: says where.
        dtype: name of the type of weights and activations.
        tokens: [rows, length] of ids of text.
    """

    def __init__(self, path: Path, bench: Bench, dtype: str, tokens: Tensor) -> None:
        self._llava = load_weights(load_reader(path), device=str(bench.device), dtype=dtype)
        self._tokens = tokens
        self._device = bench.device
        llava, slots = self._llava, tokens.numel()
        self._arena = KVArena(
            llava.layer_devices, slots, llava.kv_heads, llava.head_dim, dtype=llava.dtype
        )

    @torch.inference_mode()
    def prefill(self, length: int) -> Tensor:
        """[rows, length, vocab] of the first ``length`` tokens, in one packed pass."""
        rows, whole = self._tokens.shape
        llava = self._llava
        packed = [Row((), row * whole, 0, length) for row in range(rows)]
        ids = self._tokens[:, :length].flatten().to(self._device)
        positions = torch.arange(length, device=self._device).repeat(rows)
        kernel = pass_kernel(self._arena, llava.heads, llava.kv_heads, llava.head_dim)
        attend = attention_of(self._arena, packed, kernel)
        hidden = llava.decode(llava.embed(ids), positions, attend)
        return llava.logits(hidden).view(rows, length, -1)

    @torch.inference_mode()
    def decode(self, start: int) -> Tensor:
        """[rows, length - start, vocab] of the tokens from ``start`` on, one a step, captured."""
        self.prefill(start)
        rows, whole = self._tokens.shape
        llava, on_gpu = self._llava, self._device.type == "cuda"
        assert llava.fused is not None
        kernel = working_kernel(
            llava.fused.heads, llava.kv_heads, llava.head_dim, llava.dtype, self._device
        )
        assert kernel is not None, "no attention kernel works here"
        capture = CudaGraphs(self._device) if on_gpu else as_it_is
        static = StaticDecode(llava, self._arena, kernel, capture=capture, after=1)
        found = []
        for place in range(start, whole):
            at = [Row((), row * whole, place, 1) for row in range(rows)]
            logits = static(at, self._tokens[:, place].tolist())
            assert logits is not None, "the static path refused a step"
            found.append(logits.clone())
        return torch.stack(found, dim=1)


@dataclass(frozen=True)
class Profiled:
    """One step of the engine under torch's profiler.

    Attributes:
        table: of operations and kernels.
        kernels: that ran on the device.
        device_ms: their time together.
        wall_ms: of the step, the profiler's own cost included.
        ran: how it ran.
    """

    table: str
    kernels: int
    device_ms: float
    wall_ms: float
    ran: dict[str, Any]


class StepProfiler:
    """Profiles single steps of an engine, on the engine's own thread.

    Args:
        engine: whose steps.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._step = engine._loop._step
        self._ready: Callable[[dict[str, Any]], bool] | None = None
        self._taken: Profiled | None = None
        engine._loop._step = self._run  # type: ignore[method-assign]

    def take(self, ready: Callable[[dict[str, Any]], bool], drive: Callable[[], Any]) -> Profiled:
        """Profile the first step before which ``ready(engine.stats())`` holds.

        Args:
            ready: chooses the step.
            drive: asks what brings it about, and waits for the end.

        Raises:
            RuntimeError: there was no such step.
        """
        self._taken, self._ready = None, ready
        drive()
        self._ready = None
        if self._taken is None:
            raise RuntimeError("no step of this kind came")
        return self._taken

    def _run(self) -> None:
        if self._ready is None or not self._ready(self._engine.stats()):
            self._step()
            return
        self._ready = None
        self._taken = self._profiled()

    def _profiled(self) -> Profiled:
        from torch.profiler import ProfilerActivity, profile

        device = self._engine._loop.runner.model.device
        on_gpu = device.type == "cuda"
        before = self._engine.stats()
        wait(device)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiler:
            began = time.perf_counter()
            self._step()
            wait(device)
            wall = time.perf_counter() - began
        events = profiler.key_averages()
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        on_device = [one for one in events if "CUDA" in str(one.device_type)]
        return Profiled(
            events.table(sort_by=order, row_limit=30, max_name_column_width=70),
            sum(one.count for one in on_device),
            sum(one.self_device_time_total for one in on_device) / 1e3,
            wall * 1e3,
            ran(self._engine, before),
        )
