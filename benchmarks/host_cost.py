"""What a step costs the host, the model left out: ``python -m benchmarks.host_cost``.

The GPU waits for this time between two steps, or hides it behind one. The decoder gives constants
at once, and a step that was captured is replayed as a GPU's graph is: without running any of its
code. What is left is the engine's: scheduling, the step's table, drawing (from a small vocabulary),
detokenizing, streaming. Measured is the processor time of the engine's threads, as the system
counts it, so that other load on the machine matters little; compare two commits on one machine.
It asks the engine for nothing but its steps and so also runs on older commits.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import llavakit.engine.decode
from llavakit.demo import checkpoint_path
from llavakit.engine.config import EngineConfig
from llavakit.engine.engine import Engine
from llavakit.model.decoder import FusedDecoder
from llavakit.model.loader import load_reader, load_weights
from llavakit.values import Message, Request, SamplingParams

ROWS = (1, 8, 32)
TOKENS = 220
WARM = 40
"""Tokens of each answer before the time counts: shapes are captured by then."""
LEFT = 20
"""Tokens of each answer behind the time that counts."""
LETTER = " a"


class Instant(FusedDecoder):
    """A decoder that gives back what it was given."""

    def __init__(self, model: FusedDecoder) -> None:
        self.heads = model.heads

    def __call__(self, embeddings: Tensor, positions: Tensor, attend: Any) -> Tensor:
        return embeddings

    def compiled(self, compile: Callable[[Any], Any]) -> FusedDecoder:
        return self


def recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a step as a graph does: a replay gives its result and runs none of its code."""
    result = step()
    return lambda: result


@contextlib.contextmanager
def stubbed() -> Iterator[Engine]:
    """An engine with the bundled model's tokenizer, whose model costs nothing."""
    reader = load_reader(checkpoint_path())
    llava = load_weights(reader, device="cpu", dtype="float32")
    assert llava.fused is not None, "the bundled model has a fused decoder"
    letter = reader.tokenizer.tokenizer.encode(LETTER, add_special_tokens=False)[-1]
    scores = torch.zeros(64, llava.vocab_size)
    scores[:, letter] = 1
    llava.decoder = Instant(llava.fused)
    setattr(llava, "logits", lambda hidden: scores[: len(hidden)].clone())  # noqa: B010
    config = EngineConfig(
        "demo",
        device="cpu",
        dtype="float32",
        static_decode=True,
        compile=False,
        max_concurrency=max(ROWS),
        kv_cache_bytes=256 << 20,
    )
    with mock.patch.object(llavakit.engine.decode, "as_it_is", recorded):
        engine = Engine(reader, config, llava)
    try:
        yield engine
    finally:
        engine.close()


def cost(engine: Engine, rows: int, number: int) -> dict[str, float]:
    """Milliseconds of one step with so many rows, all of which decode.

    Args:
        engine: see :func:`stubbed`.
        rows: requests together.
        number: of the round; each has prompts of its own.
    """
    params = SamplingParams(max_tokens=TOKENS, temperature=0)
    before = engine.stats()["generated_tokens"]
    streams = []
    for row in range(rows):
        text = f"{number} {row} is the number of this question"
        streams.append(engine.submit(Request((Message("user", [text]),), params), no_picture))
    begun = _at(engine, before + WARM * rows)
    ended = _at(engine, before + (TOKENS - LEFT) * rows)
    for stream in streams:
        for _ in stream:
            pass
    return {
        name: 1e3 * (ended[name] - begun[name]) / (ended["steps"] - begun["steps"])
        for name in ("engine", "all", "wall")
    }


def _at(engine: Engine, tokens: int) -> dict[str, float]:
    """Steps and seconds so far, once so many tokens were drawn."""
    while (stats := engine.stats())["generated_tokens"] < tokens:
        if engine.closed:
            raise RuntimeError("the engine died; the log says why")
        time.sleep(0.001)
    # By itself: other engines of the process have threads of the same names.
    threads = [one for one in threading.enumerate() if one.name.startswith("llavakit-")]
    return {
        "steps": stats["steps"],
        "engine": _seconds_of(engine._loop._thread),
        "all": sum(map(_seconds_of, threads)),
        "wall": time.perf_counter(),
    }


def _seconds_of(thread: threading.Thread) -> float:
    """Processor time of a thread."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def no_picture(image: Any) -> Any:
    """There are none in these prompts."""
    raise AssertionError("no request here has an image")


def main() -> None:
    """Print the cost by number of rows, the median of some rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("rows | engine's thread, ms a step | all its threads | wall")
    with stubbed() as engine:
        for rows in ROWS:
            found = [cost(engine, rows, 100 * rows + n) for n in range(options.rounds)]
            told = [statistics.median(one[name] for one in found) for name in found[0]]
            print(f"{rows:4} | " + " | ".join(f"{one:.3f}" for one in told), flush=True)
        stats = engine.stats()
    kinds = ("eager_steps", "static_steps", "captured_steps", "captured_mixed_steps")
    print(", ".join(f"{stats[kind]} {kind.replace('_', ' ')}" for kind in kinds))


if __name__ == "__main__":
    main()
