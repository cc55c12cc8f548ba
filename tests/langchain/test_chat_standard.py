"""LangChain's own standard tests of a chat model class."""

from langchain_tests.unit_tests import ChatModelUnitTests

from llavakit.langchain import ChatLLaVA


class TestChatLLaVA(ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ChatLLaVA

    @property
    def chat_model_params(self):
        return {"model": "demo"}

    @property
    def init_from_env_params(self):
        return {"LLAVAKIT_API_KEY": "key"}, {"model": "demo"}, {"api_key": "key"}

    @property
    def supports_image_inputs(self):
        return True

    @property
    def supports_image_urls(self):
        return True

    @property
    def supports_image_tool_message(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @property
    def supports_json_mode(self):
        return True
