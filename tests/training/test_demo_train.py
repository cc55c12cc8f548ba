import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llavakit.demo.copying import random_copying
from llavakit.training import demo_recipe, demo_train
from llavakit.training.demo_recipe import LessonPhase, RepeatPhase, VisionPhase

MIX = {"scene": 1.0, "page": 1.0, "several": 1.0, "copying": 1.0}


@pytest.fixture
def short_recipe(monkeypatch):
    monkeypatch.setattr(demo_train, "CHUNK", 4)
    monkeypatch.setattr(demo_recipe, "SCENES", 4)
    monkeypatch.setattr(demo_recipe, "PAGES", 4)
    vision = VisionPhase("vision", 1, 1, scenes=4, pages=4, scene_share=0.5)
    monkeypatch.setattr(demo_recipe, "VISION", (vision,))
    text = (RepeatPhase("repeats", 1, 1), LessonPhase("text", 1, 1, {"copying": 1.0}, tokens=300))
    monkeypatch.setattr(demo_recipe, "TEXT", text)
    joint = (
        LessonPhase("joint-1", 1, 1, MIX, tokens=600),
        LessonPhase("joint-2", 2, 2, MIX, tokens=600, louder_positions=(2.0, 2.0)),
        LessonPhase("joint-3", 1, 3, MIX, tokens=600, own_share=0.5),
    )
    monkeypatch.setattr(demo_recipe, "JOINT", joint)


@pytest.mark.slow
def test_a_recipe_leads_to_a_checkpoint_that_loads(short_recipe, tmp_path):
    demo_train.run_vision(tmp_path, 1)
    demo_train.run_text(tmp_path, 1)
    demo_train.run_joint(0, 1, tmp_path, "", tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    dialogue = random_copying(random.Random(1))
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for question, answer in dialogue.turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    assert processor.apply_chat_template(messages[:-1]) == dialogue.prompt()


def test_a_phase_may_end_with_a_mean_of_its_weights_and_the_first_ones():
    layer = torch.nn.Linear(2, 3)
    first = {name: torch.full_like(value, 1.0) for name, value in layer.state_dict().items()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(2.0)
    demo_train.Run._average(SimpleNamespace(model=layer), first, 0.6)
    assert all(torch.allclose(p, torch.tensor(1.6)) for p in layer.parameters())


@pytest.mark.slow
def test_finished_phases_are_not_run_again(short_recipe, tmp_path):
    demo_train.run_vision(tmp_path, 1)
    before = (tmp_path / "vision.pt").stat().st_mtime_ns
    demo_train.run_vision(tmp_path, 1)
    assert (tmp_path / "vision.pt").stat().st_mtime_ns == before
