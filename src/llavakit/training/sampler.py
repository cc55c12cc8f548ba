"""The order of examples: batches of one kind, and of like lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class ExampleOrder(Sampler[int]):
    """Every index once an epoch, in an order that depends on seed and epoch alone.

    With groups, as in the original (``group_by_modality_length``): what one step takes on all
    devices has images, or has none, and is of like lengths, so that little is padded; the
    longest go to different devices. What is left over of both kinds makes the last steps.

    Args:
        lengths: tokens of each example, negative for those without images.
        step: examples of one step, over all devices.
        device: examples that one device takes at once.
        seed: of the order.
        grouped: whether there are groups.
    """

    def __init__(
        self, lengths: Sequence[int], *, step: int, device: int, seed: int, grouped: bool
    ) -> None:
        self._lengths = lengths
        self._step = step
        self._device = device
        self._seed = seed
        self._grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self.epoch}")
        indices = list(range(len(self._lengths)))
        rng.shuffle(indices)
        if not self._grouped:
            return iter(indices)
        steps: list[list[int]] = []
        rest: list[int] = []
        for with_pictures in (True, False):
            kind = [one for one in indices if (self._lengths[one] > 0) == with_pictures]
            whole = len(kind) - len(kind) % self._step
            rest += kind[whole:]
            # Sorted within windows, so that which examples meet changes with the epoch.
            window = 16 * self._step
            for start in range(0, whole, window):
                part = sorted(
                    kind[start : min(start + window, whole)],
                    key=lambda one: -abs(self._lengths[one]),
                )
                steps += [part[at : at + self._step] for at in range(0, len(part), self._step)]
        rng.shuffle(steps)
        return iter([one for step in steps for one in self._spread(step)] + rest)

    def _spread(self, step: list[int]) -> list[int]:
        """The examples of a step, dealt out: each device's share is of all its lengths."""
        shares = max(1, len(step) // self._device)
        return [one for share in range(shares) for one in step[share::shares]]
