"""The conformance suite again, with the model on real servers: one more argument, same answers."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms.llm import LLM

from llavakit.errors import RemoteError
from llavakit.llama_index import LLaVA, LLaVAMultiModal
from tests.llama_index.conformance import LLMConformance
from tests.servers import SERVERS


@pytest.mark.enable_socket
class TestLLaVAOnOurServer(LLMConformance):
    @pytest.fixture
    def llm(self) -> LLM:
        server = SERVERS["llavakit"]()
        return LLaVA(model=server.model, base_url=f"{server.url}/v1", temperature=0)


@pytest.mark.slow
@pytest.mark.enable_socket
class TestLLaVAMultiModalOnOurServer(LLMConformance):
    @pytest.fixture
    def llm(self) -> LLM:
        server = SERVERS["llavakit"]()
        return LLaVAMultiModal(model=server.model, base_url=server.url, temperature=0)


# Adapters do not know servers apart: what differs between them is asked of both in
# `tests/remote/test_real_servers.py`, and by LangChain's suite.
@pytest.mark.slow
@pytest.mark.enable_socket
class TestLLaVAOnTransformersServe(LLMConformance):
    @pytest.fixture
    def llm(self) -> LLM:
        server = SERVERS["transformers"]()
        return LLaVA(model=server.model, base_url=server.url, temperature=0)

    def test_a_required_tool_is_called_whatever_is_said(self, caller: Any) -> None:
        # Nothing there can be held to a call; what must not happen is that nobody notices.
        with pytest.raises(RemoteError, match=r"enforces nothing|does not hold it"):
            super().test_a_required_tool_is_called_whatever_is_said(caller)
