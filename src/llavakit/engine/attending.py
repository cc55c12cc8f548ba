"""What an engine attends by, and why not by something better: for the log and ``stats()``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llavakit.engine.decode import StaticDecode
from llavakit.engine.mixed import StaticMixed
from llavakit.engine.pieces import Kernel
from llavakit.kernels.fused import computed_by
from llavakit.kernels.native import kernels


@dataclass(frozen=True, slots=True)
class Attending:
    """The ways that an engine has found.

    Attributes:
        kernel: of passes of any kind; None is the processor's compiled one.
        static: runs steps that only decode, or None.
        mixed: runs short steps that prefill, or None.
        refused: kernels that were passed over, and why.
        device: of the model.
    """

    kernel: Kernel | None
    static: StaticDecode | None
    mixed: StaticMixed | None
    refused: dict[str, str]
    device: torch.device

    def __str__(self) -> str:
        name = self._name()
        if self.static is None:
            return f"{name}; decode runs eagerly"
        how = "captured and compiled" if self.static.compiles else "in static shapes"
        return f"{name}; decode by {self.static.kernel.name}, {how}"

    def _name(self) -> str:
        if self.kernel is not None:
            return self.kernel.name
        library = kernels()
        return "torch" if library is None else f"compiled ({library.name})"

    def stats(self) -> dict[str, Any]:
        """Names, counts of steps, and reasons, under the keys of ``Backend.stats``."""
        static = self.static
        steps = {} if static is None else static.steps
        return {
            "attention_kernel": self._name(),
            "decode_kernel": self._name() if static is None else static.kernel.name,
            "attention_refused": dict(self.refused),
            "fused_by": "" if self.kernel is None else computed_by(self.device),
            "static_steps": steps.get("static", 0),
            "captured_steps": steps.get("captured", 0),
            "compiled_steps": steps.get("compiled", 0),
            "static_mixed_steps": 0 if self.mixed is None else self.mixed.steps["static"],
            "captured_mixed_steps": 0 if self.mixed is None else self.mixed.steps["captured"],
            "compile_refused": None if static is None else static.compile_refused,
            "capture_refused": self._capture_refused(),
        }

    def _capture_refused(self) -> str | None:
        reasons = [one.capture_refused for one in (self.static, self.mixed) if one is not None]
        return next((reason for reason in reasons if reason is not None), None)
