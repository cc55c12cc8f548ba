"""Muon in fp32, with matrices of one shape orthogonalised together.

The algorithm is Keller Jordan's (https://kellerjordan.github.io/posts/muon/): momentum, then five
Newton-Schulz steps that replace the update by its nearest half-orthogonal matrix. torch.optim.Muon
does the same in bf16, which CPUs without bf16 units emulate slowly, and one matrix at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist

POSITION_SCALE = 10.0


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


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for matrices; use AdamW for everything else."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 3e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    gradient, buffer = parameter.grad, state["momentum"]
                    assert gradient is not None
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(buffer, group["momentum"]))
                stacked = shared(torch.stack(updates).flatten(2))
                rate = group["lr"] * max(1.0, stacked.size(1) / stacked.size(2)) ** 0.5
                for parameter, update in zip(parameters, stacked, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view(shape), alpha=-rate)


def split_parameters(
    named: Iterable[tuple[str, torch.nn.Parameter]],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Split into matrices for Muon and the rest (embeddings, norms, biases, heads) for AdamW."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in named:
        hidden = parameter.ndim == 2 and "embed" not in name and "head" not in name
        (matrices if hidden else rest).append(parameter)
    return matrices, rest


class MuonAdamW:
    """The two optimisers as one, with a common schedule factor on both learning rates."""

    def __init__(
        self,
        named: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        matrix_rate: float,
        other_rate: float,
    ) -> None:
        named = list(named)
        matrices, rest = split_parameters(named)
        # Positions start small beside the patches; at the others' pace they stay unseen.
        positions = [parameter for name, parameter in named if "position" in name]
        others = [p for p in rest if not any(p is position for position in positions)]
        groups = [{"params": others, "scale": 1.0}]
        if positions:
            groups.append({"params": positions, "scale": POSITION_SCALE})
        self.rates = (matrix_rate, other_rate)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=matrix_rate),
            torch.optim.AdamW(groups, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.parameters = matrices + rest

    def step(self, factor: float = 1.0, clip: float = 1.0) -> float:
        """Clip, update with both rates times ``factor``, clear; return the gradient's norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> dict[str, object]:
        """Return the state of both optimisers."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` returned."""
        saved = state["optimizers"]
        assert isinstance(saved, list)
        for optimizer, item in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(item)
