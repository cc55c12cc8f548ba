"""The suite itself; see the package."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import AudioBlock, TextBlock, VideoBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from tests.llama_index.conformance.carriers import CARRIERS
from tests.llama_index.conformance.events import Counting, listening
from tests.llama_index.conformance.methods import CHAT, COMPLETE, METHODS, called, text_of
from tests.llama_index.pictures import Case


class Person(BaseModel):
    """What a sentence tells of somebody."""

    name: str
    age: int


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Paris": "sunny", "London": "rainy"}[city]


TOOLS = [FunctionTool.from_defaults(multiply), FunctionTool.from_defaults(get_weather)]
ADA = PromptTemplate("Ada is 36 years old.")
HELLO = "Hello"


def asked_of(name: str, text: str = HELLO) -> Any:
    return [ChatMessage(role="user", content=text)] if name in CHAT else text


class LLMConformance:
    """Subclass it, with a fixture ``llm`` that answers the same each time."""

    question = "What colour is the circle?"
    answer = "red"
    tells_usage = True
    """Whether the last response has usage and finish reason in ``additional_kwargs``."""
    calls_tools = True
    carriers = CARRIERS
    """The carriers that the adapter claims to take."""

    @pytest.fixture
    def picture(self, tmp_path: Path) -> Case:
        return Case.drawn(tmp_path, "ellipse", (222, 28, 30))

    # What it says of itself

    def test_it_is_a_chat_model_with_a_window(self, llm: LLM) -> None:
        assert llm.metadata.is_chat_model  # else the framework drops pictures silently
        assert llm.metadata.context_window > 0
        assert llm.metadata.model_name not in ("", "unknown")
        assert llm.metadata.is_function_calling_model == self.calls_tools
        assert isinstance(llm, FunctionCallingLLM) == self.calls_tools

    def test_its_payload_is_plain_and_names_the_model(self, llm: LLM) -> None:
        payload = llm.to_payload()
        assert payload["class_name"] == llm.class_name()
        assert payload["model_name"] == llm.metadata.model_name
        told = json.dumps(payload)
        assert "api_key" not in told and "base64" not in told

    @pytest.mark.parametrize("copied", ["deepcopy", "pickle", "to_dict"])
    def test_a_copy_answers_the_same(self, llm: LLM, copied: str) -> None:
        if copied == "deepcopy":
            twin = copy.deepcopy(llm)
        elif copied == "pickle":
            twin = pickle.loads(pickle.dumps(llm))
        else:
            twin = type(llm).from_dict(llm.to_dict())
        assert twin.complete(HELLO).text == llm.complete(HELLO).text

    # Methods and carriers

    @pytest.mark.parametrize("name", list(CARRIERS))
    async def test_every_carrier_by_every_chat_method(
        self, name: str, llm: LLM, picture: Case
    ) -> None:
        if name not in self.carriers:
            pytest.skip("not claimed")
        for method in CHAT:
            message = self.carriers[name](picture, self.question)
            responses = await called(method, llm, [message])
            assert text_of(responses[-1]) == self.answer, method

    async def test_completions_answer_as_chats_do(self, llm: LLM) -> None:
        expected = text_of(llm.chat(asked_of("chat")))
        assert expected
        for method in COMPLETE:
            assert text_of((await called(method, llm, HELLO))[-1]) == expected, method

    async def test_a_picture_of_an_earlier_turn_is_still_seen(
        self, llm: LLM, picture: Case
    ) -> None:
        first = self.carriers["bytes"](picture, "What is this?")
        history = [
            first,
            ChatMessage(role="assistant", content=f"a {self.answer} circle"),
            ChatMessage(role="user", content=self.question),
        ]
        for method in CHAT:
            assert text_of((await called(method, llm, history))[-1]) == self.answer

    @pytest.mark.parametrize(
        "block", [AudioBlock(audio=b"RIFF....WAVE"), VideoBlock(video=b"\x1aE\xdf\xa3....")]
    )
    async def test_what_it_cannot_take_is_refused(self, llm: LLM, block: Any) -> None:
        message = ChatMessage(role="user", blocks=[block, TextBlock(text=self.question)])
        for method in CHAT:
            with pytest.raises(Exception, match=r"(?i)audio|video"):
                await called(method, llm, [message])

    # Streams

    @pytest.mark.parametrize("name", ["stream_chat", "astream_chat"])
    async def test_a_streamed_chat_grows_by_its_deltas(
        self, llm: LLM, name: str, picture: Case
    ) -> None:
        message = self.carriers["bytes"](picture, "Describe the picture.")
        responses = await called(name, llm, [message])
        told = ""
        for response in responses:
            assert response.message.role == MessageRole.ASSISTANT
            told += response.delta or ""
            assert text_of(response) == told
        assert len(responses) > 1
        assert told == text_of(llm.chat([message]))

    @pytest.mark.parametrize("name", ["stream_complete", "astream_complete"])
    async def test_a_streamed_completion_grows_by_its_deltas(self, llm: LLM, name: str) -> None:
        responses = await called(name, llm, HELLO)
        told = ""
        for response in responses:
            told += response.delta or ""
            assert response.text == told
        assert len(responses) > 1 and told == llm.complete(HELLO).text

    @pytest.mark.parametrize("name", list(METHODS))
    async def test_usage_and_the_reason_for_the_end_are_told(self, llm: LLM, name: str) -> None:
        if not self.tells_usage:
            pytest.skip("does not tell usage")
        *before, last = await called(name, llm, asked_of(name))
        usage = last.additional_kwargs
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 1
        assert usage["finish_reason"] == last.raw["finish_reason"] == "stop"
        assert last.raw["usage"]["prompt_tokens"] == usage["prompt_tokens"]
        assert all("total_tokens" not in one.additional_kwargs for one in before)

    # Events

    @pytest.mark.parametrize("name", list(METHODS))
    async def test_each_call_is_told_of_exactly_once(self, llm: LLM, name: str) -> None:
        kind = "LLMChat" if name in CHAT else "LLMCompletion"
        counting, before = Counting(), llm.callback_manager
        llm.callback_manager = CallbackManager([counting])
        try:
            with listening() as told:
                responses = await called(name, llm, asked_of(name))
        finally:
            llm.callback_manager = before
        expected = {f"{kind}StartEvent": 1, f"{kind}EndEvent": 1}
        if len(responses) > 1:
            expected[f"{kind}InProgressEvent"] = len(responses)
        assert told.count() == expected
        assert len(counting.started) == len(counting.ended) == 1

    @pytest.mark.parametrize("name", list(METHODS))
    async def test_a_call_that_fails_is_ended_too(self, llm: LLM, name: str) -> None:
        counting, before = Counting(), llm.callback_manager
        llm.callback_manager = CallbackManager([counting])
        try:
            with pytest.raises(ValueError):
                await called(name, llm, asked_of(name), temperature=-1)
        finally:
            llm.callback_manager = before
        assert len(counting.started) == len(counting.ended) == 1

    # Structured output

    async def test_structured_predictions_are_objects(self, llm: LLM) -> None:
        ada = Person(name="Ada", age=36)
        assert llm.structured_predict(Person, ADA) == ada
        assert await llm.astructured_predict(Person, ADA) == ada
        assert list(llm.stream_structured_predict(Person, ADA))[-1] == ada
        later = [one async for one in await llm.astream_structured_predict(Person, ADA)]
        assert later[-1] == ada

    # The framework's own StructuredLLM calls pydantic's old name.
    @pytest.mark.filterwarnings("ignore:The `json` method is deprecated")
    async def test_a_structured_llm_gives_objects_by_every_chat_method(self, llm: LLM) -> None:
        structured = llm.as_structured_llm(Person)
        asked = [ChatMessage(role="user", content=ADA.template)]
        for method in CHAT:
            assert (await called(method, structured, asked))[-1].raw == Person(name="Ada", age=36)
        assert Person.model_validate_json(structured.complete(ADA.template).text).age == 36

    # Tools

    @pytest.fixture
    def caller(self, llm: LLM) -> FunctionCallingLLM:
        if not isinstance(llm, FunctionCallingLLM):
            pytest.skip("calls no tools")
        return llm

    async def test_the_right_tool_is_called_by_every_method(
        self, caller: FunctionCallingLLM
    ) -> None:
        asked = {"tools": TOOLS, "user_msg": "Multiply 6 and 7."}
        answers = [
            caller.chat_with_tools(**asked),
            await caller.achat_with_tools(**asked),
            list(caller.stream_chat_with_tools(**asked))[-1],
            [one async for one in await caller.astream_chat_with_tools(**asked)][-1],
        ]
        for answer in answers:
            (call,) = caller.get_tool_calls_from_response(answer)
            assert (call.tool_name, call.tool_kwargs) == ("multiply", {"a": 6, "b": 7})
            assert call.tool_id

    async def test_every_piece_of_a_streamed_call_can_be_read(
        self, caller: FunctionCallingLLM
    ) -> None:
        for piece in caller.stream_chat_with_tools(TOOLS, "Multiply 6 and 7."):
            for call in caller.get_tool_calls_from_response(piece, error_on_no_tool_call=False):
                assert set(call.tool_kwargs) <= {"a", "b"}

    async def test_predict_and_call_gives_the_tools_result(
        self, caller: FunctionCallingLLM
    ) -> None:
        question = "What is the weather in Paris?"
        assert caller.predict_and_call(TOOLS, question).response == "sunny"
        assert (await caller.apredict_and_call(TOOLS, question)).response == "sunny"

    def test_a_required_tool_is_called_whatever_is_said(self, caller: FunctionCallingLLM) -> None:
        answer = caller.chat_with_tools(TOOLS, HELLO, tool_required=True)
        calls = caller.get_tool_calls_from_response(answer)
        assert {call.tool_name for call in calls} <= {"multiply", "get_weather"} and calls

    def test_a_tools_result_is_told(self, caller: FunctionCallingLLM) -> None:
        question = ChatMessage(role="user", content="Multiply 6 and 7.")
        first = caller.chat_with_tools(TOOLS, question)
        (call,) = caller.get_tool_calls_from_response(first)
        told = ChatMessage(
            role="tool", content="42", additional_kwargs={"tool_call_id": call.tool_id}
        )
        answer = caller.chat_with_tools(TOOLS, chat_history=[question, first.message, told])
        assert "42" in text_of(answer)
