"""A conformance suite for LLMs of LlamaIndex that see images; the framework has none.

Any adapter can be run through it: subclass :class:`LLMConformance`, give the fixture ``llm``,
and set what the adapter does not claim to do::

    class TestMyLLM(LLMConformance):
        tells_usage = False

        @pytest.fixture
        def llm(self):
            return MyLLM(temperature=0)

What is checked: every method, sync and async, whole and streamed, with every carrier of
images, gives the right answer; streams grow by what they say they grow by; each call is
told of exactly once; structured output is valid; tools are called; the object can be
copied, and says nothing secret of itself. Nothing here knows llavakit.
"""

from tests.llama_index.conformance.carriers import CARRIERS
from tests.llama_index.conformance.suite import LLMConformance

__all__ = ["CARRIERS", "LLMConformance"]
