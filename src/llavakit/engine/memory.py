"""Memory that is free to use, read from the operating system. Knows no torch and no models.

Files are named by arguments, so that a test can bring its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")

UNKNOWN = 8 << 30
"""Bytes that are taken for available where the system does not say (Windows)."""

KV_SHARE = 2
"""Keys and values take at most 1 / KV_SHARE of what is free."""

LEAST_CONTEXTS = 4
"""Contexts that an automatic arena may hold, however few requests run at once."""

CONCURRENCY = 32
"""Sequences that run at once where a batch is bound by computing: on a processor."""

TYPICAL_TOKENS = 1024
"""Slots of a usual request: one image (576 tokens in LLaVA 1.5), a question, an answer.

With 512 tokens, the default, reserved for the answer it is a little more. A request that
needs more waits for free slots of the arena, whatever the number of sequences.
"""

LEAST_CONCURRENCY = 8
MOST_CONCURRENCY = 256
"""vLLM's default, too. Every batch size up to it is captured (see ``engine.decode``)."""


def available(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that can be used without swapping, by the machine and its container.

    Linux reports it in ``/proc/meminfo``; control groups (version 1 and 2) may limit it further.
    Elsewhere it is what ``os.sysconf`` counts as free, or half of all memory, or ``UNKNOWN``.

    Args:
        proc: where ``meminfo`` and ``self/cgroup`` lie.
        cgroups: where control groups are mounted.
    """
    machine = _meminfo(proc, "MemAvailable")
    if machine is None:
        machine = _sysconf("SC_AVPHYS_PAGES")
    if machine is None:
        whole = _sysconf("SC_PHYS_PAGES")
        machine = UNKNOWN if whole is None else whole // 2
    return max(0, min([machine, *_groups_room(proc, cgroups)]))


def total(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes of main memory, or of the container's limit; None if unknown."""
    machine = _meminfo(proc, "MemTotal") or _sysconf("SC_PHYS_PAGES")
    limits = [limit for limit, _, _ in _groups(proc, cgroups)]
    return min([*limits, *([] if machine is None else [machine])], default=None)


def gpus() -> list[int]:
    """Free bytes of each NVIDIA GPU, as ``nvidia-smi`` reports them; empty without a GPU.

    Asking torch would load it, and take memory on the GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    query = [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) << 20 for line in run.stdout.split() if line.isdigit()]


def in_files(stretches: Iterable[tuple[int, int]], proc: Path = PROC) -> int:
    """Return how many of these bytes are pages of mapped files.

    The system counts such pages as available, since it can drop and read them again; weights that
    are read for every token must not be dropped.

    Args:
        stretches: address and number of bytes of each; they may repeat.
        proc: where ``self/maps`` lies.
    """
    try:
        lines = (proc / "self" / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    files = []
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            first, last = (int(address, 16) for address in addresses.split("-"))
            files.append((first, last))
    found = 0
    for start, size in set(stretches):
        found += sum(max(0, min(start + size, last) - max(start, first)) for first, last in files)
    return found


def kv_room(free: int) -> int:
    """Return the bytes that keys and values may take of what is free: half of it, at least 0."""
    return max(0, free) // KV_SHARE


def kv_slots(affordable: int, context_length: int, max_concurrency: int) -> int:
    """Return the slots of an automatic arena: at least one context, and no more than is usable.

    Few requests fill their context, so one context for each leaves much for the prefixes kept of
    earlier ones; for the same reason there are four contexts where fewer requests run at once.

    Args:
        affordable: slots that fit into the free memory.
        context_length: slots of one context.
        max_concurrency: most sequences that run at once.
    """
    usable = max(LEAST_CONTEXTS, max_concurrency) * context_length
    return max(context_length, min(usable, affordable))


def planned_contexts(context_length: int, on_gpu: bool) -> int:
    """Return how many contexts an automatic arena may hold with automatic concurrency.

    Automatic concurrency is derived from the arena, so the arena cannot be derived from it: it may
    hold as many usual requests as ever run at once, or as many full contexts as on a processor.

    Args:
        context_length: slots of one context.
        on_gpu: whether the model runs on CUDA.
    """
    if not on_gpu:
        return CONCURRENCY
    slots = MOST_CONCURRENCY * min(TYPICAL_TOKENS, context_length)
    return max(CONCURRENCY, -(-slots // context_length))


def concurrency(slots: int, context_length: int, on_gpu: bool) -> int:
    """Return how many sequences run at once by default: on CUDA, what the arena has slots for.

    A step of a GPU takes hardly longer for hundreds of sequences than for one, since it reads the
    same weights. A processor is busy with computing long before.

    Args:
        slots: slots of the arena.
        context_length: slots of one context; no request takes more.
        on_gpu: whether the model runs on CUDA.
    """
    if not on_gpu:
        return CONCURRENCY
    fitting = slots // min(TYPICAL_TOKENS, context_length)
    return min(MOST_CONCURRENCY, max(LEAST_CONCURRENCY, fitting))


def _meminfo(proc: Path, name: str) -> int | None:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) << 10
    return None


def _sysconf(pages: str) -> int | None:
    try:
        found = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None
    return found if found > 0 else None


def _groups_room(proc: Path, cgroups: Path) -> list[int]:
    # Pages of files in use are counted as used by the group and can be dropped, as in MemAvailable.
    return [limit - used + files for limit, used, files in _groups(proc, cgroups)]


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int, int]]:
    """Limit, use, and use by files, of every control group above this process that has a limit."""
    try:
        text = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            names, root = ("memory.max", "memory.current", ""), cgroups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            root = cgroups / "memory"
        else:
            continue
        # Inside a container the group is often mounted as the root, whatever its name is outside.
        inner = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(inner), -1, -1):
            group = root.joinpath(*inner[:depth])
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None:
                yield limit, used, _files(group / "memory.stat", names[2])


def _number(file: Path) -> int | None:
    """The number in a file; None if there is none ("max" is no limit)."""
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _files(stat: Path, prefix: str) -> int:
    try:
        lines = stat.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    counts = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    names = (f"{prefix}active_file", f"{prefix}inactive_file")
    return sum(int(counts.get(name, "0")) for name in names if counts.get(name, "0").isdigit())
