"""The path that a GPU takes, beside transformers: the same tests on ``cuda`` and, forced, on a CPU.

On a CPU the kernels of the device are stood in for by torch, with the same calls; everything else
(layouts, static steps, merged pieces, tokens that only the device knows) is the same code.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import llavakit
from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of, pass_kernel
from llavakit.engine.extents import Extent
from llavakit.kernels.native import SWITCH, kernels
from llavakit.model.loader import load_reader, load_weights
from tests.engine.oracle import submitted
from tests.families import FAMILIES, TinyFamily, tiny_family
from tests.model.test_families import CONVERSATIONS, messages
from tests.tiny import TinyModel, tiny_llava

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


@pytest.fixture(autouse=True)
def no_kernels_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(SWITCH, "0")
    kernels.cache_clear()
    yield
    kernels.cache_clear()


@pytest.mark.slow  # engine/test_oracle.py has the path for one family
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key", list(FAMILIES))
def test_all_families_answer_as_transformers_does(key: str, device: str, tmp_path, monkeypatch):
    monkeypatch.setattr("llavakit.engine.decode.CAPTURE_AFTER", 3)
    family: TinyFamily = tiny_family(tmp_path / "family", key)
    settings = {"static_decode": True, "prefill_chunk": 24, "lookahead": True}
    backend = llavakit.load(family.path, device=device, dtype="float32", **settings)
    conversations = list(CONVERSATIONS.values())
    for round_ in (conversations, conversations[:3]):  # again, behind what was kept
        running = [(said, *submitted(backend, messages(said), 16)) for said in round_]
        for said, stream, sequence in running:
            for _ in stream:
                pass
            assert sequence.tokens[sequence.prompt_length :] == family.generate(said, 16)
    stats = backend.stats()
    backend.close()
    assert stats["halved_steps"] == stats["failed"] == 0
    if device == "cuda":
        assert stats["attention_kernel"] == "looped", "flash attention has no fp32"
    assert stats["captured_steps"] + stats["static_steps"] > 10


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_llava(tmp_path_factory.mktemp("wide-llava"), hidden=128)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.float().cpu() - right).norm() / right.norm())


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_logits_are_as_near_to_fp32_as_transformers_own(wide: TinyModel, device: str):
    """Teacher-forced over a prefill, a chunk behind a prefix, and single tokens."""
    from transformers import AutoModelForImageTextToText

    ids = torch.arange(5, 65)
    peer = AutoModelForImageTextToText.from_pretrained(wide.path, dtype=torch.bfloat16)
    llava = load_weights(load_reader(wide.path), device=device, dtype="bfloat16")
    arena = KVArena(llava.layer_devices, 200, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    kernel = pass_kernel(arena, llava.heads, llava.kv_heads, llava.head_dim)
    found = []
    with torch.inference_mode():
        right = wide.model(input_ids=ids[None]).logits[0].float()
        theirs = error(peer.eval().to(device)(input_ids=ids[None].to(device)).logits[0], right)
        place = 0
        prefix: tuple[Extent, ...] = ()
        for slot, start, count in (
            (100, 0, 20),
            (10, 0, 20),
            *((10, 20 + n, 1) for n in range(20)),
        ):
            places = torch.arange(place, place + count)
            attend = attention_of(arena, [Row(prefix, slot, start, count)], kernel)
            embedded = llava.embed(ids[places].to(device))
            found.append(llava.logits(llava.decode(embedded, places.to(device), attend)))
            place += count
            prefix = (Extent(100, 20),)
    assert 0 < error(torch.cat(found), right) < 1.1 * theirs
