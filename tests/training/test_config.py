"""Settings: the original's defaults, and one sentence for everything that cannot be."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from llavakit.errors import LlavaKitError, ParameterError
from llavakit.training.config import DEFAULTS, STAGES, TrainConfig, read_settings

NEEDED = {"model": "demo", "data": "train.json", "out": "out"}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("align", {"learning_rate": 1e-3, "batch_size": 256, "conv_mode": "plain"}),
        ("instruct", {"learning_rate": 2e-5, "batch_size": 128, "projector_learning_rate": None}),
        ("lora", {"learning_rate": 2e-4, "batch_size": 128, "projector_learning_rate": 2e-5}),
        ("qlora", {"learning_rate": 2e-4, "batch_size": 128, "projector_learning_rate": 2e-5}),
    ],
)
def test_what_nobody_sets_is_as_in_the_original(stage: str, expected: dict[str, Any]):
    config = TrainConfig.of(stage, NEEDED)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.schedule, config.warmup_ratio, config.weight_decay) == ("cosine", 0.03, 0.0)
    assert (config.epochs, config.max_length, config.gradient_checkpointing) == (1, 2048, True)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (128, 256, 0.05)
    assert config.group is (stage != "align")


def documented() -> str:
    """The table of docs/training.md, from the docstring: a setting is described once."""
    described = (inspect.getdoc(TrainConfig) or "").split("Attributes:\n")[1]
    told = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", described, re.MULTILINE))
    rows = ["| setting | default | |", "|---|---|---|"]
    for one in fields(TrainConfig):
        default = "" if one.default in (MISSING, None, ()) else f"`{one.default}`"
        if any(one.name in values for values in DEFAULTS.values()):
            default = "by stage"
        meaning = " ".join(told[one.name].replace("``", "`").split())
        if one.name != "stage":
            rows.append(f"| `{one.name}` | {default} | {meaning} |")
    return "\n".join(rows)


def test_all_settings_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert f"\n{documented()}\n" in page


@pytest.mark.parametrize("stage", STAGES)
def test_settings_survive_yaml(stage: str, tmp_path: Path):
    config = TrainConfig.of(stage, {**NEEDED, "accept": ["duplicate-id"], "max_steps": 7})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert TrainConfig.of(stage, read_settings(tmp_path / "train.yaml")) == config


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path):
    (tmp_path / "train.yaml").write_text("learning_rate: 3e-5\nresume: yes\n")
    config = TrainConfig.of("lora", {**NEEDED, **read_settings(tmp_path / "train.yaml")})
    assert config.learning_rate == 3e-5 and config.resume is True


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rat": 1}, "did you mean learning_rate?"),
        ({"learning_rate": "fast"}, "must be a number"),
        ({"learning_rate": 2}, "from 0 to 1"),
        ({"batch_size": 1.5}, "whole number"),
        ({"batch_size": 0}, "1 or more"),
        ({"epochs": 0}, "above 0"),
        ({"epochs": "nan"}, "above 0"),
        ({"batch_size": 10, "per_device_batch_size": 4}, "does not divide"),
        ({"resume": "perhaps"}, "true or false"),
        ({"accept": "image-count"}, "cannot be accepted"),
        ({"accept": 3}, "must be a list"),
        ({"conv_mode": "v2"}, "no conversation template"),
        ({"schedule": "zigzag"}, "use cosine"),
        ({"vision_tower": "clip"}, "starts with align"),
        ({"stage": "align"}, "same stage"),
        ({"model": None}, "every run needs it"),
        ({"dtype": "float16"}, "use auto"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(settings: dict[str, Any], told: str):
    with pytest.raises(ParameterError, match=told.replace("?", r"\?")) as refused:
        TrainConfig.of("lora", {**NEEDED, **settings})
    assert isinstance(refused.value, LlavaKitError) and "\n" not in str(refused.value)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ParameterError, match="use align, instruct, lora, qlora"):
        TrainConfig.of("dpo", NEEDED)


@pytest.mark.parametrize("written", ["- a\n- b", "a: [", "\x00"])
def test_files_that_hold_no_settings_are_refused(tmp_path: Path, written: str):
    (tmp_path / "train.yaml").write_text(written)
    with pytest.raises(ParameterError, match=r"train\.yaml"):
        read_settings(tmp_path / "train.yaml")
    with pytest.raises(ParameterError, match="cannot be read"):
        read_settings(tmp_path / "nowhere.yaml")
