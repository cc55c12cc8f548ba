"""Both classes through the conformance suite, with the bundled model."""

from __future__ import annotations

import pytest
from llama_index.core.llms.llm import LLM

from llavakit.llama_index import LLaVA, LLaVAMultiModal
from tests.llama_index.conformance import LLMConformance


class TestLLaVA(LLMConformance):
    @pytest.fixture
    def llm(self, demo_backend: object) -> LLM:
        return LLaVA(model="demo", temperature=0)


class TestLLaVAMultiModal(LLMConformance):
    @pytest.fixture
    def llm(self, demo_backend: object) -> LLM:
        return LLaVAMultiModal(model="demo", temperature=0)
