"""Stop a run at the first number that is not finite, before it is trained into the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llavakit.errors import ModelError


class NotFiniteError(ModelError):
    """A loss, a gradient or a trained weight is NaN or infinite.

    Attributes:
        what: ``"loss"``, ``"gradients"`` or ``"weights"``.
        step: the step, from 1 on, in which it was met.
    """

    def __init__(self, what: str, step: int) -> None:
        self.what = what
        self.step = step
        verb = "is" if what == "loss" else "are"
        super().__init__(f"In step {step} the {what} {verb} not finite (NaN or infinity)")

    @property
    def weights_changed(self) -> bool:
        """Whether the step has changed the weights already."""
        return self.what == "weights"


class FiniteSteps(TrainerCallback):  # type: ignore[misc]
    """Checks gradients before, and trained weights behind, each step of the optimiser."""

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        if not finite(gradients):
            raise NotFiniteError("gradients", state.global_step + 1)

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        trained = [one.detach() for one in model.parameters() if one.requires_grad]
        if not finite(trained):
            raise NotFiniteError("weights", state.global_step + 1)


def check_loss(loss: Tensor, step: int) -> None:
    """Raise a :class:`NotFiniteError` for a loss of NaN or infinity.

    Args:
        loss: a number.
        step: the step that it belongs to, from 1 on.
    """
    if not bool(torch.isfinite(loss).all()):
        raise NotFiniteError("loss", step)


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; waits for the device once for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for one in tensors:
        # A part of a tensor that lies on several devices is looked at where it is.
        local = one.to_local() if hasattr(one, "to_local") else one
        if local.numel() and local.is_floating_point():
            # The largest magnitude and not the norm, which overflows where the numbers do not.
            norm = torch.linalg.vector_norm(local, float("inf"))
            by_device.setdefault(norm.device, []).append(norm.float())
    return all(bool(torch.isfinite(torch.stack(one)).all()) for one in by_device.values())


def stopped(error: NotFiniteError, kept: str | None, begun: bool) -> NotFiniteError:
    """The error with what became of the run in it.

    Args:
        error: what was met.
        kept: the checkpoint that holds the last good state; None if there is none.
        begun: whether any step was made before.
    """
    if kept is not None:
        state = f"the last good state is in {kept}, and resume (--resume) goes on from there"
    elif begun:
        state = "no checkpoint had been written"
    else:
        state = "nothing had been trained yet"
    advice = (
        "lower learning_rate"
        if begun
        else "see whether the weights to train on are damaged, or overflow in their type"
    )
    error.args = (f"{error}; training was stopped and no result was written: {state}; {advice}.",)
    return error
