"""What a run of every stage does before and behind its trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.model.quantization import check_quantized, keep_unpackable, quantization_config
from llavakit.training.config import TrainConfig
from llavakit.training.output import write_weights
from llavakit.training.start import Start
from llavakit.training.trainable import precision, prepare

Notify = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a run.

    Attributes:
        out: the directory that ``llavakit.load`` takes.
        steps: how many steps were made, those before a resumption included.
        losses: the logged losses, first to last.
    """

    out: Path
    steps: int
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that is about to train.

    Attributes:
        model: with what is trained in it; wrapped by PEFT for stages with adapters.
        mixed: whether it computes in bfloat16.
        last: the checkpoint that it goes on from.
    """

    model: Any
    mixed: bool
    last: str | None

    @property
    def inner(self) -> Any:
        """The HF model."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def begin(config: TrainConfig, start: Start, world: int, notify: Notify) -> Begun:
    """Load the model, and find the checkpoint to go on from.

    Args:
        config: the settings.
        start: what is trained.
        world: how many processes train together.
        notify: is called with remarks.
    """
    from transformers import set_seed

    from llavakit.training.resume import last_checkpoint
    from llavakit.training.trainer import CHECKPOINTS

    out = Path(config.out)
    mixed, frozen = precision(config)
    last = last_checkpoint(out / CHECKPOINTS, notify) if config.resume else None
    if config.resume and last is None:
        notify(f"There is no checkpoint in {out} to go on from; the run begins anew.")
    set_seed(config.seed)
    model = prepare(_model(config, start, frozen), config)
    counted = sum(one.numel() for one in model.parameters() if one.requires_grad)
    notify(
        f"Training {counted:,} parameters in {'bfloat16' if mixed else 'float32'}"
        + (f", by {world} processes" if world > 1 else "")
        + (f", from {last}." if last else ".")
    )
    return Begun(model, mixed, last)


def finish(
    config: TrainConfig, start: Start, begun: Begun, trainer: Any, notify: Notify
) -> Trained:
    """Train to the end, and write the weights.

    Raises:
        ModelError: a number was not finite.
    """
    from llavakit.training.finite import NotFiniteError, stopped
    from llavakit.training.resume import last_checkpoint
    from llavakit.training.trainer import CHECKPOINTS

    out = Path(config.out)
    try:
        made = trainer.train(resume_from_checkpoint=begun.last)
    except NotFiniteError as error:
        changed = error.weights_changed
        kept = last_checkpoint(out / CHECKPOINTS, notify) if changed else trainer.keep_state()
        raise stopped(error, kept, begun=trainer.state.global_step > 0) from None
    state = trainer.gathered()
    if trainer.is_world_process_zero():
        begun.inner.config.text_config.use_cache = True
        write_weights(start, config, begun.model, state, mixed=begun.mixed)
        notify(f"Wrote {out}.")
    trainer.accelerator.wait_for_everyone()
    losses = tuple(float(one["loss"]) for one in trainer.state.log_history if "loss" in one)
    return Trained(out, int(made.global_step), losses)


def _model(config: TrainConfig, start: Start, frozen: str) -> Any:
    """The HF model to train, in the type of its frozen weights."""
    import torch
    from accelerate import PartialState
    from transformers.utils import logging as hf_logging

    kind = getattr(torch, frozen)
    options: dict[str, Any] = {"dtype": kind}
    if config.stage == "qlora":
        options["quantization_config"] = quantization_config("4bit", kind)
        options["device_map"] = {"": PartialState().device}
    hf_logging.disable_progress_bar()
    model = start.reader.build(options)
    if config.stage == "qlora":
        check_quantized(model, "4bit")
        keep_unpackable(model)
    model.config.text_config.use_cache = False  # nothing is generated while training
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    return model
