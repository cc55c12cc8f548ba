"""Importing the adapter, and making a model object, costs nothing."""

import subprocess
import sys

import pytest

from tests.programs import packages_after

HEAVY = ("torch", "transformers", "accelerate", "bitsandbytes", "llavakit.langchain")


CODE = (
    "import llavakit.llama_index",
    "from llavakit.llama_index import LLaVA, LLaVAMultiModal\n"
    "for make in (LLaVA, LLaVAMultiModal):\n"
    "    llm = make(model='demo', temperature=0)\n"
    "    llm.metadata, llm.to_payload(), llm.chat_prompt_helper()",
)


@pytest.fixture(scope="module")
def imported():
    return packages_after(*CODE)


@pytest.mark.parametrize("code", CODE)
def test_nothing_heavy_is_imported(code, imported):
    assert "llavakit.llama_index" in imported[code]
    assert imported[code].isdisjoint(HEAVY)


@pytest.mark.parametrize("missing", ["llama_index", "llama_index.core"])
def test_a_missing_llama_index_is_told_in_one_sentence(missing):
    code = (
        "from importlib import util\n"
        "find = util.find_spec\n"
        f"util.find_spec = lambda name: None if name == {missing!r} else find(name)\n"
        "try:\n    import llavakit.llama_index\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError")
    assert 'pip install "llavakit[llama-index]"' in done.stdout
