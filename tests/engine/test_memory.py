"""What the operating system says of free memory, and what keys and values take of it."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llavakit.engine import memory
from llavakit.engine.arena import KVArena
from llavakit.engine.config import EngineConfig
from llavakit.engine.resident import concurrency, kv_budget

GIB = 1 << 30
MEMINFO = f"MemTotal: {16 << 20} kB\nMemFree: 100 kB\nMemAvailable: {8 << 20} kB\n"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return written(tmp_path / "proc", {"meminfo": MEMINFO})


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def test_without_a_container_the_machine_decides(proc: Path, groups: Path) -> None:
    assert memory.available(proc, groups) == 8 * GIB
    assert memory.total(proc, groups) == 16 * GIB


def test_limit_of_a_container_counts_without_files_that_can_be_dropped(
    proc: Path, groups: Path
) -> None:
    written(proc, {"self/cgroup": "0::/a/b\n"})
    stat = f"anon 7\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n"
    group = {"memory.max": f"{6 * GIB}\n", "memory.current": f"{3 * GIB}\n", "memory.stat": stat}
    written(groups / "a" / "b", group)
    assert memory.available(proc, groups) == 4 * GIB
    assert memory.total(proc, groups) == 6 * GIB


def test_a_group_further_up_may_be_the_tighter_one(proc: Path, groups: Path) -> None:
    written(proc, {"self/cgroup": "0::/a/b\n"})
    written(groups / "a" / "b", {"memory.max": "max\n", "memory.current": "5\n"})
    written(groups / "a", {"memory.max": f"{2 * GIB}\n", "memory.current": f"{GIB}\n"})
    assert memory.available(proc, groups) == GIB


@pytest.mark.parametrize("place", ["memory/docker/x", "memory"])
def test_version_one_is_read_where_its_group_or_its_root_is_mounted(
    proc: Path, groups: Path, place: str
) -> None:
    written(proc, {"self/cgroup": "5:cpu:/docker/x\n4:memory:/docker/x\n0::/\n"})
    group = {
        "memory.limit_in_bytes": f"{3 * GIB}\n",
        "memory.usage_in_bytes": f"{2 * GIB}\n",
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
    }
    written(groups / place, group)
    assert memory.available(proc, groups) == 2 * GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(proc: Path, groups: Path) -> None:
    written(proc, {"self/cgroup": "0::/\n"})
    written(groups, {"memory.max": "1000\n", "memory.current": "2000\n"})
    assert memory.available(proc, groups) == 0


@pytest.mark.parametrize("text", ["", "nonsense", "MemAvailable:", "0::", ":::\n::", "4:memory"])
def test_files_that_say_nothing_are_passed_over(tmp_path: Path, text: str) -> None:
    proc = written(tmp_path / "p", {"meminfo": text, "self/cgroup": text})
    assert memory.available(proc, tmp_path / "none") > 0


def test_without_files_and_sysconf_a_constant_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sysconf")
    assert memory.available(tmp_path, tmp_path) == memory.UNKNOWN
    assert memory.total(tmp_path, tmp_path) is None


def test_pages_of_mapped_files_are_counted_once(tmp_path: Path) -> None:
    maps = (
        "1000-3000 r--p 00000000 fe:00 77 /models/a b.safetensors\n"
        "3000-9000 rw-p 00000000 00:00 0\n"
    )
    proc = written(tmp_path, {"self/maps": maps})
    stretches = [(0x2000, 0x2000), (0x2000, 0x2000), (0x5000, 0x100), (0, 0x10)]
    assert memory.in_files(stretches, proc) == 0x1000
    assert memory.in_files(stretches, tmp_path / "none") == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are Linux's")
def test_a_tensor_in_a_file_is_found_and_one_in_memory_is_not(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 20))
    with file.open("r+b") as opened:
        mapped = torch.frombuffer(mmap.mmap(opened.fileno(), 0), dtype=torch.uint8)
    plain = torch.zeros(1 << 20, dtype=torch.uint8)
    found = [memory.in_files([(one.data_ptr(), one.nbytes)]) for one in (mapped, plain)]
    assert found == [1 << 20, 0]


def fake_model(dtype: torch.dtype = torch.float32) -> Any:
    hf = torch.nn.Linear(4, 4)
    cpu = torch.device("cpu")
    return SimpleNamespace(
        layers=2, kv_heads=2, head_dim=8, dtype=dtype, layer_devices=[cpu] * 2, hf=hf
    )


EACH = KVArena.bytes_per_token(2, 2, 8, torch.float32)


@given(
    free=st.integers(-GIB, 64 * GIB),
    context=st.integers(1, 40_000),
    concurrency=st.integers(1, 200),
)
def test_automatic_budget_is_half_of_what_is_free_within_its_bounds(
    free: int, context: int, concurrency: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available", lambda: free)
        config = EngineConfig("m", max_concurrency=concurrency)
        slots = kv_budget(fake_model(), config, context)
    assert context <= slots <= max(memory.LEAST_CONTEXTS, concurrency) * context
    if slots > context:
        assert slots * EACH <= free / 2
    if slots < max(memory.LEAST_CONTEXTS, concurrency) * context and slots > context:
        assert (slots + 1) * EACH > free / 2


def test_sixteen_bits_hold_twice_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    config = EngineConfig("m")
    slots = [kv_budget(fake_model(kind), config, 500) for kind in (torch.float32, torch.bfloat16)]
    assert slots == [(1 << 19) // EACH, (1 << 20) // EACH]


def test_given_bytes_are_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert kv_budget(fake_model(), EngineConfig("m", kv_cache_bytes=10 * EACH), 4096) == 10


@given(slots=st.integers(1, 1 << 22), context=st.integers(1, 40_000))
def test_concurrency_of_a_gpu_is_what_the_arena_holds(slots: int, context: int) -> None:
    found = memory.concurrency(slots, context, on_gpu=True)
    assert memory.LEAST_CONCURRENCY <= found <= memory.MOST_CONCURRENCY
    if found > memory.LEAST_CONCURRENCY:
        assert found * min(context, memory.TYPICAL_TOKENS) <= slots
    assert memory.concurrency(slots, context, on_gpu=False) == 32


@pytest.mark.parametrize(
    ("gib", "bytes_per_slot", "context", "expected"),
    [
        (1, 512 << 10, 4096, 8),  # a 7B where nearly nothing is left: fewer run at once
        (8, 512 << 10, 4096, 16),  # a 7B on 24 GB
        (56, 512 << 10, 4096, 112),  # on 80 GB
        (106, 512 << 10, 4096, 212),  # on 141 GB
        (106, 128 << 10, 32768, 256),  # with grouped heads
        (8, 512 << 10, 512, 32),  # no request takes more than its context
    ],
)
def test_concurrency_of_usual_gpus(
    gib: int, bytes_per_slot: int, context: int, expected: int
) -> None:
    slots = memory.kv_slots(
        (gib << 30) // bytes_per_slot, context, memory.planned_contexts(context, on_gpu=True)
    )
    assert memory.concurrency(slots, context, on_gpu=True) == expected


@given(context=st.integers(1, 40_000))
def test_an_arena_may_grow_until_the_most_requests_fit(context: int) -> None:
    contexts = memory.planned_contexts(context, on_gpu=True)
    slots = memory.kv_slots(1 << 40, context, contexts)
    assert memory.concurrency(slots, context, on_gpu=True) == memory.MOST_CONCURRENCY
    assert slots >= memory.CONCURRENCY * context
    assert memory.planned_contexts(context, on_gpu=False) == memory.CONCURRENCY


def on_cuda() -> Any:
    model = fake_model(torch.bfloat16)
    model.layer_devices = [torch.device("cuda", 0)] * 2
    return model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 40),
        ({"max_concurrency": 5}, 5),
        ({"kv_cache_bytes": 20 * 1024 * EACH // 2}, 20),
    ],
)
def test_asked_concurrency_goes_before_that_of_the_memory(
    settings: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 40 * 1024 * EACH // 2 / 0.85 + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    config = EngineConfig("m", **settings)
    slots = kv_budget(on_cuda(), config, 4096)
    assert concurrency(on_cuda(), config, slots, 4096) == expected
    assert concurrency(fake_model(), config, slots, 4096) == settings.get("max_concurrency", 32)
