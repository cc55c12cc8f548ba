"""LangChain's own tests of a chat model, with the model on real servers."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from llavakit.errors import RemoteError
from llavakit.langchain import ChatLLaVA
from tests.langchain.supported import Supported, SupportedUnits
from tests.langchain.test_chat_integration import _offline  # noqa: F401
from tests.servers import SERVERS

COPIES_BADLY = (
    "the bundled model mixes up long names in other scripts when it copies them into a call; its "
    "card says how often calls are right (text: tool_call)"
)


class TestChatLLaVAOfAServer(SupportedUnits, ChatModelUnitTests):
    """Nothing is connected by construction, so these need no server."""

    @property
    def chat_model_class(self):
        return ChatLLaVA

    @property
    def chat_model_params(self):
        return {"model": "demo", "base_url": "http://localhost:8000/v1"}

    @property
    def init_from_env_params(self):
        return {"LLAVAKIT_API_KEY": "key"}, self.chat_model_params, {"api_key": "key"}


@pytest.mark.enable_socket
class TestOnOurServer(Supported, ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatLLaVA

    @property
    def chat_model_params(self):
        server = SERVERS["llavakit"]()
        return {"model": server.model, "base_url": f"{server.url}/v1", "temperature": 0}

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return SERVERS["llavakit"]().model  # a server has no other

    @pytest.mark.xfail(reason=COPIES_BADLY)
    def test_unicode_tool_call_integration(self, model, *, tool_choice=None, force_tool_call=True):
        super().test_unicode_tool_call_integration(
            model, tool_choice=tool_choice, force_tool_call=force_tool_call
        )


# It holds no token to a tool or a schema. Where the bundled model does not find the call by
# itself, the user is told with this error, and never given something else.
nothing_enforces_it = pytest.mark.xfail(
    reason="`transformers serve` enforces no tool calls", raises=RemoteError, strict=True
)


@pytest.mark.slow  # `remote/test_real_servers` asks it as well
@pytest.mark.enable_socket
class TestOnTransformersServe(Supported, ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatLLaVA

    @property
    def chat_model_params(self):
        server = SERVERS["transformers"]()
        return {"model": server.model, "base_url": server.url, "temperature": 0}

    @pytest.mark.xfail(reason=COPIES_BADLY)
    def test_unicode_tool_call_integration(self, model, *, tool_choice=None, force_tool_call=True):
        super().test_unicode_tool_call_integration(
            model, tool_choice=tool_choice, force_tool_call=force_tool_call
        )

    @nothing_enforces_it
    def test_tool_choice(self, model):
        super().test_tool_choice(model)

    @nothing_enforces_it
    def test_bind_runnables_as_tools(self, model):
        super().test_bind_runnables_as_tools(model)

    @nothing_enforces_it
    def test_structured_few_shot_examples(self, model, my_adder_tool):
        super().test_structured_few_shot_examples(model, my_adder_tool)
