"""LangChain's own tests of a chat model, on ``ChatOpenAI`` by the Responses API of our server."""

import openai
import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.langchain.test_chat_integration import _offline  # noqa: F401
from tests.langchain.test_chat_remote import COPIES_BADLY
from tests.servers import llavakit_server


@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema")
@pytest.mark.filterwarnings("ignore:OpenAI may require a filename")
# Clients of loops that are over cannot be closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.enable_socket
class TestChatOpenAIByResponses(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "demo",
            "base_url": f"{llavakit_server().url}/v1",
            "api_key": "none",
            "temperature": 0,
            "use_responses_api": True,
            "max_retries": 0,
            # LangChain's own is shared by all event loops, and each test has a loop of its own.
            "http_async_client": openai.DefaultAsyncHttpxClient(),
        }

    @property
    def supports_image_inputs(self):
        return True

    @property
    def supports_image_tool_message(self):
        return True

    @property
    def supports_pdf_inputs(self):
        return True

    # Not `supports_json_mode`: a schema that is only described in the prompt is not enforced, and
    # the bundled model does not follow it.

    @property
    def has_tool_choice(self):
        return True

    @pytest.mark.xfail(reason=COPIES_BADLY)
    def test_unicode_tool_call_integration(self, model, *, tool_choice=None, force_tool_call=True):
        super().test_unicode_tool_call_integration(
            model, tool_choice=tool_choice, force_tool_call=force_tool_call
        )
