"""LangChain's own standard tests of a chat model class."""

from langchain_tests.unit_tests import ChatModelUnitTests

from llavakit.langchain import ChatLLaVA
from tests.langchain.supported import SupportedUnits


class TestChatLLaVA(SupportedUnits, ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ChatLLaVA

    @property
    def chat_model_params(self):
        return {"model": "demo"}

    @property
    def init_from_env_params(self):
        return {"LLAVAKIT_API_KEY": "key"}, {"model": "demo"}, {"api_key": "key"}
