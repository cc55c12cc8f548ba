"""How many rows go to the compiled kernels is measured, kept, and never changes an answer."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llavakit
from llavakit import Message
from llavakit.kernels import calibration
from llavakit.kernels.calibration import (
    BUDGET,
    CANDIDATES,
    SWITCH,
    TimeIsUpError,
    calibrate,
    most_rows,
    name_of,
    path_of,
    read,
    write,
)
from llavakit.kernels.native import MOST_ROWS, Kernels
from llavakit.kernels.packing import pack
from llavakit.kernels.products import Weights
from llavakit.local import LocalBackend
from tests.engine.oracle import submitted
from tests.tiny import TinyModel

MACHINE = {"processor": "one", "kernels": "avx2"}
SHAPES = [(40, 16), (16, 24)]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own, and small matrices that are worth measuring."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(calibration, "LEAST_BYTES", 0)
    return tmp_path / "llavakit"


def group(*shapes: tuple[int, int]) -> tuple[Weights, ...]:
    return tuple(Weights(torch.ones(shape)) for shape in shapes or SHAPES)


def limit_of(weights: Weights) -> int:
    """The most rows of up to 200 that go to the compiled kernels."""
    return max((rows for rows in range(1, 201) if weights.has_native(rows)), default=0)


def crossing(at: float) -> Callable[[int], tuple[float, float]]:
    """Times of kernels that are faster below so many rows, and slower above."""
    return lambda rows: (rows / at, 1.0)


class Measure:
    """Times that are made up, and how often they were asked for."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at
        self.asked: list[str] = []

    def __call__(self, group, check):
        self.asked.append(name_of(group))

        def seconds(rows: int) -> tuple[float, float]:
            check()
            return crossing(self.at)(rows)

        return seconds


# The decision


@pytest.mark.parametrize(
    ("at", "rows"), [(1000, 64), (80, 64), (40, 32), (20, 16), (10, 8), (2, 2), (0.5, 0)]
)
def test_the_limit_is_the_last_candidate_that_wins(at, rows):
    assert most_rows(crossing(at)) == rows


@pytest.mark.parametrize("noise", [0.93, 1.0, 1.07])
def test_ties_and_noise_keep_the_default(noise):
    assert most_rows(lambda rows: (1.0, noise)) == MOST_ROWS


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_one_measurement_alone_does_not_move_the_default(gain):
    """As when the machine is busy for a moment, whichever it is."""
    for busy in range(4):
        said = iter(gain if turn == busy else 1.0 for turn in range(100))
        assert most_rows(lambda rows, said=said: (1.0, next(said))) == MOST_ROWS


@given(st.dictionaries(st.sampled_from(CANDIDATES), st.floats(0.01, 100)))
def test_whatever_is_measured_the_limit_is_a_candidate_or_nought(gains):
    assert most_rows(lambda rows: (1.0, gains.get(rows, 1.0))) in (0, *CANDIDATES)


# Matrices are told


def test_all_layers_of_a_shape_get_one_number_and_the_head_its_own(library: Kernels):
    layers, head = [group(), group()], group((50, 16))
    found = {name_of(layers[0]): 1000.0, name_of(head): 10.0}
    asked: list[str] = []

    def measure(group, check):
        asked.append(name_of(group))
        return crossing(found[name_of(group)])

    calibrate([*layers, head], measure)
    assert [limit_of(one) for layer in layers for one in layer] == [64] * 4
    assert limit_of(head[0]) == 8
    assert asked == list(found)


def test_shapes_types_and_threads_are_measured_each(library: Kernels):
    measure = Measure()
    calibrate([group((8, 4))], measure)
    calibrate([group((4, 8))], measure)
    calibrate([(Weights(torch.ones(8, 4, dtype=torch.bfloat16)),)], measure)
    assert len(set(measure.asked)) == len(measure.asked) == 3


def test_another_number_of_threads_has_its_own_limit_and_else_the_default(library: Kernels):
    before = torch.get_num_threads()
    one = group()
    try:
        torch.set_num_threads(1)
        calibrate([one], Measure(10))
        assert limit_of(one[0]) == 8
        torch.set_num_threads(2)
        assert limit_of(one[0]) == MOST_ROWS
        calibrate([one], Measure(1000))
        assert limit_of(one[0]) == 64
        torch.set_num_threads(1)
        assert limit_of(one[0]) == 8
    finally:
        torch.set_num_threads(before)


def test_packed_matrices_are_not_measured(library: Kernels):
    packed = (Weights(pack(torch.ones(40, 64), 8)),)
    measure = Measure(0.5)
    calibrate([packed], measure)
    assert not measure.asked and packed[0].has_native(10_000)


def test_small_matrices_take_the_default_and_leave_no_file(library: Kernels, monkeypatch, folder):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    one, measure = group((64, 64)), Measure(0.5)
    calibrate([one], measure)
    assert not measure.asked and limit_of(one[0]) == MOST_ROWS and not folder.exists()


def test_it_can_be_switched_off(library: Kernels, monkeypatch, folder):
    monkeypatch.setenv(SWITCH, "0")
    one, measure = group(), Measure(0.5)
    calibrate([one], measure)
    assert not measure.asked and limit_of(one[0]) == MOST_ROWS and not folder.exists()


def test_without_compiled_kernels_nothing_is_measured(in_torch: None, folder):
    measure = Measure(0.5)
    calibrate([group()], measure)
    assert not measure.asked and not folder.exists()


def test_real_times_give_a_candidate(library: Kernels):
    state = torch.get_rng_state()
    one = group((300, 70), (70, 300))
    calibrate([one])
    assert limit_of(one[0]) == limit_of(one[1]) and limit_of(one[0]) in (0, *CANDIDATES)
    assert torch.equal(torch.get_rng_state(), state)


# Time


class Clock:
    """Goes on by a second for each so many looks."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_what_does_not_get_its_turn_takes_the_default_and_is_found_next_time(library: Kernels):
    first, second = group(), group((50, 16))
    measure = Measure(10)
    clock = Clock(BUDGET / 12)  # enough for one of them
    calibrate([first, second], measure, clock)
    assert (limit_of(first[0]), limit_of(second[0])) == (8, MOST_ROWS)
    calibrate([first, second], measure, clock)
    assert (limit_of(first[0]), limit_of(second[0])) == (8, 8)


def test_who_needs_more_than_all_the_time_spends_it_once(library: Kernels):
    one, measure = group(), Measure(10)
    calibrate([one], measure, Clock(BUDGET / 3))
    calibrate([one], measure, Clock(BUDGET / 3))
    assert len(measure.asked) == 1 and limit_of(one[0]) == MOST_ROWS


def test_the_clock_is_looked_at_before_each_product(library: Kernels):
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 7:
            raise TimeIsUpError

    with pytest.raises(TimeIsUpError):
        calibration.timed(library, group(), check)(32)
    assert looks == 7


# The file


def test_numbers_are_kept_and_not_measured_again(library: Kernels, folder):
    measure = Measure(10)
    calibrate([group()], measure)
    again = group()
    calibrate([again], measure)
    assert len(measure.asked) == 1 and limit_of(again[1]) == 8
    assert len(list(folder.iterdir())) == 1  # nothing half-written stays behind


def test_what_is_written_is_read_and_added_to():
    assert read(MACHINE) == {}
    write(MACHINE, {"a": {1: 8}})
    assert write(MACHINE, {"a": {2: 64}, "b": {1: 0}}) == {"a": {1: 8, 2: 64}, "b": {1: 0}}
    assert read(MACHINE) == {"a": {1: 8, 2: 64}, "b": {1: 0}}


def test_another_machine_is_not_believed():
    write(MACHINE, {"a": {1: 8}})
    other = MACHINE | {"processor": "another"}
    assert read(other) == {}
    path_of(other).write_bytes(path_of(MACHINE).read_bytes())  # as if their digests were the same
    assert read(other) == {}


@pytest.mark.parametrize("key", ["processor", "cores", "kernels", "content", "torch", "version"])
def test_whatever_changes_the_times_is_part_of_the_machine(key, library: Kernels, monkeypatch):
    measure = Measure()
    calibrate([group()], measure)
    machine = calibration._machine(library)
    assert machine[key] not in ("", None)
    monkeypatch.setattr(calibration, "_machine", lambda library: machine | {key: "other"})
    calibrate([group()], measure)
    assert len(measure.asked) == 2


BROKEN = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"{}",
    b"[" * 100_000,
    b'{"machine": MACHINE}',
    b'{"machine": MACHINE, "found": 3}',
    b'{"machine": MACHINE, "found": {"a": 3}}',
    b'{"machine": MACHINE, "found": {"a": {"x": 8}}}',
    b'{"machine": MACHINE, "found": {"a": {"1": 7}}}',
    b'{"machine": MACHINE, "found": {"a": {"1": true}}}',
    b'{"machine": MACHINE, "found": {"a": {"1": [8]}}}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_no_error_and_is_replaced(text, caplog):
    path = path_of(MACHINE)
    path.parent.mkdir()
    path.write_bytes(text.replace(b"MACHINE", json.dumps(MACHINE).encode()))
    with caplog.at_level(logging.INFO, logger="llavakit"):
        assert read(MACHINE) == {}
    assert "cannot be read" in caplog.text
    write(MACHINE, {"a": {1: 8}})
    assert read(MACHINE) == {"a": {1: 8}}


def test_a_folder_that_cannot_be_written_is_no_error(library: Kernels, folder, caplog):
    folder.write_text("no folder")
    one = group()
    with caplog.at_level(logging.INFO, logger="llavakit"):
        calibrate([one], Measure(10))
    assert limit_of(one[0]) == 8 and "cannot be kept" in caplog.text


def test_without_a_home_nothing_is_kept_and_nothing_fails(library: Kernels, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/to/be/ignored")
    one = group()
    calibrate([one], Measure(10))
    assert limit_of(one[0]) == 8


# Answers

WORDS = ["hi", "What is it?", "And now\nin two lines", "你好🐱", "a" * 50, "b" * 90]


@pytest.fixture(scope="module")
def backend(tiny: TinyModel) -> Iterator[LocalBackend]:
    # Passes of up to 70 tokens: more than any limit.
    backend = llavakit.load(tiny.path, max_concurrency=6, prefill_chunk=70)
    assert isinstance(backend, LocalBackend)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def expected(tiny: TinyModel) -> Callable[[str], list[int]]:
    return functools.cache(lambda text: tiny.generate([("user", [text])], 12))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    limit=st.sampled_from([0, 1, 7, 32, 64]),
    head=st.sampled_from([0, 1, 7, 32, 64]),
    asked=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
)
def test_answers_are_the_same_with_any_limit(limit, head, asked, backend, expected):
    *layers, output = backend._get_engine()._loop.runner.model.matrices
    for rows, some in ((limit, layers), (head, [output])):
        for one in (one for group in some for one in group):
            one.limit_rows(dict.fromkeys(range(1, 9), rows))
            assert limit_of(one) == rows
    running = [submitted(backend, [Message("user", text)], 12) for text in asked]
    for text, (stream, sequence) in zip(asked, running, strict=True):
        for _ in stream:
            pass
        assert sequence.tokens[sequence.prompt_length :] == expected(text)
