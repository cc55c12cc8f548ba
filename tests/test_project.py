"""What surrounds the code: one list of extras wherever they are listed."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def dist() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / "dist.py"))


def test_every_extra_is_proven_by_make_dist(extras: dict[str, list[str]], dist: dict[str, Any]):
    assert dist["MODULES"].keys() | dist["NOT_FOR_USERS"] == extras.keys()


def test_all_brings_every_extra_that_is_for_users(
    extras: dict[str, list[str]], dist: dict[str, Any]
):
    everything = " ".join(extras["all"])
    assert [name for name in dist["MODULES"] if name not in everything] == []


def test_readme_names_every_extra_that_is_for_users(dist: dict[str, Any]):
    readme = (ROOT / "README.md").read_text()
    assert [name for name in dist["MODULES"] if f"`{name}`" not in readme] == []
