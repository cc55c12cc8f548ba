"""Compiled kernels are proven before they are used, and missed with one sentence."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pytest
import torch

from llavakit.kernels import native, trial
from llavakit.kernels.native import SWITCH, Kernels, kernels
from llavakit.kernels.trial import error_of


class Faulty:
    """The real kernels, of which one call is spoilt afterwards."""

    def __init__(self, library: Kernels, name: str) -> None:
        self._library = library
        self._name = name

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._library, name)
        if name != self._name:
            return call

        def spoilt(*args: Any) -> Any:
            found = call(*args)
            if isinstance(found, torch.Tensor):
                found.view(-1)[-1] *= 1.001
            else:
                ctypes.cast(args[0].out, ctypes.POINTER(ctypes.c_float))[0] *= 1.001
            return found

        return spoilt


def test_kernels_pass_their_trial(library: Kernels):
    assert error_of(library) is None


@pytest.mark.parametrize("name", ["linear", "attend", "decode"])
def test_one_number_that_is_a_thousandth_off_is_found(name, library: Kernels):
    assert error_of(Faulty(library, name)) is not None  # type: ignore[arg-type]


FAULTS = {
    "own token unseen": lambda step: _add(step, 3, -1),
    "tail one slot late": lambda step: _add(step, 2, 1),
    "shared stretch one slot late": lambda step: _add(step, 5, 1),
    "shared stretch cut": lambda step: _add(step, 6, -1),
    "rows mixed up": lambda step: _reverse(step, 1),
    "keys stored elsewhere": lambda step: _add(step, 7, 1),
}


def _add(step: Any, array: int, number: int) -> None:
    step._kept[array] += number


def _reverse(step: Any, array: int) -> None:
    step._kept[array][:] = step._kept[array][::-1].copy()


@pytest.mark.parametrize("fault", FAULTS)
def test_attention_that_reads_or_writes_one_slot_wrong_is_found(
    fault, library: Kernels, monkeypatch
):
    from llavakit.kernels import attention

    class Spoilt(attention.Step):
        def __init__(self, rows: Any, group: int) -> None:
            super().__init__(rows, group)
            FAULTS[fault](self)

    monkeypatch.setattr(attention, "Step", Spoilt)
    found = error_of(library)
    assert found is not None and "attention" in found


def test_wrong_numbers_are_told_and_torch_computes(library: Kernels, monkeypatch, caplog):
    monkeypatch.setattr(trial, "error_of", lambda found: "products: error 1.0e+00")
    kernels.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="llavakit"):
            assert kernels() is None
        assert "give wrong numbers here (products: error 1.0e+00) and are not used" in caplog.text
    finally:
        monkeypatch.undo()
        kernels.cache_clear()


def test_without_kernels_the_log_says_once_that_it_is_slower(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    kernels.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="llavakit"):
            assert kernels() is None and kernels() is None
        assert caplog.text.count("no compiled kernels here: answers are the same and slower") == 1
    finally:
        monkeypatch.undo()
        kernels.cache_clear()


def test_a_file_that_is_no_library_is_passed_over(monkeypatch, caplog, tmp_path):
    (tmp_path / "_cpu_any.so").write_text("no library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    kernels.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="llavakit"):
            assert kernels() is None
        assert "the any kernels cannot be loaded" in caplog.text
    finally:
        monkeypatch.undo()
        kernels.cache_clear()


@pytest.mark.parametrize("name", ["any", "avx2"])
def test_every_instruction_set_that_this_processor_has_passes_its_trial(name, monkeypatch):
    monkeypatch.setenv(SWITCH, name)
    kernels.cache_clear()
    try:
        found = kernels()
        if found is None:
            pytest.skip(f"the {name} kernels are not here")
        assert found.name == name and error_of(found) is None
    finally:
        monkeypatch.undo()
        kernels.cache_clear()
