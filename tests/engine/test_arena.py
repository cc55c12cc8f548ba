"""The arena in main memory takes what was written, and nothing for slots that never were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMITTED = """
import json, sys
import torch
from llavakit.engine.arena import KVArena

LAYERS, HEADS, DIM, TOKENS = 4, 8, 64, 1 << 16


def resident():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


def committed(starts):
    arena = KVArena([torch.device("cpu")] * LAYERS, TOKENS, HEADS, DIM, dtype=torch.float32)
    new = torch.ones(HEADS, 1, DIM)
    arena.keys[0].index_copy_(1, torch.tensor([0]), new)  # what torch itself takes at first use
    before = resident()
    for slots in (*arena.keys, *arena.values):
        for start in starts:
            slots.index_copy_(1, torch.tensor([start]), new)
    return resident() - before, sum(one.nbytes for one in (*arena.keys, *arena.values))


print(json.dumps([committed(starts) for starts in json.loads(sys.argv[1])]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/proc/self/smaps_rollup").exists(),
    reason="resident pages are counted by Linux",
)
def test_first_tokens_of_extents_commit_a_page_in_each_head_and_layer() -> None:
    counts = (1, 4)
    starts = [[number * 16_000 for number in range(extents)] for extents in counts]
    run = subprocess.run(
        [sys.executable, "-c", COMMITTED, str(starts)], capture_output=True, text=True, check=True
    )
    page = 4096
    for extents, (committed, whole) in zip(counts, json.loads(run.stdout), strict=True):
        assert whole > 1 << 30
        assert committed <= extents * 2 * 4 * 8 * page + (2 << 20)
