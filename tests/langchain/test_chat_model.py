"""ChatLLaVA against a scripted backend."""

import asyncio
import copy
import gc
import pickle
from dataclasses import fields

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

import llavakit
from llavakit.engine.config import EngineConfig
from llavakit.errors import MessageError, ParameterError, QueueFullError
from llavakit.langchain import ChatLLaVA, LLaVALLM
from llavakit.langchain.chunks import Streamed, to_result
from llavakit.testing import FakeBackend
from llavakit.values import Chunk, Completion, SamplingParams, TokenLogprob, Usage

METADATA = {"model_name": "fake", "model_provider": "llavakit", "finish_reason": "stop"}


@pytest.fixture
def fake():
    return FakeBackend(["a red circle"])


@pytest.fixture
def model(fake):
    return ChatLLaVA(backend=fake)


@pytest.fixture
def loads(monkeypatch):
    """Every call of llavakit.load, answered by one fake per model name."""
    calls = []
    backends = {}

    def load(model, **settings):
        calls.append((model, settings))
        return backends.setdefault(model, FakeBackend([f"I am {model}"], name=model))

    monkeypatch.setattr(llavakit, "load", load)
    return calls


# Answers


def test_invoke_gives_text_metadata_and_usage(model):
    answer = model.invoke("What is this?")
    assert answer.content == "a red circle"
    assert answer.response_metadata == METADATA
    assert answer.usage_metadata == {
        "input_tokens": 3,
        "output_tokens": 3,
        "total_tokens": 6,
        "input_token_details": {"cache_read": 0},
    }


async def test_ainvoke_gives_the_same(model):
    one, other = model.invoke("What is this?"), await model.ainvoke("What is this?")
    assert (one.content, one.response_metadata) == (other.content, other.response_metadata)


def check_chunks(chunks):
    assert [chunk.content for chunk in chunks] == ["a", " red", " circle", ""]
    assert [chunk.chunk_position for chunk in chunks] == [None, None, None, "last"]
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False, False, False, True]
    assert [chunk.response_metadata for chunk in chunks] == [{}, {}, {}, METADATA]
    whole = chunks[0] + chunks[1] + chunks[2] + chunks[3]
    assert isinstance(whole, AIMessageChunk)
    assert whole.response_metadata == METADATA


def test_stream_has_metadata_and_usage_in_exactly_the_last_chunk(model):
    check_chunks(list(model.stream("q")))


async def test_astream_has_metadata_and_usage_in_exactly_the_last_chunk(model):
    check_chunks([chunk async for chunk in model.astream("q")])


def test_stream_without_a_run_manager(model):
    chunks = list(model._stream([HumanMessage("q")]))
    assert "".join(chunk.text for chunk in chunks) == "a red circle"


def test_batch_keeps_order():
    echo = ChatLLaVA(backend=FakeBackend(lambda request: request.messages[-1].text))
    assert [m.content for m in echo.batch(["a", "b", "c"])] == ["a", "b", "c"]


async def test_abatch_keeps_order():
    echo = ChatLLaVA(backend=FakeBackend(lambda request: request.messages[-1].text))
    assert [m.content for m in await echo.abatch(["a", "b", "c"])] == ["a", "b", "c"]


def test_streaming_calls_back_for_each_token(fake):
    seen = []

    class Tokens(BaseCallbackHandler):
        def on_llm_new_token(self, token, **kwargs):
            seen.append(token)

    ChatLLaVA(backend=fake, streaming=True).invoke("q", config={"callbacks": [Tokens()]})
    assert seen == ["a", " red", " circle", ""]


def test_output_version_v1_gives_blocks(fake):
    model = ChatLLaVA(backend=fake, output_version="v1")
    assert model.invoke("q").content == [{"type": "text", "text": "a red circle"}]
    whole = None
    for chunk in model.stream("q"):
        whole = chunk if whole is None else whole + chunk
    assert [block["text"] for block in whole.content_blocks] == ["a red circle"]


def test_logprobs_are_reported_whole_and_streamed():
    probs = (TokenLogprob("red", -0.1, (("red", -0.1), ("blue", -2.5))),)
    expected = {
        "content": [
            {
                "token": "red",
                "logprob": -0.1,
                "top_logprobs": [
                    {"token": "red", "logprob": -0.1},
                    {"token": "blue", "logprob": -2.5},
                ],
            }
        ]
    }
    (generation,) = to_result(Completion("red", logprobs=probs), "m").generations
    assert generation.message.response_metadata["logprobs"] == expected
    answer = Streamed("m")
    pieces = [answer.convert(Chunk("red", logprobs=probs)) for _ in range(2)]
    merged = (pieces[0] + pieces[1]).message.response_metadata["logprobs"]["content"]
    assert [one["token"] for one in merged] == ["red", "red"]


def test_cached_tokens_are_counted_as_cache_read():
    completion = Completion("x", usage=Usage(10, 2, cached_tokens=7))
    (generation,) = to_result(completion, "m").generations
    assert generation.message.usage_metadata["input_token_details"] == {"cache_read": 7}


def test_errors_of_the_backend_arrive_as_they_are():
    model = ChatLLaVA(backend=FakeBackend([QueueFullError("Full.")]))
    with pytest.raises(QueueFullError):
        model.invoke("q")
    with pytest.raises(QueueFullError):
        list(model.stream("q"))


# Cancellation


async def test_a_cancelled_ainvoke_cancels_the_request():
    fake = FakeBackend(hang=True)
    task = asyncio.create_task(ChatLLaVA(backend=fake).ainvoke("q"))
    while not fake.requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.cancelled == 1


async def test_a_timed_out_ainvoke_cancels_the_request():
    fake = FakeBackend(hang=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ChatLLaVA(backend=fake).ainvoke("q")
    assert fake.cancelled == 1


async def test_a_closed_astream_cancels_the_request():
    fake = FakeBackend(["one two"], hang=True)
    stream = ChatLLaVA(backend=fake).astream("q")
    assert (await anext(stream)).content == "one"
    await stream.aclose()
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0.01)
    assert fake.cancelled == 1


def test_a_closed_stream_cancels_the_request():
    fake = FakeBackend(["one two"], hang=True)
    stream = ChatLLaVA(backend=fake).stream("q")
    assert next(stream).content == "one"
    stream.close()
    assert fake.cancelled == 1


def test_a_stream_left_by_break_cancels_the_request():
    fake = FakeBackend(["one two"], hang=True)
    for _chunk in ChatLLaVA(backend=fake).stream("q"):
        break
    gc.collect()
    assert fake.cancelled == 1


# Arguments


def test_constructor_settings_reach_the_request(fake):
    model = ChatLLaVA(
        backend=fake,
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.1,
        max_tokens=7,
        stop=["x"],
        seed=1,
        logprobs=True,
        top_logprobs=2,
        timeout=5,
    )
    model.invoke("q")
    (request,) = fake.requests
    assert request.params == SamplingParams(7, 0, 0.5, 3, 0.1, 1.1, seed=1, stop=("x",), logprobs=2)
    assert request.timeout == 5


def test_what_is_not_set_takes_the_defaults(model, fake):
    model.invoke("q", temperature=None)
    assert fake.requests[0].params == SamplingParams()


def test_call_arguments_win(fake):
    model = ChatLLaVA(backend=fake, temperature=1, max_tokens=9, stop=["a"])
    model.invoke("q", stop=["b"], temperature=0, max_completion_tokens=3, seed=4, timeout=2)
    model.bind(max_tokens=4).invoke("q")
    first, second = fake.requests
    assert first.params == SamplingParams(3, 0, stop=("b",), seed=4)
    assert first.timeout == 2
    assert (second.params.max_tokens, second.params.stop) == (4, ("a",))


def test_the_names_of_other_classes_are_understood(fake):
    model = ChatLLaVA(
        backend=fake, model_name="m", max_new_tokens=5, stop_sequences="x", repeat_penalty=2.0
    )
    assert (model.model, model.max_tokens, model.stop) == ("m", 5, ["x"])
    assert model.repetition_penalty == 2.0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"temprature": 0}, "temperature"),
        ({"best_of": 2}, "does not know the argument 'best_of'"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "given twice"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_logprobs": 3}, "logprobs=True"),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments, match, model):
    with pytest.raises(ValidationError, match=match):
        ChatLLaVA(model="demo", **arguments)
    with pytest.raises(ParameterError, match=match):
        model.invoke("q", **arguments)


def test_a_model_must_be_named():
    with pytest.raises(ValidationError, match="Name the model"):
        ChatLLaVA()


def test_load_settings_beside_a_backend_are_refused(fake):
    with pytest.raises(ValidationError, match=r"llavakit\.load"):
        ChatLLaVA(backend=fake, device="cuda")


def test_every_engine_setting_is_an_argument():
    missing = {field.name for field in fields(EngineConfig)} - set(ChatLLaVA.model_fields)
    assert not missing


# Messages


def test_roles_names_and_calls_reach_the_backend(model, fake):
    call = {"name": "f", "args": {"x": 1}, "id": "c1"}
    model.invoke(
        [
            SystemMessage("be brief"),
            HumanMessage("hi", name="Ann"),
            AIMessage("", tool_calls=[call]),
            ToolMessage("42", tool_call_id="c1", name="f"),
            ChatMessage("so", role="user"),
        ]
    )
    system, human, assistant, tool, last = fake.requests[0].messages
    assert (system.role, system.text) == ("system", "be brief")
    assert (human.role, human.name) == ("user", "Ann")
    assert assistant.tool_calls[0].arguments == {"x": 1}
    assert (tool.role, tool.tool_call_id, tool.name) == ("tool", "c1", "f")
    assert last.role == "user"


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "empty"),
        ([SystemMessage("")], "empty"),
        (
            [AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "c"}])],
            "the tool 'f' that has no",
        ),
        ([HumanMessage("a"), ToolMessage("b", tool_call_id="c9")], "c9"),
        ([ChatMessage("a", role="narrator")], "narrator"),
        ([HumanMessage("a"), RemoveMessage(id="1")], "RemoveMessage"),
    ],
)
def test_what_is_no_conversation_is_told(messages, match, model, fake):
    with pytest.raises(MessageError, match=match):
        model.invoke(messages)
    assert fake.requests == []


def test_function_messages_are_tool_results(model, fake):
    model.invoke([HumanMessage("a"), FunctionMessage("42", name="f")])
    assert fake.requests[0].messages[1].role == "tool"


# The backend


def test_construction_loads_nothing_and_use_loads_once(loads):
    model = ChatLLaVA(model="demo", device="cpu", kv_cache_bytes=1024, load_in_4bit=True)
    assert loads == []
    assert model.invoke("q").content == "I am demo"
    assert loads == [("demo", {"device": "cpu", "kv_cache_bytes": 1024, "load_in_4bit": True})]


def test_every_setting_of_load_is_an_argument():
    assert {field.name for field in fields(EngineConfig)} <= set(ChatLLaVA.model_fields)
    assert {field.name for field in fields(EngineConfig)} <= set(LLaVALLM.model_fields)


def test_a_setting_that_is_off_is_handed_on(loads):
    ChatLLaVA(model="demo", static_decode=False, compile=False).invoke("q")
    assert loads == [("demo", {"static_decode": False, "compile": False})]


def test_warming_up_loads_by_construction_and_once(loads):
    model = ChatLLaVA(model="demo", max_concurrency="auto", warm_up=True)
    assert loads == [("demo", {"max_concurrency": "auto", "warm_up": True})]
    model.invoke("q")
    assert loads[1:] == [("demo", {"max_concurrency": "auto"})]
    assert "warm_up" not in model.identity()
    with pytest.raises(ValidationError, match="warm_up has no effect on a backend that exists"):
        ChatLLaVA(backend=FakeBackend(), warm_up=True)


def test_the_model_can_be_changed_for_one_call(loads):
    model = ChatLLaVA(model="one")
    answer = model.invoke("q", model="two")
    assert (answer.content, answer.response_metadata["model_name"]) == ("I am two", "two")
    assert model.invoke("q").content == "I am one"
    assert [name for name, _ in loads] == ["two", "one"]


def test_settings_can_be_configurable(loads, fake):
    model = ChatLLaVA(model="demo").configurable_fields(
        temperature=ConfigurableField(id="t"), model=ConfigurableField(id="m")
    )
    answer = model.invoke("q", config={"configurable": {"t": 0, "m": "other"}})
    assert answer.content == "I am other"
    given = ChatLLaVA(backend=fake).configurable_fields(temperature=ConfigurableField(id="t"))
    chunks = list(given.stream("q", config={"configurable": {"t": 0.0}}))
    assert len(chunks) == 4  # still streams
    assert fake.requests[0].params.temperature == 0


def test_copies_share_no_handle_and_pickle(loads):
    model = ChatLLaVA(model="demo", temperature=0, api_key="secret")
    model.invoke("q")
    for other in (
        copy.deepcopy(model),
        copy.copy(model),
        model.model_copy(),
        pickle.loads(pickle.dumps(model)),
    ):
        assert other.invoke("q").content == "I am demo"
        assert other.temperature == 0
    assert "secret" not in repr(model) + str(model.asdict())


def test_a_given_backend_is_shared_by_copies_but_never_pickled(model, fake):
    assert copy.deepcopy(model).backend is fake
    assert copy.copy(model).backend is fake
    with pytest.raises(ParameterError, match="pickled"):
        pickle.dumps(model)


def test_a_rate_limiter_is_asked_before_every_call(fake):
    class Counting(BaseRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire(blocking=blocking)

    limiter = Counting()
    model = ChatLLaVA(backend=fake, rate_limiter=limiter)
    model.invoke("q")
    list(model.stream("q"))
    asyncio.run(model.ainvoke("q"))
    assert limiter.asked == 3


async def test_v2_events_tell_of_every_piece(fake):
    events = [event async for event in ChatLLaVA(backend=fake).astream_events("q", version="v2")]
    assert [event["event"] for event in events][:2] == [
        "on_chat_model_start",
        "on_chat_model_stream",
    ]
    assert events[-1]["event"] == "on_chat_model_end"
    pieces = [e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(pieces) == events[-1]["data"]["output"].text


def test_base_url_and_key_go_to_load(loads):
    ChatLLaVA(model="m", base_url="http://host:8000/v1", api_key="k").invoke("q")
    assert loads == [("m", {"base_url": "http://host:8000/v1", "api_key": "k"})]


# Tokens and facts


def test_tokens_are_counted_with_pictures(model, png):
    message = HumanMessage(["two words", {"type": "image", "base64": png}])
    assert model.get_num_tokens_from_messages([message]) == 2 + 64
    assert model.get_num_tokens("three little words") == 3
    assert model.get_num_tokens_from_messages([]) == 0


def test_messages_can_be_trimmed_by_the_models_own_count(model):
    history = [HumanMessage("one two three"), AIMessage("four five"), HumanMessage("six")]
    kept = trim_messages(history, max_tokens=4, token_counter=model, strategy="last")
    assert [message.content for message in kept] == ["four five", "six"]


def test_token_ids_are_not_guessed(model):
    with pytest.raises(NotImplementedError, match="get_num_tokens"):
        model.get_token_ids("a")


def test_langsmith_params(model):
    assert model._get_ls_params(stop=["x"], max_tokens=3) == {
        "ls_provider": "llavakit",
        "ls_model_name": "fake",
        "ls_model_type": "chat",
        "ls_temperature": 0.2,
        "ls_max_tokens": 3,
        "ls_stop": ["x"],
    }


def test_the_profile_says_what_the_model_can(model):
    profile = ChatLLaVA(model="llava-1.5-7b").profile
    assert profile["image_inputs"] and profile["structured_output"]
    assert profile["max_input_tokens"] == 4096
    assert ChatLLaVA(model="demo", context_length=99).profile["max_input_tokens"] == 99
    assert "max_input_tokens" not in ChatLLaVA(model="/some/where").profile


def test_the_profile_reads_a_directory_s_configuration(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"text_config": {"max_position_embeddings": 8192, "sliding_window": 2048}}'
    )
    assert ChatLLaVA(model=tmp_path).profile["max_input_tokens"] == 2048
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}')
    assert ChatLLaVA(model=tmp_path).profile["max_input_tokens"] == 4096
    (tmp_path / "config.json").write_text("[]")
    assert "max_input_tokens" not in ChatLLaVA(model=tmp_path).profile
