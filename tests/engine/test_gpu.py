"""What only a GPU can show; skipped without one. Not run anywhere yet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, SegmentAttention
from llavakit.engine.config import EngineConfig
from llavakit.engine.decode import StaticDecode, inductor
from llavakit.engine.engine import Engine
from llavakit.engine.extents import Extent
from llavakit.engine.graphs import CudaGraphs
from llavakit.engine.pieces import GATHERED, VARLEN, Kernel, working_kernel
from llavakit.model.llava import Llava
from llavakit.model.loader import load_reader, load_weights
from tests.engine.asking import PICTURES, WORDS, ask
from tests.tiny import TinyModel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # compilers say much
]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def llava(tiny: TinyModel, request: pytest.FixtureRequest) -> Llava:
    return load_weights(load_reader(tiny.path), device=str(GPU), dtype=request.param)


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (56, 8), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_takes_pieces_that_lie_anywhere(
    heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    if torch.cuda.get_device_capability(GPU) < (8, 0):
        pytest.skip("flash attention needs Ampere or newer")
    assert working_kernel(heads, kv_heads, 128, dtype, GPU) is VARLEN


def test_without_flash_attention_pieces_are_gathered() -> None:
    assert working_kernel(32, 8, 128, torch.float32, GPU) is GATHERED


@pytest.mark.parametrize("compile", [None, inductor], ids=["as it is", "compiled"])
@torch.inference_mode()
def test_captured_steps_equal_the_eager_pass(llava: Llava, compile: Any) -> None:
    arena = KVArena(llava.layer_devices, 3000, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    for slots in (*arena.keys, *arena.values):
        slots.normal_()
    kernel = working_kernel(4, llava.kv_heads, llava.head_dim, llava.dtype, GPU)
    assert isinstance(kernel, Kernel)
    decode = StaticDecode(
        llava, arena, kernel, capture=CudaGraphs(GPU), compile=compile, after=1, fill=64
    )
    prefix = (Extent(2000, 600), Extent(2700, 9))
    tolerance = 0.1 if llava.dtype == torch.bfloat16 else 1e-3
    for batch in (3, 1, 2, 5):
        for start in range(20, 24):
            rows = [Row(prefix[: n % 3], 100 * n, start + n, 1) for n in range(batch)]
            tokens = [10 + n for n in range(batch)]
            logits = decode(rows, tokens)
            assert logits is not None
            logits = logits.clone()  # the eager pass may come in between, the next step may not
            places = torch.tensor([row.seen for row in rows], device=GPU)
            hidden = llava.decode(
                llava.embed(torch.tensor(tokens, device=GPU)), places, SegmentAttention(arena, rows)
            )
            expected = llava.logits(hidden)
            scale = float(expected.abs().max())
            torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=tolerance)
    assert decode.steps["captured"] >= 8


def test_engine_captures_and_its_host_waits_once_a_step(tiny: TinyModel, tmp_path: Path) -> None:
    config = EngineConfig(str(tiny.path), device=str(GPU), dtype="bfloat16")
    engine = Engine(load_reader(tiny.path), config)
    for _ in range(3):
        drawn = ask(engine, WORDS[:1], PICTURES[:1], 60)
    before = engine.stats()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            again = ask(engine, WORDS[:1], PICTURES[:1], 60)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stats = engine.stats()
    engine.close()
    assert again == drawn
    assert stats["captured_steps"] - before["captured_steps"] >= len(again[0]) - 2
    waited = [one for one in waits if "synchroniz" in str(one.message)]
    assert len(waited) <= stats["steps"] - before["steps"] + 2
