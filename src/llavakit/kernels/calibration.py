"""Up to how many rows the compiled kernels multiply plain matrices: measured at load, and kept.

From some number of rows on a matrix library is faster, and which number that is depends on the
processor, the threads and the shapes. Matrices that a step multiplies the same way are a *group*
(those of a decoder layer; the output layer), and get one number by the sum of their times. Numbers
are kept in a file for each machine. Answers are the same but for rounding, whatever is found.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llavakit.kernels import native
from llavakit.kernels.native import MOST_ROWS, Kernels, kernels, threads
from llavakit.kernels.products import Weights

log = logging.getLogger(__name__)

SWITCH = "LLAVAKIT_CALIBRATION"
"""Environment variable: ``0`` reads and measures nothing, and takes the default everywhere."""

CANDIDATES = (1, 2, 4, 8, 16, MOST_ROWS, 64)
"""Rows that are tried; 0 is found where the compiled kernels lose with a single one."""

MARGIN = 0.1
"""Share of time by which the default must be beaten, so that noise decides nothing."""

BUDGET = 1.0
"""Seconds for all groups of a model; what does not get its turn takes the default."""

LEAST_BYTES = 2 << 20
"""Bytes of a group's largest matrix: with smaller ones there is no time to gain."""

TRIES = 2
"""Tries of each way and candidate; the best one counts."""

AGREED = 2
"""Measurements that must agree before the default is left: one busy moment is not enough."""

SLICE = 2 << 20
"""Weights that a try multiplies: times grow with a matrix's rows, so a slice of them is enough. The
library is up to 15% faster with a slice than with the whole matrix, so that the default is left
less often than it might be, and not more."""

SLICES = 4
"""Slices of a matrix that take turns, so that small caches do not hold what a step would not find
there."""

ROWS_A_THREAD = 64
"""Fewest rows of a slice: with fewer, threads would share it otherwise than the whole matrix."""

VERSION = 1
"""Version of the way of measuring; numbers of other versions are passed over."""

Group = Sequence[Weights]
Seconds = Callable[[int], tuple[float, float]]
"""Rows -> seconds of the compiled kernels, and of the matrix library."""
Check = Callable[[], None]
"""Raises :class:`TimeIsUpError`."""
Measure = Callable[[Group, Check], Seconds]
"""How a group's times are found, and what to call before each try."""
Found = dict[str, dict[int, int]]
"""Group's name -> number of threads -> rows."""


class TimeIsUpError(Exception):
    """The time for measuring is spent."""


def calibrate(
    groups: Iterable[Group],
    measure: Measure | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Set up to how many rows matrices go to the compiled kernels.

    It holds for the number of threads that is set now, and for those that were measured here
    before; with any other number, matrices take the default.

    Args:
        groups: matrices that a step multiplies the same way. Packed and small ones keep the
            default.
        measure: how times are found; by itself :func:`timed`.
        clock: returns the time in seconds.
    """
    library = kernels()
    if library is None or os.environ.get(SWITCH, "") == "0":
        return
    alike: dict[str, list[Group]] = {}
    for group in groups:
        if _is_worth_it(group):
            alike.setdefault(name_of(group), []).append(group)
    if not alike:
        return
    machine = _machine(library)
    known = read(machine)
    count = threads()
    missing = {name: one[0] for name, one in alike.items() if count not in known.get(name, {})}
    fresh = _measured(missing, measure or functools.partial(timed, library), clock)
    if fresh:
        known = write(machine, {name: {count: rows} for name, rows in fresh.items()})
    for name, same in alike.items():
        for group in same:
            for weights in group:
                weights.limit_rows(known.get(name, {}))


def most_rows(seconds: Seconds) -> int:
    """Find the rows up to which the compiled kernels are faster: a candidate, or 0.

    Begins at the default and leaves it for a clear gain only. Where they win with some rows they
    are taken to win with fewer.
    """

    def loses(rows: int) -> bool:
        return all(_gain(seconds, rows) < 1 - MARGIN for _ in range(AGREED))

    def wins(rows: int) -> bool:
        return all(_gain(seconds, rows) > 1 + MARGIN for _ in range(AGREED))

    if loses(MOST_ROWS):
        smaller = (rows for rows in reversed(CANDIDATES) if rows < MOST_ROWS)
        return next((rows for rows in smaller if not loses(rows)), 0)
    larger = (rows for rows in CANDIDATES if rows > MOST_ROWS)
    return max((MOST_ROWS, *itertools.takewhile(wins, larger)))


def _gain(seconds: Seconds, rows: int) -> float:
    """How many times faster the compiled kernels are."""
    compiled, library = seconds(rows)
    return library / compiled


def _is_worth_it(group: Group) -> bool:
    plain = [one.data for one in group if isinstance(one.data, Tensor)]
    return len(plain) == len(group) > 0 and max(one.nbytes for one in plain) >= LEAST_BYTES


def name_of(group: Group) -> str:
    """Return types and shapes as a name: groups of one name take the same time."""
    return " ".join(
        f"{one.data.dtype}:{one.rows}x{one.columns}"
        for one in group
        if isinstance(one.data, Tensor)
    )


def _measured(
    groups: Mapping[str, Group], measure: Measure, clock: Callable[[], float]
) -> dict[str, int]:
    """Measure in turns, as long as there is time; later loads go on with the rest."""
    deadline = clock() + BUDGET
    found: dict[str, int] = {}

    def check() -> None:
        if clock() >= deadline:
            raise TimeIsUpError

    for name, group in groups.items():
        began = clock()
        try:
            check()
            found[name] = most_rows(measure(group, check))
        except TimeIsUpError:
            if not found:
                # It had the whole budget, and would spend it at each load again.
                found[name] = MOST_ROWS
            log.info("calibration ran out of time; the rest takes the default")
            break
        log.info(
            "up to %d rows go to the compiled kernels with %s (%d threads, found in %.2f s)",
            *(found[name], name, threads(), clock() - began),
        )
    return found


def timed(library: Kernels, group: Group, check: Check) -> Seconds:
    """Prepare the measuring of a group by slices of its matrices.

    Args:
        library: compiled.
        group: plain matrices.
        check: is called before each product.
    """
    slices = [_slices(weights) for weights in group]
    with torch.inference_mode():
        for several in slices:
            for one in several:
                check()
                # Fetches it from the disk where it is mapped, and sets the matrix library up.
                one.many(torch.ones(1, one.columns))
    return functools.partial(_seconds, library, group, slices, check)


def _slices(weights: Weights) -> list[Weights]:
    """Views of some of the matrix's rows, all of one size."""
    data = weights.data
    assert isinstance(data, Tensor)
    rows = min(weights.rows, max(SLICE // weights.columns, ROWS_A_THREAD * threads(), 1))
    count = min(SLICES, weights.rows // rows)
    return [Weights(data[n * rows : (n + 1) * rows]) for n in range(count)]


@torch.inference_mode()
def _seconds(
    library: Kernels, group: Group, slices: Sequence[Sequence[Weights]], check: Check, rows: int
) -> tuple[float, float]:
    """The group's products with so many rows, by either way; see :data:`Seconds`."""
    # Numbers do not matter, and random ones would change the state of the user's generator.
    xs = [torch.ones(rows, weights.columns) for weights in group]
    best = {way: [float("inf")] * len(group) for way in (False, True)}
    turn = 0
    for number in range(TRIES):
        # By turns first, because processors get faster and slower while they compute.
        for natively in (False, True) if number % 2 else (True, False):
            # One way through all matrices, then the other with other slices: neither finds in a
            # cache what the other has just read.
            for i, (several, x) in enumerate(zip(slices, xs, strict=True)):
                check()
                seconds = _once(library, several[turn % len(several)], x, natively)
                best[natively][i] = min(best[natively][i], seconds)
            turn += 1
    shares = [
        weights.rows / several[0].rows for weights, several in zip(group, slices, strict=True)
    ]
    compiled, by_library = (
        sum(share * one for share, one in zip(shares, best[way], strict=True))
        for way in (True, False)
    )
    return compiled, by_library


def _once(library: Kernels, weights: Weights, x: Tensor, natively: bool) -> float:
    """Seconds of one product."""
    began = time.perf_counter()
    if natively:
        library.linear(x, weights.native)
    else:
        weights.many(x)
    return time.perf_counter() - began


# The file


def path_of(machine: Mapping[str, Any]) -> Path:
    """Return where a machine's numbers are kept: below ``XDG_CACHE_HOME``, or ``~/.cache``.

    A home may be shared by machines, so that each has a file of its own.

    Raises:
        RuntimeError: there is no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = named if named.is_absolute() else Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()
    return folder / "llavakit" / f"kernels-{digest[:16]}.json"


def read(machine: Mapping[str, Any]) -> Found:
    """Read what was found on this machine before; nothing where the file is missing or broken."""
    try:
        record = json.loads(path_of(machine).read_bytes())
        if record["machine"] != machine:
            return {}
        return {
            str(name): {int(count): _checked(rows) for count, rows in limits.items()}
            for name, limits in record["found"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        log.info("kept calibrations cannot be read and are found again: %r", error)
        return {}


def _checked(rows: Any) -> int:
    if type(rows) is not int or rows not in (0, *CANDIDATES):
        raise ValueError(f"{rows!r} is not a candidate")
    return rows


def write(machine: Mapping[str, Any], fresh: Found) -> Found:
    """Add to the machine's file, which appears complete or not at all.

    Two processes that write at once may lose a number, which is then found again.

    Returns:
        All that is known now, written or not.
    """
    known = read(machine)
    for name, limits in fresh.items():
        known[name] = known.get(name, {}) | limits
    try:
        path = path_of(machine)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            part.write_text(json.dumps({"machine": machine, "found": known}), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.info("calibrations cannot be kept and are found again at each load: %s", error)
    return known


def _machine(library: Kernels) -> dict[str, str | int]:
    """Everything but shapes and threads on which times depend."""
    return {
        "version": VERSION,
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "kernels": library.name,
        "content": _content(library.name),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    # x86 reports its model's name, ARM the numbers of its maker and part.
    names = ("model name", "CPU implementer", "CPU part")
    lines = {line.partition(":")[::2] for line in text.splitlines() if line.startswith(names)}
    found = sorted(f"{name.strip()} {value.strip()}" for name, value in lines)
    return ", ".join((platform.machine(), *(found or [platform.processor()])))


def _content(name: str) -> str:
    """A digest of the compiled kernels: others may be faster or slower."""
    digest = hashlib.sha256()
    for path in sorted(Path(native.__file__).parent.glob(f"_cpu_{name}.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
