"""Conversations a second in training: each alone, and those about one image together.

Both are whole runs of ``llavakit train lora`` on the same records, from the check of the data to
the adapter on disk. A step of both learns all records, so that losses must agree.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from pathlib import Path

from benchmarks.bench_model import pictures, question
from benchmarks.rates import report, timed
from llavakit.training.config import TrainConfig
from llavakit.training.run import Trained, train

PAGES, QUESTIONS, STEPS = 4, 8, 4


def measure(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Both in turn; prints a table and returns it.

    Args:
        path: the checkpoint of the model, whose images have 576 tokens.
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
            rounds.append({"each alone": alone, "share_images": shared})
    title = f"LoRA, {PAGES} pages x {QUESTIONS} questions, {STEPS} steps"
    work = PAGES * QUESTIONS * STEPS
    return report(title, "records", rounds, work, ("losses", STEPS), _same)


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
        "share_images": together,
        "batch_size": PAGES if together else PAGES * QUESTIONS,
        "per_device_batch_size": 1 if together else QUESTIONS,
        "epochs": STEPS,
        "lora_dropout": 0.0,
        "gradient_checkpointing": False,
    }
    return timed(lambda: train(TrainConfig.of("lora", settings)))


def _same(expected: Trained, given: Trained) -> int:
    pairs = zip(expected.losses, given.losses, strict=True)
    return sum(math.isclose(one, other, rel_tol=1e-3) for one, other in pairs)
