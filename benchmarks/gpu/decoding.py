"""How fast the engine decodes, and what share of the memory's bandwidth that is."""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

from benchmarks.gpu.asking import Answer, ask
from benchmarks.gpu.engine import How, engine, ran, verdict
from benchmarks.gpu.machine import Bench, free
from benchmarks.gpu.models import LARGE, SEVEN, Spec
from llavakit.engine.engine import Engine
from llavakit.model.llava import Llava
from llavakit.model.quantization import Quantization, weight_bytes

KINDS: tuple[Quantization, ...] = ("4bit", "8bit")
UNSETTLED = 4
"""Rounds that may pass until all shapes are captured; those behind them count."""
ROUNDS = 3


def captured(bench: Bench) -> None:
    """Measure a 7B model whose steps are captured and not compiled."""
    _speeds(bench, SEVEN, ("captured",), bench.sizes.batches)


def compiled(bench: Bench) -> None:
    """Measure a 7B model whose steps are compiled and captured; the dearest kind comes first."""
    _speeds(bench, SEVEN, ("compiled",), bench.sizes.batches)


def large(bench: Bench) -> None:
    """Measure a 34B model with one request."""
    _speeds(bench, LARGE, ("captured", "compiled"), (1,))


def packed(bench: Bench) -> None:
    """Measure a 7B model in 4 and in 8 bits, where the library for it is there."""
    for kind in KINDS:
        if importlib.util.find_spec("bitsandbytes") is None:
            bench.records.write(kind, skipped=True, error="bitsandbytes is not installed")
            continue
        with bench.records.figure(f"{kind}, batch 1") as line, bench.model(SEVEN, kind) as built:
            model, path = built
            with engine(bench, Llava(model), path, "eager", 1) as made:
                _speed(bench.smaller(32), line, made, 1, "eager", None)
            del model, built
        free()


def _speeds(bench: Bench, spec: Spec, ways: tuple[How, ...], batches: tuple[int, ...]) -> None:
    """Write the speed for each way of running and each number of requests."""
    with bench.model(spec) as (model, path):
        llava = Llava(model)
        read, roof = _read_by_a_step(model), bench.roof()
        bench.records.write("weights read by a step", round(read / 1e9, 3), "GB")
        for how in ways:
            with engine(bench, llava, path, how, max(batches)) as made:
                for batch in batches:
                    with bench.records.figure(f"{how}, batch {batch}") as line:
                        _speed(bench, line, made, batch, how, read / roof)


def _speed(
    bench: Bench,
    line: dict[str, Any],
    made: Engine,
    batch: int,
    how: How,
    at_best: float | None,
) -> None:
    """Measure one speed.

    Args:
        bench: says how much is measured.
        line: takes the figure.
        made: the engine.
        batch: requests together.
        how: steps are meant to run.
        at_best: seconds of a step that does nothing but read the weights, or None.
    """
    rate, line["ran"] = _decode(bench, made, batch, how)
    line["value"] = {"tokens per second": round(rate, 1), "ms a step": round(1e3 * batch / rate, 3)}
    if at_best is not None:
        line["value"]["share of the roofline"] = round(at_best * rate / batch, 3)
    line |= verdict(line["ran"], how)


def _decode(bench: Bench, made: Engine, batch: int, how: How) -> tuple[float, dict[str, Any]]:
    """Tokens a second of so many answers together, and how the steps ran that gave them."""
    for number in range(UNSETTLED):
        before = made.stats()
        _together(bench, made, batch, 1000 * number)
        if how == "eager" or verdict(ran(made, before), how)["ok"]:
            break
    before = made.stats()
    rates = [_together(bench, made, batch, 10_000 + 1000 * one) for one in range(ROUNDS)]
    return statistics.median(rates), ran(made, before)


def _together(bench: Bench, made: Engine, batch: int, number: int) -> float:
    asked = [bench.text(number + place) for place in range(batch)]
    return rate_of(ask(made, asked, bench.sizes.answer))


def rate_of(answers: list[Answer]) -> float:
    """Tokens a second of all answers, from the time at which the last of them has begun."""
    begun = max(one.times[0] for one in answers)
    ended = max(one.times[-1] for one in answers)
    behind = sum(
        one.tokens * sum(time > begun for time in one.times) / len(one.times) for one in answers
    )
    return behind / max(ended - begun, 1e-9)


def _read_by_a_step(model: Any) -> int:
    """Bytes of the weights that every decoding step reads; keys and values are left out."""
    return weight_bytes(model.model.language_model.layers) + weight_bytes(model.lm_head)
