"""Where the time of one step goes: tables of torch's profiler."""

from __future__ import annotations

import threading
from typing import Any

from benchmarks.bench_model import pictures
from benchmarks.gpu.asking import ask
from benchmarks.gpu.engine import How, Profiled, StepProfiler, engine
from benchmarks.gpu.machine import Bench
from benchmarks.gpu.models import SEVEN
from llavakit.engine.engine import Engine
from llavakit.model.llava import Llava

STEPS_BEFORE = 0.5
"""Of an answer: by then a step's shape was seen often enough to be captured."""


def profiles(bench: Bench) -> None:
    """Write tables of one replay with few rows and with many, and of one mixed step."""
    rows = min(32, bench.sizes.batches[-1])
    with bench.model(SEVEN) as (model, path):
        llava = Llava(model)
        picture = pictures(1, int(model.config.vision_config.image_size))[0]
        ways: tuple[How, ...] = ("captured", "compiled")
        for how in ways:
            with engine(bench, llava, path, how, rows) as made:
                profiler = StepProfiler(made)
                for batch in (1, rows) if how == "captured" else (1,):
                    with bench.records.figure(f"{how} replay, {batch} rows") as line:
                        _write(line, _replay(bench, made, profiler, batch))
                if how == "captured":
                    with bench.records.figure(f"mixed step, {rows} rows") as line:
                        _write(line, _mixed(bench, made, profiler, rows, picture))


def _write(line: dict[str, Any], found: Profiled) -> None:
    print(found.table, flush=True)
    line["value"] = {
        "kernels": found.kernels,
        "device ms": round(found.device_ms, 3),
        "wall ms": round(found.wall_ms, 3),
    }
    line |= {"ran": found.ran, "table": found.table}


def _replay(bench: Bench, made: Engine, profiler: StepProfiler, batch: int) -> Profiled:
    """Profile a step that only decodes, deep in answers of which the same went before."""
    asked = [bench.text(place) for place in range(batch)]
    answer = bench.sizes.answer
    ask(made, asked, answer)
    begun = made.stats()["generated_tokens"]
    deep = begun + STEPS_BEFORE * batch * answer

    def ready(stats: dict[str, Any]) -> bool:
        alone = stats["waiting"] == 0 and stats["running"] == batch
        return bool(alone and stats["generated_tokens"] >= deep)

    return profiler.take(ready, lambda: ask(made, asked, answer))


def _mixed(bench: Bench, made: Engine, profiler: StepProfiler, rows: int, picture: Any) -> Profiled:
    """Profile the step in which a question about an image joins ``rows - 1`` answers."""
    begun = made.stats()["generated_tokens"]

    def drive() -> None:
        asked = [bench.text(100 + place) for place in range(rows - 1)]
        thread = threading.Thread(target=ask, args=(made, asked, bench.sizes.answer))
        thread.start()
        while thread.is_alive() and made.stats()["generated_tokens"] < begun + 2 * (rows - 1):
            thread.join(0.002)
        ask(made, [bench.about(picture, 200)], 2)
        thread.join()

    def ready(stats: dict[str, Any]) -> bool:
        joined = stats["running"] == rows - 1 and stats["waiting"] == 1
        return bool(joined and stats["generated_tokens"] >= begun + rows - 1)

    return profiler.take(ready, drive)
