"""From the host to the device without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy host values to the device.

    To CUDA through pinned memory and not blocking: a plain copy would wait until the device
    has done all that it was given, once for every small tensor. torch keeps the pinned
    memory until the copy is made.
    """
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
