"""What a run shows: a bar while it goes on, and the course of its loss as an image."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from PIL import ImageDraw
from transformers import TrainerCallback

LOG = "loss.jsonl"
PLOT = "loss.png"

_SIZE = (960, 540)
_MARGIN = (80, 30, 40, 50)  # left, top, right, bottom
_INK, _GRID, _RAW, _SMOOTH = (40, 40, 40), (225, 225, 225), (170, 195, 235), (20, 80, 180)


class Progress(TrainerCallback):  # type: ignore[misc]
    """One bar with loss, tokens a second and the time that is left; the log, and its plot.

    Args:
        out: where log and plot are written.

    Attributes:
        tokens: that were read in this process so far; the trainer counts.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.tokens = 0
        self._bar: Any = None
        self._started = 0.0
        self._at_start = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started, self._at_start = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            tqdm: Any = importlib.import_module("tqdm").tqdm  # comes with transformers
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", file=sys.stderr
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if self._bar is None or not logs or "loss" not in logs:
            return
        passed = time.monotonic() - self._started
        speed = self.tokens * args.world_size / passed if passed else 0.0
        rate = f", {speed:,.0f} tokens/s" if self.tokens else ""
        self._bar.set_postfix_str(f"loss {float(logs['loss']):.4f}{rate}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._write(state)

    def _write(self, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        history = [one for one in state.log_history if "loss" in one]
        lines = [json.dumps({"step": one["step"], **one}) for one in history]
        (self.out / LOG).write_text("\n".join([*lines, ""]), encoding="utf-8")
        if history:
            steps = [int(one["step"]) for one in history]
            plot([float(one["loss"]) for one in history], steps).save(self.out / PLOT)


def plot(losses: Sequence[float], steps: Sequence[int]) -> PILImage.Image:
    """The course of a loss: each value, and their running mean.

    Args:
        losses: at least one; what is not finite is left out.
        steps: of each.
    """
    points = [(s, x) for s, x in zip(steps, losses, strict=True) if math.isfinite(x)]
    image = PILImage.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    if not points:
        return image
    left, top, right, bottom = _MARGIN
    width, height = _SIZE[0] - left - right, _SIZE[1] - top - bottom
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    ceiling = max(x for _, x in points) or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        return (
            left + width * (step - first) / (last - first),
            top + height * (1 - loss / ceiling),
        )

    for share in range(5):
        loss = ceiling * share / 4
        y = place(first, loss)[1]
        pen.line([(left, y), (left + width, y)], fill=_GRID)
        pen.text((left - 8, y), f"{loss:.3g}", fill=_INK, anchor="rm")
        step = first + (last - first) * share / 4
        pen.text((place(step, 0)[0], top + height + 8), f"{step:.0f}", fill=_INK, anchor="mt")
    pen.text((left + width / 2, _SIZE[1] - 16), "step", fill=_INK, anchor="mm")
    pen.text((left, top - 14), "loss", fill=_INK, anchor="lm")
    _line(pen, [place(*point) for point in points], _RAW, 1)
    _line(pen, [place(*point) for point in _smoothed(points)], _SMOOTH, 3)
    return image


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean of each value and those before it, over a twentieth of the run."""
    span = max(1, len(points) // 20)
    values = [x for _, x in points]
    return [
        (step, sum(values[max(0, at - span + 1) : at + 1]) / min(span, at + 1))
        for at, (step, _) in enumerate(points)
    ]


def _line(pen: Any, places: list[tuple[float, float]], tone: Any, width: int) -> None:
    if len(places) > 1:
        pen.line(places, fill=tone, width=width, joint="curve")
    else:
        (x, y) = places[0]
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=tone)
