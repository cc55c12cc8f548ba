"""The example that teaches the bundled model a new shape."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from examples.demo_model.world.scenes import BACKGROUNDS, Scene, Shape
from llavakit.model.loader import load_reader
from llavakit.training.data_check import check
from llavakit.training.data_files import open_records
from llavakit.training.examples import Encoder

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_demo.py"


@pytest.fixture(scope="module")
def example() -> Any:
    found = importlib.util.spec_from_file_location("finetune_demo", EXAMPLE)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["finetune_demo"] = module
    with pytest.MonkeyPatch.context() as as_a_program:
        as_a_program.syspath_prepend(EXAMPLE.parent)
        found.loader.exec_module(module)
    return module


def test_its_lessons_are_data_without_faults(example: Any, demo_dir: Path, tmp_path: Path):
    rng = random.Random(1)
    lessons = [example.new_lesson(rng) if n % 2 else example.old_lesson(rng) for n in range(40)]
    records = open_records(example.write_records(tmp_path, lessons))
    report = check(records, encoder=Encoder(load_reader(demo_dir), 2048))
    assert not report.faults, "\n".join(report.lines())
    assert report.pictures == 40 and report.answers >= 80


def test_its_hexagon_is_six_sided_and_filled(example: Any):
    shape = Shape(example.NEW, "red", (255, 0, 0), 0.5, 0.5, 0.8)
    scene = Scene(200, 200, "white", BACKGROUNDS[0][1], (shape,))
    image: PILImage.Image = example.draw(scene)
    red = {tone: count for count, tone in image.getcolors(1 << 16)}[(255, 0, 0)]
    area = 3 * 3**0.5 / 2 * 80**2
    assert abs(red - area) < 0.03 * area
    assert image.getpixel((100 + 70, 100)) == (255, 0, 0) != image.getpixel((100, 100 - 75))


def test_what_is_held_out_is_in_no_lesson(example: Any):
    rng = random.Random("lessons")
    learnt = {example.new_lesson(rng).picture.tobytes() for _ in range(50)}
    asked = example.held_out(4)
    assert {one.task for _, one in asked} >= {"new: shape", "new: exists", "new: absent", "colour"}
    assert not learnt & {picture.tobytes() for picture, _ in asked}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_teaches_the_shape_and_forgets_little(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--out", str(tmp_path / "hexagon")],
        capture_output=True, text=True, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    row = re.search(r"new: shape +(\d+)% +(\d+)%", done.stdout)
    assert row is not None and int(row[1]) <= 10 and int(row[2]) >= 80
