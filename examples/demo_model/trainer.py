"""A phase of the demo model's recipe, on the trainer that everything is trained with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler

from llavakit.training.examples import Encoder
from llavakit.training.progress import Progress
from llavakit.training.trainable import trained
from llavakit.training.trainer import TrainedPartTrainer, arguments

from .batches import LessonSteps
from .losses import AnswerTask, Learner, PatchTask, RepeatTask, Task
from .muon import MuonAdamW
from .pictures import Pictures
from .recipe import PARTS, AnyPhase, Phase, RepeatPhase, VisionPhase
from .repeats import RepeatSteps
from .steps import Steps
from .vision import VisionSteps

_TOWER, _PROJECTOR, _TEXT = "vision_tower", "multi_modal_projector", "language_model"


def choose_trained(learner: Learner, phase: AnyPhase) -> None:
    """Let a phase train its parts, and nothing else.

    The tower's last layer is never read (``vision_feature_layer=-2``), and so never trained.
    """
    if isinstance(phase, VisionPhase):
        wanted: tuple[str, ...] = (_TOWER, "heads.")
    elif isinstance(phase, RepeatPhase) or phase.text_only:
        wanted = (_TEXT,)
    else:
        beside = (("heads.", phase.patch_weight), ("alignment.", phase.word_weight))
        wanted = (_TOWER, _PROJECTOR, _TEXT, *(name for name, weight in beside if weight))
    last = learner.llava.config.vision_config.num_hidden_layers - 1
    unread = (f"{_TOWER}.encoder.layers.{last}.", "post_layernorm")
    for name, parameter in learner.named_parameters():
        named = any(part in name for part in wanted)
        parameter.requires_grad_(named and not any(part in name for part in unread))


def task_of(phase: AnyPhase, learner: Learner) -> Task:
    """What a phase minimises."""
    if isinstance(phase, VisionPhase):
        return PatchTask(learner)
    if isinstance(phase, RepeatPhase):
        return RepeatTask(learner)
    weights = {"patch_weight": phase.patch_weight, "word_weight": phase.word_weight}
    return AnswerTask(learner, **weights)


def steps_of(phase: AnyPhase, store: Mapping[str, Pictures], encoder: Encoder) -> Steps[Any, Any]:
    """What a phase learns from."""
    if isinstance(phase, VisionPhase):
        return VisionSteps(phase, PARTS, store, encoder.reader.preprocess)
    if isinstance(phase, RepeatPhase):
        return RepeatSteps(phase, PARTS)
    return LessonSteps(phase, PARTS, store, encoder)


class PhaseTrainer(TrainedPartTrainer):
    """Trains what a phase trains.

    Args:
        phase: of the recipe.
        task: what it minimises, over a model whose parts were chosen.
        steps: what it learns from.
        out: the directory of the run.
        world: how many processes train together.
        save_steps: steps between two checkpoints.
    """

    def __init__(
        self,
        phase: Phase,
        task: Task,
        steps: Steps[Any, Any],
        out: Path,
        *,
        world: int,
        save_steps: int,
    ) -> None:
        self._found: dict[str, list[float]] = {}
        self._right: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        optimizer = MuonAdamW(
            trained(task), matrix_rate=phase.matrix_rate, other_rate=phase.other_rate
        )
        super().__init__(
            progress=Progress(out),
            model=task,
            args=arguments(
                out,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=PARTS // world,
                max_steps=phase.steps,
                max_grad_norm=1.0,
                use_cpu=not torch.cuda.is_available(),
                seed=phase.seed,
                save_steps=save_steps,
                save_total_limit=1,
                logging_steps=min(20, phase.steps),
                ddp_find_unused_parameters=True,
            ),
            train_dataset=steps,
            data_collator=_only,
            optimizers=(optimizer, LambdaLR(optimizer, phase.factor)),
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def tokens_of(self, inputs: Any) -> int:
        batches = inputs["item"] if isinstance(inputs["item"], list) else [inputs["item"]]
        return sum(int(one["ids"].numel()) for one in batches if "ids" in one)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        found = model(**inputs)
        loss = found.pop("loss")
        for task, right in found.pop("right", []):
            self._asked[task] += 1
            self._right[task] += right
        for name, value in found.items():
            self._found.setdefault(name, []).append(value)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        for name, values in self._found.items():
            logs[name] = sum(values) / len(values)
        for task, asked in sorted(self._asked.items()):
            logs[f"right: {task}"] = self._right[task] / asked
        self._found.clear()
        self._asked.clear()
        self._right.clear()
        super().log(logs, *args, **options)


def _only(items: list[Any]) -> dict[str, Any]:
    """An item is a batch already."""
    (item,) = items
    return {"item": item}
