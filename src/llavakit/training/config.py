"""Settings of a training run, with the original LLaVA's values where nothing is said.

The values are those of ``scripts/v1_5/pretrain.sh``, ``finetune.sh`` and ``finetune_lora.sh`` at
c121f04 (https://github.com/haotian-liu/LLaVA).
"""

from __future__ import annotations

import importlib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from llavakit._checks import check_number
from llavakit.errors import ParameterError
from llavakit.prompts.templates import OWN, template
from llavakit.training.data_check import check_accepted

Stage = Literal["align", "instruct", "lora", "qlora", "retrieve"]
STAGES: tuple[Stage, ...] = ("align", "instruct", "lora", "qlora", "retrieve")

_ALIGN = {"learning_rate": 1e-3, "batch_size": 256, "conv_mode": "plain", "group": False}
_INSTRUCT = {"learning_rate": 2e-5, "batch_size": 128, "group": True}
_LORA = {**_INSTRUCT, "learning_rate": 2e-4, "projector_learning_rate": 2e-5}
# Of ColPali's training (https://arxiv.org/abs/2407.01449, section 4.3).
_RETRIEVE = {
    "learning_rate": 5e-5,
    "batch_size": 32,
    "schedule": "linear",
    "warmup_ratio": 0.025,
    "lora_rank": 32,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "group": False,
}
DEFAULTS: Mapping[Stage, Mapping[str, Any]] = {
    "align": _ALIGN,
    "instruct": _INSTRUCT,
    "lora": _LORA,
    "qlora": _LORA,
    "retrieve": _RETRIEVE,
}
"""What each stage takes where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run of training.

    Attributes:
        stage: what is trained. ``align``: the projector alone; ``instruct``: the projector and
            the language model; ``lora``: the projector and low-rank adapters on the language
            model's linear layers (Hu et al. 2021); ``qlora``: the same over 4-bit weights
            (Dettmers et al. 2023); ``retrieve``: adapters and a projection by which questions
            find images (docs/retrieval.md). The vision tower is never trained.
        model: what is trained: an alias, a hub id or a directory. With ``vision_tower`` it is
            a plain language model.
        data: the training records (see "Data" of docs/training.md).
        out: the directory to make.
        images: where relative paths of images begin; None is beside the data.
        model_base: the base of a projector-only checkpoint.
        vision_tower: ``align`` only: the CLIP that a language model gets, with a new projector.
        image_aspect_ratio: ``pad`` or ``square``, for projector-only checkpoints of the
            original's and new ones; None takes what the checkpoint says. The original aligns
            with ``square`` and goes on with ``pad``.
        conv_mode: the conversation template; None takes ``plain`` to align, and that of the
            checkpoint for everything else.
        learning_rate: its highest value.
        projector_learning_rate: another one for the projector.
        batch_size: conversations of one step, over all devices.
        per_device_batch_size: conversations that a device takes at once; unless set, the largest
            divisor of ``batch_size`` that divides 16 too.
        epochs: how often all data is seen.
        max_steps: ends earlier; None does not.
        warmup_ratio: the share of steps in which the learning rate rises.
        weight_decay: of AdamW, for matrices.
        schedule: of the learning rate, by its name in transformers.
        max_grad_norm: gradients are scaled down to it.
        max_length: the most tokens of a conversation, images included.
        lora_rank: rank of the adapters.
        lora_alpha: their scale, times the rank.
        lora_dropout: the share of their input that is dropped.
        dimensions: ``retrieve`` only: length of a vector.
        temperature: ``retrieve`` only: scores are divided by it.
        hard_negatives: ``retrieve`` only: from the second epoch on, so many of the wrong pages
            that score best are learnt beside each query's own.
        group: whether batches are of one kind (with images, or without) and of like lengths.
        share_images: learn conversations about the same images together, which reads the
            images once; ``batch_size`` then counts what is learnt together as one.
        gradient_checkpointing: compute twice rather than keep all activations.
        dtype: ``auto`` computes in bfloat16 where the device does, else in float32.
        device: ``auto`` or ``cpu``.
        seed: of everything random.
        save_steps: steps between checkpoints that a run can go on from.
        keep_checkpoints: how many of them are kept.
        log_steps: steps between two logged losses.
        workers: processes that prepare batches.
        resume: go on from the last checkpoint in ``out``.
        accept: faults of the data to live with.
        skip_faulty: leave faulty records out, rather than refuse the data.
        decode_images: whether all images are decoded before training starts.
    """

    stage: Stage
    model: str
    data: str
    out: str
    images: str | None = None
    model_base: str | None = None
    vision_tower: str | None = None
    image_aspect_ratio: str | None = None
    conv_mode: str | None = None
    learning_rate: float = 2e-5
    projector_learning_rate: float | None = None
    batch_size: int = 128
    per_device_batch_size: int = 16
    epochs: float = 1.0
    max_steps: int | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    max_length: int = 2048
    lora_rank: int = 128
    lora_alpha: float = 256
    lora_dropout: float = 0.05
    dimensions: int = 128
    temperature: float = 0.02
    hard_negatives: int = 0
    group: bool = True
    share_images: bool = False
    gradient_checkpointing: bool = True
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 42
    save_steps: int = 500
    keep_checkpoints: int = 2
    log_steps: int = 1
    workers: int = 0
    resume: bool = False
    accept: tuple[str, ...] = ()
    skip_faulty: bool = False
    decode_images: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "accept", tuple(self.accept))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise _wrong(name, getattr(self, name), f"use {', '.join(map(str, known))}")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                allowed = (
                    f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
                )
                raise _wrong(name, value, f"it must be {allowed}")
        check_number("epochs", self.epochs, above=0)
        if self.batch_size % self.per_device_batch_size:
            raise ParameterError(
                f"batch_size is {self.batch_size}, which per_device_batch_size "
                f"{self.per_device_batch_size} does not divide; change one of them."
            )
        if self.vision_tower is not None and (self.stage != "align" or self.model_base):
            raise ParameterError(
                "vision_tower puts a new model together out of a language model, which starts "
                "with align and has no model_base; leave one of them out."
            )
        self._check_retrieval()
        if self.conv_mode not in (None, OWN):
            template(str(self.conv_mode))
        check_accepted(self.accept)

    def _check_retrieval(self) -> None:
        plain = {one.name: one.default for one in fields(self)}
        for name in _OF_RETRIEVAL:
            if self.stage != "retrieve" and getattr(self, name) != plain[name]:
                raise ParameterError(f"{name} is for the stage retrieve; leave it out.")
        if self.stage != "retrieve":
            return
        check_number("temperature", self.temperature, above=0)
        if self.share_images or self.group:
            raise ParameterError(
                "share_images and group are for conversations, and retrieve learns from pairs; "
                "leave them out."
            )

    @classmethod
    def of(cls, stage: str, settings: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a stage, its defaults filled in.

        Args:
            stage: one of :data:`STAGES`.
            settings: by their names, as a file or a command line gives them.

        Raises:
            ParameterError: an unknown name, a value of a wrong type or out of its range, or
                one that is missing.
        """
        if stage not in STAGES:
            raise _wrong("stage", stage, f"use {', '.join(STAGES)}")
        known = {one.name: one for one in fields(cls)}
        kinds = typing.get_type_hints(cls)
        given = {"stage": stage, **DEFAULTS[stage]}
        for name, value in settings.items():
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
                raise ParameterError(f"There is no setting {name!r}; {hint}")
            if name == "stage" and value != stage:
                raise ParameterError(
                    f"The settings are for the stage {value}, and {stage} was asked for; "
                    "name the same stage."
                )
            if value is not None or type(None) in typing.get_args(kinds[name]):
                given[name] = _of_kind(name, value, kinds[name])
        missing = [name for name in ("model", "data", "out") if given.get(name) is None]
        if missing:
            raise ParameterError(f"The setting {missing[0]} is missing; every run needs it.")
        if "per_device_batch_size" not in settings:
            # Other pages of the same pass are a query's negatives.
            whole = stage == "retrieve"
            batch = int(given["batch_size"])
            given["per_device_batch_size"] = batch if whole else math.gcd(batch, 16)
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """All settings, as JSON and YAML write them."""
        return {**asdict(self), "accept": list(self.accept)}


_CHOICES: dict[str, tuple[Any, ...]] = {
    "stage": STAGES,
    "dtype": ("auto", "float32", "bfloat16"),
    "device": ("auto", "cpu"),
    "image_aspect_ratio": (None, "pad", "square"),
    "schedule": ("cosine", "linear", "constant", "constant_with_warmup"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, 1),
    "projector_learning_rate": (0, 1),
    "batch_size": (1, math.inf),
    "per_device_batch_size": (1, math.inf),
    "max_steps": (1, math.inf),
    "warmup_ratio": (0, 1),
    "weight_decay": (0, 1),
    "max_grad_norm": (0, math.inf),
    "max_length": (8, math.inf),
    "lora_rank": (1, math.inf),
    "lora_alpha": (0, math.inf),
    "lora_dropout": (0, 1),
    "dimensions": (1, math.inf),
    "temperature": (0, math.inf),
    "hard_negatives": (0, math.inf),
    "save_steps": (1, math.inf),
    "keep_checkpoints": (1, math.inf),
    "log_steps": (1, math.inf),
    "workers": (0, math.inf),
}


_OF_RETRIEVAL = ("dimensions", "temperature", "hard_negatives")


def _wrong(name: str, value: Any, advice: str) -> ParameterError:
    return ParameterError(f"{name} is {value!r}; {advice}.")


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """A value as its setting's type; YAML reads 2e-5 as text, and command lines all."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    if typing.get_origin(kind) is Literal:
        return value
    if typing.get_origin(kind) is tuple:
        listed = value.split(",") if isinstance(value, str) else value
        if not isinstance(listed, (list, tuple)):
            raise _wrong(name, value, "it must be a list")
        return tuple(str(one).strip() for one in listed)
    wanted = next(one for one in options if one is not type(None))
    if wanted is bool:
        flag = {"true": True, "false": False}.get(str(value).lower())
        if flag is None:
            raise _wrong(name, value, "it must be true or false")
        return flag
    if isinstance(value, (bool, list, dict)) or (wanted is int and isinstance(value, float)):
        raise _wrong(name, value, f"it must be {_KINDS[wanted]}")
    try:
        return wanted(value)
    except ValueError:
        raise _wrong(name, value, f"it must be {_KINDS[wanted]}") from None


_KINDS = {int: "a whole number", float: "a number", str: "a text"}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        ParameterError: it cannot be read, or holds no settings.
    """
    yaml: Any = importlib.import_module("yaml")  # comes with transformers
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ParameterError(f"The settings in {path} cannot be read: {reason}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ParameterError(f"{path} holds no settings but a {type(found).__name__}.")
    return found
