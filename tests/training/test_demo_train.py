"""From nothing to a checkpoint that answers, by the same trainer as every other run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import llavakit
from examples.demo_model import recipe as demo_recipe
from examples.demo_model import train as demo_train
from examples.demo_model.recipe import (
    PHASES,
    AnyPhase,
    LessonPhase,
    RepeatPhase,
    VisionPhase,
)
from examples.demo_model.world.copying import random_copying
from llavakit.errors import ParameterError
from llavakit.training.progress import LOG, PLOT
from llavakit.training.trainer import CHECKPOINTS
from tests.training.demo import MIX

pytestmark = pytest.mark.slow  # of the example that makes the bundled model

REPEATS = tuple(
    replace(one, rows=4)
    for one in next(one for one in PHASES if isinstance(one, RepeatPhase)).repeats
)
TOKENS = 700
"""Of a step: enough for lessons with images and without."""
BESIDE = {"patch_weight": 0.2, "word_weight": 0.5}
ALL: tuple[AnyPhase, ...] = (
    VisionPhase(name="vision", steps=2, seed=1, scenes=4, pages=4, pictures=6),
    RepeatPhase(name="repeats", steps=2, seed=2, repeats=REPEATS),
    LessonPhase(name="text", steps=1, seed=3, mix={"copying": 1.0}, tokens=500),
    LessonPhase(name="joint-1", steps=2, seed=4, mix=MIX, tokens=TOKENS, **BESIDE),
    LessonPhase(
        name="joint-2", steps=1, seed=5, mix=MIX, tokens=TOKENS,
        louder_positions=(2.0, 2.0), own_share=0.5,
    ),
)  # fmt: skip
TRAINED = {
    "vision": ("vision_tower",),
    "repeats": ("language_model",),
    "text": ("language_model",),
    "joint-1": ("vision_tower", "multi_modal_projector", "language_model"),
    "joint-2": ("vision_tower", "multi_modal_projector", "language_model"),
}


def few_pictures(patch: Any) -> None:
    patch.setattr(demo_train, "CHUNK", 4)
    patch.setattr(demo_recipe, "SCENES", 4)
    patch.setattr(demo_recipe, "PAGES", 4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: Any) -> Path:
    """A run of all kinds of phases."""
    folder: Path = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        few_pictures(patch)
        demo_train.train(ALL, folder, folder / "out", save_steps=1)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_result_loads_elsewhere_and_answers_here(work: Path):
    processor = AutoProcessor.from_pretrained(work / "out")
    model = AutoModelForImageTextToText.from_pretrained(work / "out")
    assert model.dtype == torch.float16
    dialogue = random_copying(random.Random(1))
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for question, answer in dialogue.turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    assert processor.apply_chat_template(messages[:-1]) == dialogue.prompt()
    backend = llavakit.load(str(work / "out"), device="cpu")
    backend.ask(processor_picture(), "What is it?", max_tokens=3)
    backend.close()


def processor_picture() -> Any:
    from PIL import Image as PILImage

    return PILImage.new("RGB", (200, 100), "red")


def test_every_phase_changes_what_it_trains_and_nothing_else(work: Path):
    before = work / "start"
    for phase in ALL:
        old, new = weights(before), weights(work / phase.name)
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        parts = {part for part in TRAINED[phase.name] if any(part in name for name in changed)}
        assert parts == set(TRAINED[phase.name])
        assert all(any(part in name for part in TRAINED[phase.name]) for name in changed)
        before = work / phase.name


def test_every_phase_leaves_a_checkpoint_its_losses_and_their_picture(work: Path):
    for phase in ALL:
        folder = work / phase.name
        llavakit.load(str(folder), device="cpu").close()
        lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        assert lines[0]["step"] == 1 and lines[-1]["step"] == phase.steps
        assert (folder / PLOT).is_file()
    assert any(name.startswith("right: ") for name in lines[0])


def test_a_phase_may_end_with_a_mean_of_its_weights_and_the_first_ones():
    layer = torch.nn.Linear(2, 3)
    first = {name: torch.full_like(value, 1.0) for name, value in layer.state_dict().items()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(2.0)
    demo_train.average(layer, first, 0.6)
    assert all(torch.allclose(p, torch.tensor(1.6)) for p in layer.parameters())


def test_finished_phases_are_not_run_again(work: Path):
    said: list[str] = []
    demo_train.train(ALL[:3], work, work / "again", told=said.append)
    assert said == [f"Wrote {work / 'again'}."]


def test_an_interrupted_phase_goes_on_to_the_same_weights(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few_pictures(monkeypatch)
    (checkpoint,) = (work / "joint-1" / CHECKPOINTS).glob("checkpoint-2")
    for stop in (1, 2):
        workdir = tmp_path / str(stop)
        if stop == 2:  # it was killed while the result was written
            shutil.copytree(checkpoint, workdir / "joint-1" / CHECKPOINTS / checkpoint.name)
        else:
            interrupted(ALL[3], work / "text", workdir, stop)
        said: list[str] = []
        out = demo_train.run_phase(
            ALL[3], work / "text", workdir, save_steps=1, told=said.append
        )  # fmt: skip
        assert any(f"checkpoint-{stop}" in line for line in said)
        expected, seen = weights(work / "joint-1"), weights(out)
        assert all(torch.equal(seen[name], weight) for name, weight in expected.items())


def interrupted(phase: AnyPhase, before: Path, workdir: Path, stop: int) -> None:
    """Run a phase that fails behind a step."""
    reached: list[int] = []

    class Broken(demo_train.PhaseTrainer):
        def training_step(self, *args: Any) -> torch.Tensor:
            if self.state.global_step == stop:
                reached.append(stop)
                raise KeyboardInterrupt
            return super().training_step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_train, "PhaseTrainer", Broken)
        with pytest.raises(KeyboardInterrupt):
            demo_train.run_phase(phase, before, workdir, save_steps=1, told=print)
    assert reached and not (workdir / phase.name / "model.safetensors").exists()


def test_a_checkpoint_can_be_trained_on(work: Path, tmp_path: Path, monkeypatch: Any):
    few_pictures(monkeypatch)
    phase = LessonPhase(name="more", steps=1, seed=9, mix=MIX, tokens=TOKENS, patch_weight=0.0)
    demo_train.train([phase], tmp_path, tmp_path / "out", start=work / "out")
    assert not (tmp_path / "start").exists()
    old, new = weights(work / "out"), weights(tmp_path / "out")
    moved = [(new[name].float() - old[name].float()).abs().max().item() for name in old]
    assert 0 < max(moved) < 0.2


def test_phases_are_chosen_by_their_names():
    names = [phase.name for phase in PHASES]
    assert [one.name for one in demo_train.chosen("", "")] == names
    assert [one.name for one in demo_train.chosen("text", "joint-2")] == [
        "text", "joint-1", "joint-2",
    ]  # fmt: skip
    with pytest.raises(ParameterError, match="joint-1"):
        demo_train.chosen("", "joint-99")


def test_the_recipe_is_whole():
    """Every phase has its own name and seed, and rates that begin and end where they say."""
    assert len({one.name for one in PHASES}) == len({one.seed for one in PHASES}) == len(PHASES)
    for phase in PHASES:
        factors = [phase.factor(step) for step in range(phase.steps + 1)]
        assert factors[-1] == pytest.approx(phase.last) and 0 < factors[0] <= phase.first
        assert max(factors) <= max(phase.first, phase.last)


TWO = """
import sys
from pathlib import Path
from examples.demo_model import recipe as demo_recipe
from examples.demo_model import train as demo_train
from tests.training.test_demo_train import ALL, few_pictures

few_pictures(type("patch", (), {"setattr": staticmethod(setattr)}))
work, out = map(Path, sys.argv[1:])
demo_train.train(ALL[3:], out, out / "out", start=work / "text", told=print)
"""


@pytest.mark.slow
@pytest.mark.enable_socket
def test_two_processes_make_the_model_that_one_makes(work: Path, tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), str(work), str(tmp_path)],
        capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("joint-1", "joint-2"):
        (last,) = (tmp_path / name / CHECKPOINTS).glob("checkpoint-*")
        random_states = {one.name for one in last.glob("rng_state*")}
        assert random_states == {"rng_state_0.pth", "rng_state_1.pth"}  # there were two
        expected, seen = weights(work / name), weights(tmp_path / name)
        for key, weight in expected.items():
            torch.testing.assert_close(seen[key], weight, atol=1e-4, rtol=1e-3)
