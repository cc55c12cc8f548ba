"""How many operations a step launches in each layer, counted where a GPU's path is chosen.

On the meta device every operator is dispatched as on a GPU and computes nothing, so that flash
attention can be counted, too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import SegmentAttention
from llavakit.engine.extents import Extent
from llavakit.engine.layout import Row
from llavakit.engine.pieces import LOOPED, VARLEN, Kernel
from llavakit.model.llava import Llava
from tests.tiny import TinyModel

MOST = 20
"""Operations of a layer, whatever the mixture."""

FREE = {
    *("view", "_unsafe_view", "_reshape_alias", "reshape", "as_strided", "alias", "detach"),
    *("transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "slice", "select"),
    *("split", "split_with_sizes", "chunk", "unbind", "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
}
"""Views and empty tensors: the device does nothing for them."""

IMAGE = Extent(0, 590)
SYSTEM = Extent(24000, 35)
DECODES = [Row((), 700 * n, 600 + n, 1) for n in range(31)]
STEPS = {
    "31 decodes, nothing shared": DECODES,
    "31 decodes behind one image": [Row((IMAGE,), 700 + 50 * n, 20, 1) for n in range(31)],
    "a prefill": [Row((), 0, 0, 597)],
    "a chunk of a prefill": [Row((), 0, 300, 297)],
    "a prefill behind a cached system text": [Row((SYSTEM,), 25000, 0, 562)],
    "31 decodes and a prefill": [*DECODES, Row((), 25000, 0, 597)],
    "29 decodes and three prefills": [
        *DECODES[:29],
        *(Row((), 22000 + 700 * n, 0, 597) for n in range(3)),
    ],
    "decodes behind images and prefills behind a system text": [
        *(Row((SYSTEM, IMAGE), 700 + 50 * n, 20, 1) for n in range(20)),
        *(Row((SYSTEM,), 25000 + 600 * n, 0, 562) for n in range(4)),
    ],
}


class Count(TorchDispatchMode):
    """Counts operators, but those that are free."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def llava(tiny: TinyModel) -> Llava:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tiny.path))
    return Llava(model)


@pytest.mark.parametrize("kernel", [VARLEN, LOOPED], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("step", STEPS)
@torch.inference_mode()
def test_a_layer_takes_few_operations_whatever_the_mixture(
    step: str, kernel: Kernel, llava: Llava
) -> None:
    rows = STEPS[step]
    meta = torch.device("meta")
    arena = KVArena([meta] * llava.layers, 30000, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    tokens = sum(row.count for row in rows)
    hidden = torch.empty(tokens, llava.config.text_config.hidden_size, device=meta)
    places = torch.empty(tokens, dtype=torch.long, device=meta)
    attend = SegmentAttention(arena, rows, kernel)
    llava.decode(hidden, places, attend)  # lays the pass out on the device, once for all layers
    with Count() as count:
        result = llava.decode(hidden, places, attend)
    assert result.shape == hidden.shape
    attention = "_flash_attention_forward" if kernel is VARLEN else "attend_stretches"
    assert 1 <= count.seen[attention] / llava.layers <= 2
    assert count.seen["rotate_and_store"] == llava.layers
    assert sum(count.seen.values()) / llava.layers <= MOST, count.seen
