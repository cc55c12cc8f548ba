"""Small training data, and runs of training on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from llavakit.training.config import TrainConfig

TONES = {"red": (220, 20, 30), "green": (0, 160, 40), "blue": (20, 40, 200), "gray": (128,) * 3}


def write_lessons(folder: Path, *, captions: bool = False, text_only: bool = True) -> Path:
    """Colours of plain images, and small talk without images; returns the file."""
    records: list[dict[str, Any]] = []
    for number, (name, tone) in enumerate(TONES.items()):
        PILImage.new("RGB", (40 + 8 * number, 30), tone).save(folder / f"{name}.png")
        for turn, question in enumerate(("What colour is it?", "Which colour?")):
            asked = f"<image>\n{question}" if turn else f"{question}\n<image>"
            said = [{"from": "human", "value": asked}, {"from": "gpt", "value": name}]
            if not captions and turn:
                said += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
            records.append({"id": f"{name}-{turn}", "image": f"{name}.png", "conversations": said})
    if text_only and not captions:
        for number in range(4):
            said = [{"from": "human", "value": f"Say {number}"}, {"from": "gpt", "value": "OK."}]
            records.append({"id": f"text-{number}", "conversations": said})
    file = folder / "train.json"
    file.write_text(json.dumps(records, indent=1))
    return file


def settings(stage: str, model: Path | str, data: Path, out: Path, **more: Any) -> TrainConfig:
    """A short run on a processor."""
    given: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "out": str(out),
        "device": "cpu",
        "batch_size": 4,
        "per_device_batch_size": 2,
        "epochs": 3,
        "warmup_ratio": 0.1,
        "save_steps": 100,
        "lora_rank": 4,
        "lora_alpha": 8,
    }
    if stage != "align":
        given["conv_mode"] = "v1"
    return TrainConfig.of(stage, {**given, **more})
