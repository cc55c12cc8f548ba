"""A number that is not finite ends a run at its step, and the last good state is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llavakit.errors import CheckpointError, ModelError
from llavakit.training.finite import finite
from llavakit.training.resume import TRAINED, last_checkpoint
from llavakit.training.run import train
from llavakit.training.trainer import CHECKPOINTS, LlavaTrainer
from tests.tiny import TinyModel, tiny_llava
from tests.training.lessons import settings, write_lessons

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_among_many_is_found(bad: float):
    tensors = [torch.full((3, 4), 3e38), torch.zeros(0), torch.arange(5)]
    assert finite(tensors)
    assert not finite([*tensors, torch.tensor([1.0, bad])])


def plant(where: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a NaN into a run when ``at`` steps are done."""
    step = LlavaTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if self.state.global_step < at:
            return step(self, model, inputs, *rest)
        trained = [one for one in model.parameters() if one.requires_grad]
        if where == "weights":
            trained[0].data[0] = math.nan
        elif where == "images":
            inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], math.nan)
        elif where == "activations":
            inner = model.get_base_model().model.language_model.layers[0]
            inner.register_forward_hook(lambda *call: call[-1] * math.nan)
        loss = step(self, model, inputs, *rest)
        if where == "gradients":
            trained[0].grad[0] = math.inf
        elif where == "optimiser":
            for state in self.optimizer.state.values():
                state["exp_avg"].fill_(math.nan)
        return loss

    monkeypatch.setattr(LlavaTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "where",
    [
        *("weights", "gradients", "optimiser"),
        pytest.param("images", marks=pytest.mark.slow),
        pytest.param("activations", marks=pytest.mark.slow),
    ],
)
def test_a_run_stops_at_the_step_and_keeps_the_last_good_state(
    where: str, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_lessons(tmp_path, text_only=False)
    config = settings("lora", tiny.path, data, tmp_path / "out", save_steps=1, max_steps=4)
    plant(where, 2, monkeypatch)
    with pytest.raises(ModelError, match=r"In step 3 the .* not finite") as stopped:
        train(config)
    assert "checkpoint-2" in str(stopped.value) and "learning_rate" in str(stopped.value)
    assert not list(Path(config.out).glob("adapter_model*"))
    last = last_checkpoint(Path(config.out) / CHECKPOINTS, lambda line: None)
    assert last is not None and last.endswith("checkpoint-2")
    assert finite(load_file(Path(last) / TRAINED).values())


def test_the_state_before_the_step_is_written_where_no_checkpoint_was_due(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_lessons(tmp_path, text_only=False)
    config = settings("lora", tiny.path, data, tmp_path / "out", max_steps=4)
    with monkeypatch.context() as patch:
        plant("images", 2, patch)
        with pytest.raises(ModelError, match="checkpoint-2"):
            train(config)
    from llavakit.training.config import TrainConfig

    resumed = train(TrainConfig.of("lora", {**config.as_dict(), "resume": True}))
    assert resumed.steps == 4 and (Path(config.out) / "adapter_model.safetensors").is_file()


def test_broken_weights_are_not_written_as_a_good_state(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_lessons(tmp_path, text_only=False)
    plant("weights", 2, monkeypatch)
    with pytest.raises(ModelError, match="no checkpoint had been written"):
        train(settings("lora", tiny.path, data, tmp_path / "out", max_steps=4))


def test_a_model_that_gives_no_finite_loss_at_all_is_not_trained(tmp_path: Path):
    base = tiny_llava(tmp_path / "base").path
    weights = load_file(base / "model.safetensors")
    key = next(name for name in weights if "mlp.down_proj" in name and "language" in name)
    weights[key] = torch.full_like(weights[key], 3e38)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    data = write_lessons(tmp_path)
    with pytest.raises(ModelError, match=r"step 1 .*nothing had been trained yet.*damaged"):
        train(settings("lora", base, data, tmp_path / "out"))


@pytest.mark.parametrize("name", [TRAINED, "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("length", [0, 100])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it(
    name: str, length: int, tiny: TinyModel, tmp_path: Path
):
    folder = tmp_path / CHECKPOINTS
    for number in (3, 12):
        path = folder / f"checkpoint-{number}"
        path.mkdir(parents=True)
        save_file({"a": torch.zeros(100)}, path / TRAINED)
        for one in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"a": torch.zeros(100)}, path / one)
        (path / "trainer_state.json").write_text("{}")
    assert last_checkpoint(folder, print) == str(folder / "checkpoint-12")
    file = folder / "checkpoint-12" / name
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"checkpoint-12.*damaged.*from checkpoint-3\."):
        last_checkpoint(folder, print)
