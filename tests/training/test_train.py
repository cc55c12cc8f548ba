"""Each stage trains what it shall and nothing else, goes on as if nothing had been, and answers."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import llavakit
from llavakit import Image, Message
from llavakit.backend import to_request
from llavakit.errors import CheckpointError, DataError, ParameterError
from llavakit.images import open_picture
from llavakit.local import LocalBackend
from llavakit.model.adapter import TRAINING
from llavakit.model.loader import load_reader
from llavakit.prompts.conversation import to_turns
from llavakit.training.config import TrainConfig
from llavakit.training.progress import LOG, PLOT
from llavakit.training.run import Trained, train
from llavakit.training.trainer import CHECKPOINTS, arguments_of
from tests.engine.asking import ask
from tests.tiny import TinyModel
from tests.training.lessons import settings, write_lessons

STAGES = ("align", "instruct", "lora", "qlora")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROJECTOR = "model.multi_modal_projector."

pytestmark = pytest.mark.filterwarnings(
    # bitsandbytes and peft speak of what they will change.
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
)


@dataclass(frozen=True)
class Run:
    """An undisturbed run of a stage."""

    stage: str
    base: TinyModel
    config: TrainConfig
    trained: Trained

    @property
    def base_path(self) -> str | None:
        return str(self.base.path) if "lora" in self.stage else None


@pytest.fixture(scope="module", params=STAGES)
def run(request: pytest.FixtureRequest, tiny: TinyModel, tmp_path_factory: Any) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    data = write_lessons(folder, captions=request.param == "align")
    rate = {"learning_rate": 0.01, "projector_learning_rate": 0.01}
    every = {"save_steps": 2, "keep_checkpoints": 9}
    config = settings(request.param, tiny.path, data, folder / "out", **every, **rate)
    return Run(request.param, tiny, config, train(config))


def weights(path: Path, base: str | None = None) -> dict[str, Tensor]:
    """All weights of a directory, an adapter merged."""
    reader = load_reader(path, model_base=None if base is None else Path(base))
    state: dict[str, Tensor] = reader.build({"dtype": torch.float32}).state_dict()
    return state


def intended(stage: str, name: str) -> bool:
    if name.startswith(PROJECTOR):
        return True
    if stage == "instruct":
        return name.startswith(("model.language_model.", "lm_head."))
    adapted = name.startswith("model.language_model.layers.") and name.endswith(".weight")
    return "lora" in stage and adapted and name.split(".")[-2] in LINEAR


def test_the_loss_falls(run: Run):
    losses = run.trained.losses
    assert len(losses) == run.trained.steps >= 6
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_what_is_meant_to_change_changes_and_nothing_else(run: Run):
    before = weights(run.base.path)
    after = weights(run.trained.out, run.base_path)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if intended(run.stage, name)}


def test_a_resumed_run_gives_the_weights_of_an_undisturbed_one(run: Run, tmp_path: Path):
    checkpoint = run.trained.out / CHECKPOINTS / "checkpoint-4"
    shutil.copytree(checkpoint, tmp_path / "out" / CHECKPOINTS / checkpoint.name)
    cut_off = tmp_path / "out" / CHECKPOINTS / "checkpoint-10"  # by a kill while it was written
    shutil.copytree(checkpoint, cut_off)
    (cut_off / "trainer_state.json").write_text('{"epoch": 1')
    said: list[str] = []
    options = {**run.config.as_dict(), "out": str(tmp_path / "out"), "resume": True}
    resumed = train(TrainConfig.of(run.stage, options), said.append)
    assert any("checkpoint-4" in line for line in said)
    assert any("checkpoint-10" in line and "passed over" in line for line in said)
    assert resumed.steps == run.trained.steps and resumed.losses == run.trained.losses
    (file,) = (one.name for one in run.trained.out.glob("*.safetensors"))
    expected, seen = load_file(run.trained.out / file), load_file(resumed.out / file)
    assert set(expected) == set(seen)
    for name, weight in expected.items():
        assert torch.equal(weight, seen[name]), name


@pytest.fixture
def picture(run: Run) -> PILImage.Image:
    return PILImage.open(Path(run.config.data).parent / "red.png").convert("RGB")


def test_the_result_answers_as_other_programs_read_it(run: Run, picture: PILImage.Image):
    """Greedy through the engine, against transformers' and PEFT's own loading and generate."""
    backend = llavakit.load(
        str(run.trained.out),
        model_base=run.base_path,
        quantization="4bit" if run.stage == "qlora" else None,
        device="cpu",
    )
    assert isinstance(backend, LocalBackend)
    (answer,) = ask(backend._get_engine(), ["What colour is it?"], [picture], max_tokens=12)
    reader = backend._get_reader()
    turns = to_turns(to_request(Message("user", [Image(picture), "What colour is it?"])))
    ids = reader.tokenizer.encode(turns)
    at = ids.index(reader.special.image)
    ids[at : at + 1] = [reader.special.image] * 16
    with torch.inference_mode():
        out = loaded_elsewhere(run).generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=reader.preprocess(open_picture(picture)).inputs()["pixel_values"],
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=list(reader.special.forbidden),
            pad_token_id=4,
        )
    told = out[0, len(ids) :].tolist()
    assert answer == told
    backend.close()


def loaded_elsewhere(run: Run) -> Any:
    from transformers import AutoModelForImageTextToText

    from llavakit.model.quantization import packed_config

    path = run.trained.out if run.base_path is None else run.base.path
    options: dict[str, Any] = {}
    if run.stage == "qlora":
        # The same packed weights: nf4, in which it was trained, is for CUDA.
        options["quantization_config"] = packed_config("4bit")
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, **options)
    if run.base_path is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, run.trained.out)
    return model.eval()


def test_a_run_leaves_its_settings_its_losses_and_their_picture(run: Run):
    out = run.trained.out
    assert (out / TRAINING).is_file()
    assert len((out / LOG).read_text().splitlines()) == run.trained.steps
    with PILImage.open(out / PLOT) as plot:
        assert plot.format == "PNG" and len(plot.convert("RGB").getcolors(1 << 16)) > 3


def test_an_adapter_holds_its_layers_and_the_projector_only(run: Run):
    if "lora" not in run.stage:
        assert not (run.trained.out / "adapter_config.json").exists()
        return
    names = set(load_file(run.trained.out / "adapter_model.safetensors"))
    low_rank = {n for n in names if ".lora_A." in n or ".lora_B." in n}
    assert {n.split(".")[-3] for n in low_rank} == set(LINEAR)
    assert all(".language_model.layers." in n for n in low_rank)
    ends = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
    assert names - low_rank == {f"base_model.model.{PROJECTOR}{end}" for end in ends}


def test_the_projector_of_an_adapter_has_its_own_learning_rate(tiny: TinyModel, tmp_path: Path):
    data = write_lessons(tmp_path)
    config = settings("lora", tiny.path, data, tmp_path / "out", projector_learning_rate=0.0)
    done = train(config)
    before = weights(tiny.path)
    after = weights(done.out, str(tiny.path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(PROJECTOR) for name in changed)


def test_faulty_data_is_refused_before_anything_is_trained(tiny: TinyModel, tmp_path: Path):
    data = write_lessons(tmp_path)
    (tmp_path / "red.png").write_bytes(b"no image")
    config = settings("lora", tiny.path, data, tmp_path / "out", epochs=1)
    with pytest.raises(DataError, match="unreadable-image") as refused:
        train(config)
    assert str(refused.value).count("line ") == 2
    skipping = TrainConfig.of("lora", {**config.as_dict(), "skip_faulty": True})
    said: list[str] = []
    assert train(skipping, said.append).steps == 3
    assert any("2 unreadable-image" in line for line in said)


@pytest.mark.parametrize("disk", ["a file", "full of its own", "full of safetensors"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    disk: str, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_lessons(tmp_path)
    (tmp_path / "file").touch()
    out = tmp_path / ("file" if disk == "a file" else "out")

    def full(*_: object, **__: object) -> None:
        if disk == "full of its own":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("llavakit.training.stage.write_weights", full)
    with pytest.raises(CheckpointError, match="cannot be written") as refused:
        train(settings("instruct", tiny.path, data, out, max_steps=1))
    assert "resume" in str(refused.value)


def test_an_output_that_holds_something_is_left_alone(tiny: TinyModel, tmp_path: Path):
    data = write_lessons(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ParameterError, match="resume"):
        train(settings("lora", tiny.path, data, tmp_path / "out"))
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_checkpoint_of_other_settings_is_refused(run: Run, tmp_path: Path):
    checkpoint = run.trained.out / CHECKPOINTS / "checkpoint-4"
    shutil.copytree(checkpoint, tmp_path / "out" / CHECKPOINTS / checkpoint.name)
    other = "instruct" if run.stage != "instruct" else "lora"
    data = write_lessons(tmp_path)
    config = settings(other, run.base.path, data, tmp_path / "out", resume=True)
    with pytest.raises(CheckpointError, match="other settings"):
        train(config)


def test_a_run_does_not_go_on_with_other_settings(run: Run):
    other = {**run.config.as_dict(), "learning_rate": 0.5, "resume": True}
    with pytest.raises(ParameterError, match=r"learning_rate=0\.01"):
        train(TrainConfig.of(run.stage, other))


def test_a_finished_run_that_is_resumed_stays_as_it_is(run: Run):
    (file,) = run.trained.out.glob("*.safetensors")
    before = load_file(file)
    options = {**run.config.as_dict(), "resume": True}
    again = train(TrainConfig.of(run.stage, options))
    assert again.steps == run.trained.steps
    after = load_file(file)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_settings_reach_the_adapter_and_the_schedule(tiny: TinyModel, tmp_path: Path):
    config = settings(
        "lora", tiny.path, write_lessons(tmp_path), tmp_path / "out",
        lora_alpha=12, lora_dropout=0.3, warmup_ratio=0.25, learning_rate=0.01,
    )  # fmt: skip
    done = train(config)
    adapter = json.loads((done.out / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (4, 12, 0.3)
    rates = [
        json.loads(line)["learning_rate"] for line in (done.out / LOG).read_text().splitlines()
    ]
    warm = math.ceil(0.25 * done.steps)
    down = [math.pi * at / (done.steps - warm) for at in range(done.steps - warm)]
    expected = [at / warm for at in range(warm)] + [0.5 * (1 + math.cos(at)) for at in down]
    assert rates == pytest.approx([0.01 * factor for factor in expected])


def test_settings_reach_the_trainer():
    given = {"model": "demo", "data": "x", "out": "o", "device": "cpu"}
    config = TrainConfig.of("instruct", {**given, "weight_decay": 0.07, "max_grad_norm": 0.4})
    made = arguments_of(config, mixed=False, world=1)
    assert (made.weight_decay, made.max_grad_norm) == (0.07, 0.4)
