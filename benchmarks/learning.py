"""Conversations a second in training: each alone, and those about one picture together.

Both are whole runs of ``llavakit train lora`` on the same records, from the check of the data to
the adapter on disk. A step of both learns all records, so that losses must agree.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.bench_model import pictures, question
from llavakit.training.config import TrainConfig
from llavakit.training.run import Trained, train

PAGES, QUESTIONS, STEPS = 4, 8, 4


def measure(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Both in turn; prints a table and returns it.

    Args:
        path: the checkpoint of the model, whose pictures have 576 tokens.
        repeats: how often; the figures are medians.
    """
    for name in ("transformers", "llavakit"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rounds = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data = _write(folder)
        for number in range(repeats):
            alone = _timed(path, data, folder / f"alone-{number}", together=False)
            shared = _timed(path, data, folder / f"shared-{number}", together=True)
            rounds.append({"each alone": alone, "share_pictures": shared})
    return _report(rounds)


def _write(folder: Path) -> Path:
    records = []
    for page, picture in enumerate(pictures(PAGES)):
        picture.save(folder / f"{page}.png")
        for asked in range(QUESTIONS):
            number = page * QUESTIONS + asked
            said = [
                {"from": "human", "value": f"<image>\n{question(number)}"},
                {"from": "gpt", "value": question(500 + number)},
            ]
            records.append({"image": f"{page}.png", "conversations": said})
    file = folder / "train.json"
    file.write_text(json.dumps(records))
    return file


def _timed(path: Path, data: Path, out: Path, *, together: bool) -> tuple[float, Trained]:
    settings = {
        "model": str(path),
        "data": str(data),
        "out": str(out),
        "conv_mode": "v1",
        "device": "cpu",
        "share_pictures": together,
        "batch_size": PAGES if together else PAGES * QUESTIONS,
        "per_device_batch_size": 1 if together else QUESTIONS,
        "epochs": STEPS,
        "lora_dropout": 0.0,
        "gradient_checkpointing": False,
    }
    began = time.perf_counter()
    done = train(TrainConfig.of("lora", settings))
    return time.perf_counter() - began, done


def _report(rounds: list[dict[str, tuple[float, Trained]]]) -> dict[str, dict[str, float]]:
    count = PAGES * QUESTIONS * STEPS
    baseline = next(iter(rounds[0]))
    figures: dict[str, dict[str, float]] = {}
    print(f"LoRA, {PAGES} pages x {QUESTIONS} questions, {STEPS} steps (median of {len(rounds)})")
    print(f"  {'':<42}{'records/s':>10}{'ratio':>8}{'same':>9}")
    for name in rounds[0]:
        rate = statistics.median(count / one[name][0] for one in rounds)
        ratio = statistics.median(one[baseline][0] / one[name][0] for one in rounds)
        same = min(_same(one[baseline][1], one[name][1]) for one in rounds)
        figures[name] = {
            "records per second": round(rate, 4),
            "throughput ratio": round(ratio, 4),
            "same losses": same,
            "losses": STEPS,
        }
        print(f"  {name:<42}{rate:>10.3f}{ratio:>8.2f}{f'{same}/{STEPS}':>9}")
    print(flush=True)
    return figures


def _same(expected: Trained, given: Trained) -> int:
    pairs = zip(expected.losses, given.losses, strict=True)
    return sum(math.isclose(one, other, rel_tol=1e-3) for one, other in pairs)
