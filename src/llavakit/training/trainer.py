"""The trainer of transformers, with what LLaVA needs otherwise.

:class:`TrainedPartTrainer` is what every run here has in common, that of the demo model too.

TRL's ``SFTTrainer`` is this same trainer with a preparation of data before it: it renders chat
templates, masks, cuts and packs by itself. All of that is what must be exactly as in the
original and as at inference here, so nothing of it could be used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from llavakit.errors import CheckpointError
from llavakit.training.config import TrainConfig
from llavakit.training.finite import FiniteSteps, check_loss, finite
from llavakit.training.progress import Progress
from llavakit.training.resume import TRAINED, last_checkpoint, loading
from llavakit.training.sampler import ExampleOrder
from llavakit.training.trainable import is_projector, load_trained, trained, trained_state

CHECKPOINTS = "checkpoints"


class TrainedPartTrainer(Trainer):  # type: ignore[misc]
    """Its checkpoints hold what is trained, and go on from there; a bar shows how it goes.

    Args:
        progress: the bar.
        args, model, train_dataset, data_collator, ...: as for ``transformers.Trainer``.
    """

    def __init__(self, *, progress: Progress, **options: Any) -> None:
        self.optimizer: Any = None
        self._progress = progress
        super().__init__(callbacks=[progress, FiniteSteps()], **options)
        for shown in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown)

    def tokens_of(self, inputs: Any) -> int:
        """How many tokens are read in a batch."""
        mask = inputs["attention_mask"]
        # With a mask for each token, one sees itself as often as it is there; padding, too.
        return int(mask.sum() if mask.dim() == 2 else mask.diagonal(dim1=-2, dim2=-1).sum())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self._progress.tokens += self.tokens_of(inputs)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        check_loss(loss, self.state.global_step + 1)
        return loss

    def keep_state(self) -> str | None:
        """Write a checkpoint of the state before the step that is being made, if there is none.

        Returns:
            The last checkpoint; None where no step was made yet, or where several processes train
            and only this one knows that it stops.
        """
        folder = Path(self.args.output_dir)
        if self.state.global_step and self.args.world_size == 1:
            here = folder / f"checkpoint-{self.state.global_step}"
            good = finite(one.detach() for _, one in trained(self.model))
            if good and not (here / "trainer_state.json").is_file():
                self._save_checkpoint(self.model, trial=None)
        return last_checkpoint(folder, lambda line: None)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        path = Path(output_dir or self.args.output_dir)
        path.mkdir(parents=True, exist_ok=True)
        state = trained_state(self.accelerator.unwrap_model(self.model), state_dict)
        save_file({name: one.contiguous() for name, one in state.items()}, path / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        file = Path(resume_from_checkpoint) / TRAINED
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing; remove {resume_from_checkpoint}, which was not written to "
                "its end, and resume from the one before."
            )
        with loading(file):
            state = load_file(file)
        load_trained(self.model if model is None else model, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading(checkpoint):
            super()._load_rng_state(checkpoint)


class LlavaTrainer(TrainedPartTrainer):
    """Trains the trainable parameters of an HF LLaVA model.

    Args:
        config: the settings.
        lengths: tokens of each example, negative for those without images.
        progress, args, model, train_dataset, data_collator: as for the base.
    """

    def __init__(self, *, config: TrainConfig, lengths: Sequence[int], **options: Any) -> None:
        self._config = config
        self._lengths = lengths
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> ExampleOrder:
        return ExampleOrder(
            self._lengths,
            step=self._config.batch_size,
            device=self._config.per_device_batch_size,
            seed=self._config.seed,
            grouped=self._config.group,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with up to four groups: the projector apart, and what does not decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            decays = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in trained(model):
                groups.setdefault((is_projector(name), name in decays), []).append(parameter)
            slower = self._config.projector_learning_rate
            self.optimizer = kind(
                [
                    {
                        "params": parameters,
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                        **({"lr": slower} if projector and slower is not None else {}),
                    }
                    # The first group's rate is the one that is logged: not the projector's.
                    for (projector, decay), parameters in sorted(groups.items(), key=_rank)
                ],
                **options,
            )
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def gathered(self) -> dict[str, Tensor]:
        """All weights, gathered where devices hold a part each; every process must call it."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            state: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
            return state
        weights: dict[str, Tensor] = self.model.state_dict()
        return weights


def _rank(group: tuple[tuple[bool, bool], Any]) -> tuple[bool, bool]:
    return group[0]


@contextlib.contextmanager
def blank_pictures(model: Any, view: Tensor) -> Iterator[None]:
    """Let batches without images pass through tower and projector, too, with no effect.

    Processes that train together must meet in the same parts of the model, or they wait for
    each other for ever.

    Args:
        model: the HF model, not wrapped.
        view: pixels [1, 3, H, W] of one view.
    """

    def add_nothing(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if kwargs.get("pixel_values") is not None or kwargs.get("input_ids") is None:
            return None
        base = model.model
        tower = base.vision_tower(
            view.to(kwargs["input_ids"].device, base.vision_tower.dtype), output_hidden_states=True
        )
        nothing = base.multi_modal_projector(tower.hidden_states[-1]).sum() * 0.0
        words = base.get_input_embeddings()(kwargs["input_ids"])
        return args, {**kwargs, "input_ids": None, "inputs_embeds": words + nothing.to(words)}

    handle = model.model.register_forward_pre_hook(add_nothing, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def arguments(out: Path, *, workers: int = 0, **settings: Any) -> TrainingArguments:
    """Settings in transformers' words, with those that all runs have in common.

    Args:
        out: the directory of the run; checkpoints are in it.
        workers: processes that prepare batches.
        settings: all others.
    """
    return TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        save_strategy="steps",
        logging_first_step=True,
        logging_nan_inf_filter=False,  # which would log the loss before it; see training.finite
        dataloader_num_workers=workers,
        dataloader_pin_memory=not settings["use_cpu"] and torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        **settings,
    )


def arguments_of(config: TrainConfig, *, mixed: bool, world: int) -> TrainingArguments:
    """The settings of a configuration.

    Args:
        config: the configuration.
        mixed: whether computation is in bfloat16.
        world: how many processes train together.
    """
    return arguments(
        Path(config.out),
        per_device_train_batch_size=config.per_device_batch_size,
        gradient_accumulation_steps=config.batch_size // (config.per_device_batch_size * world),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        **_checkpointing(config.gradient_checkpointing),
        bf16=mixed,
        use_cpu=config.device == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=config.keep_checkpoints,
        logging_steps=config.log_steps,
        workers=config.workers,
        optim="adamw_torch",
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """The settings of gradient checkpointing, which transformers has given a new name."""
    known = {one.name for one in fields(TrainingArguments)}
    name = "activation_checkpointing"
    name = name if name in known else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False}}
