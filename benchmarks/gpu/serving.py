"""What a server's users see: requests a second, first tokens, gaps; and images encoded."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.bench_model import pictures
from benchmarks.contenders import Turns
from benchmarks.gpu.asking import Answer, ask
from benchmarks.gpu.engine import How, encode_pixels, engine, ran
from benchmarks.gpu.machine import Bench, seconds
from benchmarks.gpu.models import SEVEN
from llavakit.engine.engine import Engine
from llavakit.model.llava import Llava

WAYS: tuple[tuple[How, int], ...] = (("captured", 64), ("captured", 32), ("compiled", 64))
"""How steps run, and how many requests the engine runs together (unless told otherwise, 32)."""
STAGGERED = 0.8
"""Of the rate at which requests that come all at once are answered."""
CHATS = 4


def served(bench: Bench) -> None:
    """Serve requests, an image each, that come all at once, then at random times."""
    count = bench.sizes.served[0]
    with bench.model(SEVEN) as (model, path):
        llava = Llava(model)
        # Each time others: what was asked before is kept.
        images = pictures(3 * count, _side(model))
        first, second, third = images[:count], images[count : 2 * count], images[2 * count :]
        for how, most in WAYS:
            with engine(bench, llava, path, how, most) as made:
                words = _words(bench, made, third[0])
                _warm_up(bench, made, third, words)
                name = f"{most} together, {how}"
                rate = _burst(bench, made, f"all at once, {name}", first, words)
                if rate and (how, most) == WAYS[0]:
                    rate *= STAGGERED
                    _staggered(bench, made, f"staggered, {name}", second, words, rate)


def _side(model: Any) -> int:
    return int(model.config.vision_config.image_size)


def _words(bench: Bench, made: Engine, picture: Any) -> int:
    """How many words make a prompt of the wanted length, an image included."""
    (answer,) = ask(made, [_question(bench, picture, 0, 1)], 1)
    assert answer.usage is not None
    return max(1, 1 + bench.sizes.served[1] - answer.usage.prompt_tokens)


def _question(bench: Bench, picture: Any, number: int, words: int) -> Turns:
    return [("user", [picture, bench.words(number, words)])]


def _warm_up(bench: Bench, made: Engine, images: Sequence[Any], words: int) -> None:
    """Let shapes be captured."""
    asked = [_question(bench, one, 5000 + n, words) for n, one in enumerate(images)]
    ask(made, asked, bench.sizes.served[2])


def _burst(
    bench: Bench, made: Engine, name: str, images: Sequence[Any], words: int
) -> float | None:
    with bench.records.figure(name) as line:
        asked = [_question(bench, one, n, words) for n, one in enumerate(images)]
        before = made.stats()
        answers = ask(made, asked, bench.sizes.served[2])
        line["value"] = figures = _figures(answers)
        line["ran"] = ran(made, before)
        return float(figures["requests per second"])
    return None


def _staggered(
    bench: Bench, made: Engine, name: str, images: Sequence[Any], words: int, rate: float
) -> None:
    with bench.records.figure(name) as line:
        asked = [_question(bench, one, 9000 + n, words) for n, one in enumerate(images)]
        drawn = random.Random(0)
        arrivals, at = [], 0.0
        for _ in asked:
            arrivals.append(at)
            at += drawn.expovariate(rate)
        before = made.stats()
        answers = ask(made, asked, bench.sizes.served[2], arrivals)
        line["value"] = {"arrivals per second": round(rate, 2), **_figures(answers)}
        line["ran"] = ran(made, before)


def _figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Requests and tokens a second; seconds to first tokens, and between one and the next."""
    took = max(one.times[-1] for one in answers) - min(one.began for one in answers)
    first = [one.first for one in answers]
    gaps = [b - a for one in answers for a, b in zip(one.times, one.times[1:], strict=False)]
    usages = [one.usage for one in answers if one.usage is not None]
    return {
        "requests": len(answers),
        "prompt tokens": round(statistics.mean(one.prompt_tokens for one in usages), 1),
        "answer tokens": round(statistics.mean(one.completion_tokens for one in usages), 1),
        "cached tokens": round(statistics.mean(one.cached_tokens for one in usages), 1),
        "requests per second": round(len(answers) / took, 3),
        "tokens per second": round(sum(one.tokens for one in answers) / took, 1),
        "first token, mean s": round(statistics.mean(first), 4),
        "first token, p95 s": round(_p95(first), 4),
        "gap, mean s": round(statistics.mean(gaps), 5),
        "gap, p95 s": round(_p95(gaps), 5),
        "gap, longest s": round(max(gaps), 5),
    }


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def first_token(bench: Bench) -> None:
    """Measure the time to the first token of a new image, of the same one, of the next turn."""
    with bench.records.figure("first token", "s") as line, bench.model(SEVEN) as (model, path):
        llava = Llava(model)
        images = pictures(CHATS, 2 * _side(model))
        taken: dict[str, list[float]] = {"cold": [], "same image": [], "next turn": []}
        with engine(bench, llava, path, "captured", 4) as made:
            for number, picture in enumerate(images):
                for name, took in _chat(bench, made, picture, 10 * number).items():
                    taken[name].append(took)
            line["ran"] = ran(made)
        # The first of each warms up.
        line["value"] = {name: round(statistics.median(all[1:]), 4) for name, all in taken.items()}


def _chat(bench: Bench, made: Engine, picture: Any, number: int) -> dict[str, float]:
    """Seconds to the first token of three requests about one image."""
    turns = bench.about(picture, number)
    (cold,) = ask(made, [turns], 4)
    (same,) = ask(made, [bench.about(picture, number + 1)], 4)
    follow = ("user", [bench.words(number + 2)])
    (later,) = ask(made, [[*turns, ("assistant", [cold.text]), follow]], 4)
    return {"cold": cold.first, "same image": same.first, "next turn": later.first}


def images(bench: Bench) -> None:
    """Measure how many images the vision tower encodes, preprocessing left out."""
    with (
        bench.records.figure("images encoded", "a second") as line,
        bench.model(SEVEN) as (
            model,
            path,
        ),
    ):
        count = bench.sizes.pictures
        encode = encode_pixels(Llava(model), path, pictures(count, _side(model)))
        line["value"] = round(count / seconds(bench.device, encode), 2)
