"""Training by several processes, and by one that was killed; and starting from plain parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import llavakit
from llavakit.errors import CheckpointError, ParameterError
from llavakit.model.export import export
from llavakit.model.loader import load_reader
from llavakit.training.progress import LOG
from llavakit.training.run import train
from llavakit.training.trainer import CHECKPOINTS
from tests.original import FIXTURES
from tests.tiny import TinyModel
from tests.training.lessons import settings, write_lessons

SHIPPED = sorted((Path(__file__).parents[2] / "examples" / "accelerate").glob("*.yaml"))
VICUNA, CLIP = FIXTURES / "models" / "vicuna-tiny", FIXTURES / "clip-tiny"

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_configurations_are_read_by_accelerate(file: Path):
    """Read, and not run: that needs several GPUs."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(file.stem, "DEEPSPEED")
    assert config.distributed_type == kind and config.num_processes == 8
    assert config.mixed_precision == "bf16"
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(file.stem[-1])


def test_the_fully_sharded_configuration_has_only_settings_that_accelerate_knows():
    from dataclasses import fields

    from accelerate.utils import FullyShardedDataParallelPlugin

    written = yaml.safe_load((SHIPPED[0].parent / "fsdp.yaml").read_text())["fsdp_config"]
    known = {one.name for one in fields(FullyShardedDataParallelPlugin)}
    renamed = {"transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
               "offload_params": "cpu_offload"}  # fmt: skip
    names = {name.removeprefix("fsdp_") for name in written}
    names = {renamed.get(name, name) for name in names}
    assert {one if one in known else f"fsdp_{one}" for one in names} <= known
    assert len(SHIPPED) == 4


def command(model: Path, data: Path, out: Path, *more: str, stage: str = "lora") -> list[str]:
    """``llavakit train`` of a tiny model, as a user types it."""
    return [
        *("train", stage, "--model", str(model), "--data", str(data), "--out", str(out)),
        *("--conv-mode", "v1", "--device", "cpu", "--batch-size", "4", "--epochs", "4"),
        *("--per-device-batch-size", "2", "--lr", "0.01", "--set", "lora_rank=4"),
        *more,
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    (file,) = out.glob("*model.safetensors")
    return load_file(file)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / LOG).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.parametrize("stage", ["instruct", "lora"])
def test_two_processes_train_as_one(stage: str, tiny: TinyModel, tmp_path: Path):
    data = write_lessons(tmp_path)
    records = json.loads(data.read_text())
    # Of the last step one process gets two records with pictures, and the other two without.
    data.write_text(json.dumps([*records[:6], *records[-2:]]))
    alone = [sys.executable, "-m", "llavakit.cli"]
    # `accelerate launch --cpu` starts one process, however many it is asked for.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["-m", "llavakit.cli"]
    for name, start in {"alone": alone, "both": launch}.items():
        # At a high rate rounding would grow into other weights within a few steps.
        slowly = ("--set", "lora_dropout=0", "--lr", "0.0003")
        made = command(tiny.path, data, tmp_path / name, *slowly, stage=stage)
        done = subprocess.run([*start, *made], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("by 2 processes" in done.stderr + done.stdout) == (name == "both")
    expected, seen = weights(tmp_path / "alone"), weights(tmp_path / "both")
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    for name, weight in expected.items():
        torch.testing.assert_close(seen[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_weights_of_an_undisturbed_one(tiny: TinyModel, tmp_path: Path):
    data = write_lessons(tmp_path)
    start = [sys.executable, "-m", "llavakit.cli"]
    every = ("--set", "save_steps=1")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*start, *command(tiny.path, data, killed, *every)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wanted = killed / CHECKPOINTS / "checkpoint-3" / "trainer_state.json"
    until = time.monotonic() + 200
    while not wanted.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert wanted.is_file() and not (killed / "adapter_model.safetensors").exists()
    for out, more in ((killed, ("--resume",)), (tmp_path / "whole", ())):
        made = command(tiny.path, data, out, *every, *more)
        done = subprocess.run([*start, *made], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    expected, seen = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(seen[name], weight) for name, weight in expected.items())


def new_model(tmp_path: Path, **more: Any) -> Any:
    data = write_lessons(tmp_path, captions=True)
    return settings("align", VICUNA, data, tmp_path / "aligned", vision_tower=str(CLIP), **more)


@pytest.mark.slow  # two processes that train
def test_a_language_model_gets_eyes_and_then_learns_to_talk(tmp_path: Path):
    """Both stages of the original, from its own kind of parts to a model in HF format."""
    aligned = train(new_model(tmp_path, learning_rate=0.02))
    assert sum(aligned.losses[-2:]) < sum(aligned.losses[:2])
    names = set(load_file(aligned.out / "mm_projector.safetensors"))
    assert names == {f"model.mm_projector.{n}.{k}" for n in "02" for k in ("weight", "bias")}
    picture = tmp_path / "red.png"
    backend = llavakit.load(str(aligned.out), model_base=str(VICUNA), conv_mode="v1")
    assert backend.ask(picture, "What colour is it?", max_tokens=4)
    backend.close()

    data = write_lessons(tmp_path)
    config = settings(
        "instruct", aligned.out, data, tmp_path / "taught", model_base=str(VICUNA),
        image_aspect_ratio="pad", learning_rate=0.01, epochs=4,
    )  # fmt: skip
    taught = train(config)
    assert sum(taught.losses[-2:]) < 0.8 * sum(taught.losses[:2])
    reader = load_reader(taught.out)
    assert reader.preprocess._alone[0].do_pad is True
    before = load_reader(aligned.out, model_base=VICUNA, conv_mode="v1")
    states = [one.build({"dtype": torch.float32}).state_dict() for one in (before, reader)]
    towers = [name for name in states[0] if "vision_tower" in name]
    assert towers and all(torch.equal(states[0][name], states[1][name]) for name in towers)
    backend = llavakit.load(str(taught.out))
    assert backend.ask(picture, "What colour is it?", max_tokens=4)
    backend.close()


def test_an_aligned_model_is_exported_whole(tmp_path: Path):
    aligned = train(new_model(tmp_path, max_steps=1))
    out = export(aligned.out, tmp_path / "hf", model_base=VICUNA, conv_mode="v1", dtype="float32")
    expected = load_reader(aligned.out, model_base=VICUNA, conv_mode="v1")
    mine = load_reader(out).build({"dtype": torch.float32}).state_dict()
    for name, weight in expected.build({"dtype": torch.float32}).state_dict().items():
        assert torch.equal(mine[name], weight), name


def test_what_cannot_be_trained_says_so(tiny: TinyModel, tmp_path: Path):
    data = write_lessons(tmp_path)
    aligned = train(new_model(tmp_path, max_steps=1))
    on_projector = settings("lora", aligned.out, data, tmp_path / "a", model_base=str(VICUNA))
    with pytest.raises(CheckpointError, match="llavakit export"):
        train(on_projector)
    with pytest.raises(ParameterError, match="image_aspect_ratio"):
        train(settings("lora", tiny.path, data, tmp_path / "b", image_aspect_ratio="pad"))
    whole = FIXTURES / "models" / "llava-v1.5-tiny"
    with pytest.raises(ParameterError, match=r"config\.json"):
        train(settings("instruct", whole, data, tmp_path / "c", image_aspect_ratio="pad"))
    lora = train(settings("lora", tiny.path, data, tmp_path / "d", max_steps=1))
    with pytest.raises(CheckpointError, match="is an adapter"):
        train(settings("lora", lora.out, data, tmp_path / "e"))
