"""Both classes through the conformance suite, with the bundled model."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.llm import LLM

from llavakit.llama_index import LLaVA, LLaVAMultiModal
from tests.llama_index.conformance import LLMConformance
from tests.llama_index.pictures import Case


class TestLLaVA(LLMConformance):
    @pytest.fixture
    def llm(self, demo_backend: object) -> LLM:
        return LLaVA(model="demo", temperature=0)


class TestLLaVAMultiModal(LLMConformance):
    @pytest.fixture
    def llm(self, demo_backend: object) -> LLM:
        return LLaVAMultiModal(model="demo", temperature=0)


class Lumps(LLaVA):
    """Wrong on purpose: its streams give pieces and not what was said so far, and no events."""

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        for response in self._stream(messages, kwargs):
            response.message.content = response.delta or ""
            yield response


class Blind(LLaVA):
    """Wrong on purpose: it drops images silently."""

    def _prepared(self, messages: Any, arguments: dict[str, Any]) -> Any:
        told = [ChatMessage(role=one.role, content=one.content or "") for one in messages]
        return super()._prepared(told, arguments)


async def test_the_suite_catches_streams_that_do_not_grow_and_are_not_told_of(
    case, demo_backend
) -> None:
    suite, lumps = LLMConformance(), Lumps(model="demo", temperature=0)
    with pytest.raises(AssertionError):
        await suite.test_a_streamed_chat_grows_by_its_deltas(lumps, "stream_chat", case)
    with pytest.raises(AssertionError):
        await suite.test_each_call_is_told_of_exactly_once(lumps, "stream_chat")


async def test_the_suite_catches_one_that_drops_pictures(tmp_path, demo_backend) -> None:
    blind, wrong = Blind(model="demo", temperature=0), []
    for colour in ("red", "blue"):  # it may guess one of them
        suite = LLMConformance()
        suite.answer = colour
        case = Case.drawn(tmp_path, "ellipse", colour)
        try:
            await suite.test_every_carrier_by_every_chat_method("bytes", blind, case)
        except AssertionError:
            wrong.append(colour)
    assert wrong
