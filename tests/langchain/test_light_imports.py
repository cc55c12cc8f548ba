"""Importing llavakit or an adapter, and making a model object, costs nothing."""

import subprocess
import sys

import pytest

from tests.programs import packages_after

HEAVY = ("torch", "transformers", "accelerate", "bitsandbytes", "llama_index", "langchain")


CODE = (
    "import llavakit",
    "import llavakit.langchain",
    "from llavakit.langchain import ChatLLaVA\n"
    "for _ in range(10): ChatLLaVA(model='demo', temperature=0)",
)


@pytest.fixture(scope="module")
def imported():
    return packages_after(*CODE)


@pytest.mark.parametrize("code", CODE)
def test_nothing_heavy_is_imported(code, imported):
    assert "llavakit" in imported[code]
    assert imported[code].isdisjoint(HEAVY)


def test_a_missing_langchain_is_told_in_one_sentence():
    code = (
        "from importlib import util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'langchain_core' else find(name)\n"
        "try:\n    import llavakit.langchain\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError")
    assert 'pip install "llavakit[langchain]"' in done.stdout
