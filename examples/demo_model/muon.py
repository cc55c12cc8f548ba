"""Muon in fp32, with matrices of one shape orthogonalised together.

The algorithm is Keller Jordan's (https://kellerjordan.github.io/posts/muon/): momentum, then five
Newton-Schulz steps that replace the update by its nearest half-orthogonal matrix. torch.optim.Muon
does the same in bf16, which CPUs without bf16 units emulate slowly, and one matrix at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

POSITION_SCALE = 10.0
_BESIDE = ("heads", "alignment")


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return the nearest half-orthogonal matrices of ``(n, rows, columns)``, approximately."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: torch.Tensor = x.transpose(1, 2) if tall else x
    return result


def shared(matrices: torch.Tensor) -> torch.Tensor:
    """Orthogonalise, every process a part of the matrices if there are several."""
    if not dist.is_initialized():
        return orthogonalise(matrices)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    out = torch.zeros_like(matrices)
    if len(matrices[mine]):
        out[mine] = orthogonalise(matrices[mine])
    dist.all_reduce(out)
    return out


def split_parameters(
    named: Iterable[tuple[str, torch.nn.Parameter]],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Split into matrices, position embeddings, and the rest (embeddings, norms, biases, heads)."""
    matrices: list[torch.nn.Parameter] = []
    positions: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in named:
        if "position_embedding" in name:
            positions.append(parameter)
        elif parameter.ndim == 2 and not any(part in name for part in ("embed", *_BESIDE)):
            matrices.append(parameter)
        else:
            rest.append(parameter)
    return matrices, positions, rest


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices, and AdamW (Loshchilov and Hutter 2019) for everything else.

    Args:
        named: parameters and their names, by which it is told what they are.
        matrix_rate: learning rate of matrices.
        other_rate: of everything else.
        momentum, weight_decay: of matrices.
        betas, eps: of everything else, which does not decay.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        matrix_rate: float,
        other_rate: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        matrices, positions, rest = split_parameters(named)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": matrix_rate, "orthogonal": True},
            {"params": rest, "lr": other_rate, "orthogonal": False},
            # Positions start small beside the patches; at the others' pace they stay unseen.
            {"params": positions, "lr": other_rate * POSITION_SCALE, "orthogonal": False},
        ]
        common = {"momentum": momentum, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__([one for one in groups if one["params"]], common)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            if group["orthogonal"]:
                shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
                for one in parameters:
                    shapes[one.shape].append(one)
                for alike in shapes.values():
                    self._turn(alike, group)
            else:
                for one in parameters:
                    self._adapt(one, group)

    def _turn(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(state["momentum"], group["momentum"]))
        stacked = shared(torch.stack(updates))
        rate = group["lr"] * max(1.0, stacked.size(1) / stacked.size(2)) ** 0.5
        for parameter, update in zip(parameters, stacked, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-rate)

    def _adapt(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = float(state["step"])
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        spread = (state["square"] / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - first**step))
