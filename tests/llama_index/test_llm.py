"""LLaVA as an object: its arguments, its answers, its streams, and what it says of itself."""

import asyncio
import copy
import json
import pickle

import pytest
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.tools import FunctionTool

import llavakit
from llavakit.errors import (
    LlavaKitError,
    ParameterError,
    RemoteError,
    UnsupportedContentError,
)
from llavakit.llama_index import LLaVA, LLaVAMultiModal
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from llavakit.values import Completion, TokenLogprob, ToolCall, Usage
from tests.llama_index.conformance.events import Counting
from tests.llama_index.conformance.methods import CHAT, METHODS, called

HELLO = [ChatMessage(role="user", content="Hello")]


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


TOOL = FunctionTool.from_defaults(multiply)
CALL = Completion(
    "", (ToolCall("call_1", "multiply", {"a": 6, "b": 7}),), "tool_calls", Usage(20, 9)
)


# Arguments


def test_settings_reach_the_request_and_the_call_wins(fake):
    llm = LLaVA(
        backend=fake, temperature=0.5, top_p=0.9, top_k=4, max_tokens=7, stop="x", seed=3, timeout=9
    )
    llm.chat(HELLO)
    llm.chat(HELLO, temperature=0, max_new_tokens=8, stop=["y"], timeout=2)
    first, second = (request.params for request in fake.requests)
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (0.5, 0.9, 4, 7)
    assert (first.stop, first.seed, fake.requests[0].timeout) == (("x",), 3, 9)
    assert (second.temperature, second.max_tokens, second.stop) == (0, 8, ("y",))
    assert (second.top_k, fake.requests[1].timeout) == (4, 2)


@pytest.mark.parametrize("method", list(METHODS))
async def test_an_unknown_argument_is_refused_with_the_nearest_name(method, llm, fake):
    asked = HELLO if method in CHAT else "Hello"
    with pytest.raises(ParameterError, match="did you mean 'temperature'"):
        await called(method, llm, asked, temprature=1)
    assert fake.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"modle": "demo"},
        {"model": None},
        {"query_wrapper_prompt": "x"},
        {"messages_to_prompt": lambda messages: "x"},
        {"load_in_4bit": True, "backend": FakeBackend()},
    ],
)
def test_wrong_settings_are_told_at_construction(wrong):
    with pytest.raises(ValueError):
        LLaVA(**{"model": "demo", **wrong})


def test_load_settings_choose_the_backend():
    one, same = LLaVA(model="demo"), LLaVAMultiModal(model="demo", temperature=1)
    assert one.backend_for() is same.backend_for() is llavakit.load("demo")
    fenced = LLaVA(model="demo", source_policy=SourcePolicy(roots=()))
    assert fenced.backend_for() is not one.backend_for()
    assert LLaVA(model="demo", load_in_4bit=True)._load_settings() == {"load_in_4bit": True}


@pytest.mark.enable_socket
def test_a_server_is_asked_and_no_model_here():
    with pytest.raises(RemoteError, match="No connection to the server at http://localhost:1 "):
        LLaVA(model="demo", base_url="http://localhost:1", max_retries=0).chat(HELLO)
    with pytest.raises(ValueError, match="base_url must be"):
        LLaVA(model="demo", base_url="localhost:1")


def test_the_system_prompt_is_told_once(fake):
    from llama_index.core.prompts import PromptTemplate

    llm = LLaVA(backend=fake, system_prompt="Be brief.")
    llm.chat(HELLO)
    llm.complete("Hello")
    llm.predict(PromptTemplate("Hello"))
    own = [ChatMessage(role="system", content="Be kind."), *HELLO]
    llm.chat(own)
    told = [
        [message.text for message in request.messages if message.role == "system"]
        for request in fake.requests
    ]
    assert told == [["Be brief."]] * 3 + [["Be brief.", "Be kind."]]


def test_completion_to_prompt_is_applied_unless_it_was(fake):
    llm = LLaVA(backend=fake, completion_to_prompt=lambda prompt: f"Q: {prompt}")
    llm.complete("Hello")
    llm.complete("Hello", formatted=True)
    assert [request.messages[0].text for request in fake.requests] == ["Q: Hello", "Hello"]


# What it says of itself


def test_metadata_come_from_the_model(tmp_path):
    assert LLaVA(model="demo").metadata.context_window == 4096
    assert LLaVA(model="demo", context_length=1000, max_tokens=50).metadata.num_output == 50
    assert LLaVA(model="demo", context_length=1000).metadata.context_window == 1000
    assert LLaVA(model="llava-v1.6-mistral-7b").metadata.context_window == 32768
    assert LLaVA(backend=FakeBackend(context_length=77)).metadata.context_window == 77
    assert LLaVAMultiModal(model="demo").metadata.num_input_files > 0


def test_a_payload_holds_no_key_and_no_path(tmp_path):
    llm = LLaVA(
        model=str(tmp_path),
        api_key="secret",
        source_policy=SourcePolicy(roots=(tmp_path / "private",)),
    )
    told = json.dumps(llm.to_payload())
    assert "secret" not in told and "private" not in told and str(tmp_path) not in told
    assert "secret" not in llm.to_json()
    assert llm.to_payload()["model_name"] == tmp_path.name
    assert "secret" not in repr(llm.api_key)


def test_copies_share_the_backend_and_what_watches_it(fake):
    limiter, manager = TokenBucketRateLimiter(requests_per_minute=60), CallbackManager([Counting()])
    llm = LLaVA(backend=fake, rate_limiter=limiter, callback_manager=manager)
    twin = copy.deepcopy(llm)
    assert twin.backend is fake and twin.rate_limiter is limiter
    assert twin.callback_manager is manager


def test_an_object_that_was_given_a_backend_cannot_be_pickled(llm):
    with pytest.raises(ParameterError, match="give it model="):
        pickle.dumps(llm)


def test_a_pickle_keeps_the_settings():
    llm = LLaVA(model="demo", temperature=0.3, stop=["x"], source_policy=SourcePolicy(roots=()))
    twin = pickle.loads(pickle.dumps(llm))
    assert (twin.model, twin.temperature, twin.stop) == ("demo", 0.3, ["x"])
    assert twin.source_policy == llm.source_policy


# Answers


def test_usage_is_found_by_the_frameworks_token_counter(fake):
    counter = TokenCountingHandler()
    llm = LLaVA(backend=fake, callback_manager=CallbackManager([counter]))
    answer = llm.chat(HELLO)
    assert counter.prompt_llm_token_count == answer.raw["usage"]["prompt_tokens"] == 1
    assert counter.completion_llm_token_count == answer.raw["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("method", list(CHAT))
async def test_the_reason_for_the_end_is_told(method):
    llm = LLaVA(backend=FakeBackend([Completion("cut", finish_reason="length")]))
    last = (await called(method, llm, HELLO))[-1]
    assert last.additional_kwargs["finish_reason"] == last.raw["finish_reason"] == "length"


def test_log_probabilities_are_told():
    completion = Completion("a", logprobs=(TokenLogprob("a", -0.1, (("a", -0.1), ("b", -2.0))),))

    class Logs(FakeBackend):
        def generate(self, *args, **kwargs):
            return completion

    ((chosen, *others),) = LLaVA(backend=Logs()).chat(HELLO, logprobs=True, top_logprobs=2).logprobs
    assert (chosen.token, chosen.logprob, chosen.bytes) == ("a", -0.1, [97])
    assert [one.token for one in others] == ["a", "b"]


async def test_a_streamed_call_ends_as_the_whole_one():
    llm = LLaVA(backend=FakeBackend([CALL] * 3))
    whole = llm.chat_with_tools([TOOL], "Multiply 6 and 7.")
    *pieces, last = llm.stream_chat_with_tools([TOOL], "Multiply 6 and 7.")
    assert last.message == whole.message and pieces
    first = llm.get_tool_calls_from_response(pieces[0])
    assert (first[0].tool_name, first[0].tool_kwargs) == ("multiply", {"a": 6, "b": 7})
    assert whole.message.additional_kwargs["tool_calls"][0]["function"] == {
        "name": "multiply",
        "arguments": '{"a":6,"b":7}',
    }


def test_no_call_where_one_is_needed_is_an_error(llm):
    answer = llm.chat_with_tools([TOOL], "Hello")
    assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []
    with pytest.raises(LlavaKitError, match="tool_required"):
        llm.get_tool_calls_from_response(answer)


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({}, "auto"),
        ({"tool_required": True}, "required"),
        ({"tool_choice": "multiply"}, "multiply"),
        ({"tool_choice": {"type": "function", "function": {"name": "multiply"}}}, "multiply"),
        ({"tool_choice": "none", "tool_required": True}, "none"),
        ({"tool_choice": None, "tool_required": True}, "required"),
    ],
)
def test_tools_and_the_choice_among_them_reach_the_request(asked, choice, llm, fake):
    history = [ChatMessage(role="user", content="Multiply.")]
    llm.chat_with_tools([TOOL], chat_history=history, allow_parallel_tool_calls=True, **asked)
    (request,) = fake.requests
    assert (request.tool_choice, request.parallel_tool_calls) == (choice, True)
    assert request.tools[0].name == "multiply"
    assert set(request.tools[0].parameters["properties"]) == {"a", "b"}
    assert history == [ChatMessage(role="user", content="Multiply.")]


def test_what_is_no_tool_is_refused(llm):
    for wrong in (multiply, {"type": "web_search"}):
        with pytest.raises(UnsupportedContentError):
            llm.chat(HELLO, tools=[wrong])


# Streams and cancelling


def test_a_stream_comes_in_pieces_and_closing_it_cancels():
    fake = FakeBackend(["one two three"], hang=True)
    llm = LLaVA(backend=fake)
    for method in (llm.stream_chat, llm.stream_complete):
        stream = method(HELLO if method == llm.stream_chat else "Hello")
        assert next(stream).delta == "one"
        stream.close()
        del stream
    assert fake.cancelled == 2


def test_a_stream_that_nobody_reads_is_cancelled():
    fake = FakeBackend(["one two"], hang=True)
    stream = LLaVA(backend=fake).stream_chat(HELLO)
    assert len(fake.requests) == 1
    del stream
    assert fake.cancelled == 1


@pytest.mark.parametrize("method", ["achat", "acomplete", "astream_chat", "astream_complete"])
async def test_a_cancelled_task_frees_the_model(method):
    fake = FakeBackend(["one two three"], hang=True)
    asked = HELLO if method in CHAT else "Hello"
    task = asyncio.create_task(called(method, LLaVA(backend=fake), asked))
    while not fake.requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.cancelled == 1


async def test_leaving_an_async_stream_frees_the_model():
    fake = FakeBackend(["one two three"], hang=True)
    stream = await LLaVA(backend=fake).astream_chat(HELLO)
    async for response in stream:
        assert response.delta == "one"
        break
    await stream.aclose()
    del stream, response
    for _ in range(100):
        if fake.cancelled:
            break
        await asyncio.sleep(0.01)
    assert fake.cancelled == 1


async def test_async_calls_do_not_wait_for_each_other():
    fake = FakeBackend(["one"], hang=True)
    llm = LLaVA(backend=fake)
    hanging = asyncio.create_task(llm.achat(HELLO))
    while not fake.requests:
        await asyncio.sleep(0.01)
    fake._hang = False
    answer = await asyncio.wait_for(llm.achat(HELLO), 5)
    assert answer.message.content == "one"
    hanging.cancel()


async def test_pictures_are_prepared_off_the_event_loop(case, llm, fake, monkeypatch):
    from tests.llama_index.conformance import CARRIERS

    seen = []
    prepared = LLaVA._prepared

    def watching(self, *args):
        try:
            asyncio.get_running_loop()
            seen.append("on the loop")
        except RuntimeError:
            seen.append("off the loop")
        return prepared(self, *args)

    monkeypatch.setattr(LLaVA, "_prepared", watching)
    await llm.achat([CARRIERS["bytes"](case, "What is it?")])
    assert seen == ["off the loop"]


# Tokens


def test_counted_tokens_are_those_of_the_prompt(case, demo_backend):
    from tests.llama_index.conformance import CARRIERS

    llm = LLaVA(model="demo", temperature=0, system_prompt="Be brief.")
    messages = [CARRIERS["bytes"](case, "What colour is the circle?")]
    answer = llm.chat(messages)
    assert llm.count_tokens(messages) == answer.raw["usage"]["prompt_tokens"]
    assert llm.count_tokens(messages, tools=[TOOL]) > llm.count_tokens(messages)
    assert answer.raw["usage"]["image_tokens"] == 64
