"""The trainer of pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llavakit.training.trainer import LlavaTrainer


class PairTrainer(LlavaTrainer):
    """Trains a :class:`~.contrast.Retriever`; arguments as for the base."""

    def tokens_of(self, inputs: Any) -> int:
        return sum(int(inputs[name]["attention_mask"].sum()) for name in ("queries", "pages"))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def gathered(self) -> dict[str, Tensor]:
        """Weights by their names in the model that PEFT wraps."""
        return {name.removeprefix("model."): one for name, one in super().gathered().items()}
