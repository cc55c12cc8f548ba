from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import llavakit
from llavakit import Message, SamplingParams, Tool
from llavakit.errors import (
    CheckpointError,
    EngineClosedError,
    InputError,
    ModelNotFoundError,
    ParameterError,
)
from llavakit.testing import FakeBackend
from tests.programs import packages_after
from tests.tiny import TinyModel


def test_same_configuration_gives_the_same_backend():
    assert llavakit.load("demo") is llavakit.load("demo")
    backend = llavakit.load("demo")
    assert backend is not llavakit.load("demo", max_concurrency=3)


def test_one_directory_by_two_spellings_is_one_backend(tiny: TinyModel):
    first = llavakit.load(tiny.path)
    assert first is llavakit.load(f"{tiny.path}/../{tiny.path.name}")


def test_closed_backend_is_replaced():
    first = llavakit.load("demo", max_concurrency=5)
    first.close()
    first.close()
    assert llavakit.load("demo", max_concurrency=5) is not first


def test_backends_that_differ_in_policy_share_the_weights(tiny: TinyModel):
    one = llavakit.load(tiny.path)
    other = llavakit.load(tiny.path, source_policy=llavakit.SourcePolicy(allow_urls=False))
    assert one is not other
    for backend in (one, other):
        backend.generate("hi", SamplingParams(max_tokens=1))
    assert one._engine is other._engine  # type: ignore[attr-defined]


def test_dropped_backend_frees_its_thread(tiny: TinyModel):
    import threading

    backend = llavakit.load(tiny.path, max_concurrency=7)
    backend.generate("hi", SamplingParams(max_tokens=1))
    thread = backend._engine._loop._thread  # type: ignore[attr-defined]
    assert thread in threading.enumerate()
    del backend
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_open_stream_keeps_its_engine(tiny: TinyModel):
    stream = llavakit.load(tiny.path, max_concurrency=6).stream(
        "hi", SamplingParams(max_tokens=20, temperature=0)
    )
    gc.collect()
    assert [chunk.finish_reason for chunk in stream][-1] is not None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"quantization": "3bit"}, "4bit"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "one quantization"),
        ({"dtype": "int8"}, "bfloat16"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"colour": "red"}, "no setting 'colour'"),
    ],
)
def test_bad_setting_is_refused_at_once(arguments, sentence):
    with pytest.raises(ParameterError, match=sentence):
        llavakit.load("demo", **arguments)


def test_unknown_model_names_the_nearest_known_ones():
    with pytest.raises(ModelNotFoundError, match=r"llava-1\.5-7b"):
        llavakit.load("llava-1.5-7").generate("hi")


def test_directory_without_a_checkpoint_says_what_is_missing(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        llavakit.load(tmp_path).generate("hi")


def test_question_without_a_message_list_is_a_user_message():
    backend = FakeBackend(["fine"])
    assert backend.generate("how are you?").text == "fine"
    assert backend.requests[0].messages == (Message("user", "how are you?"),)


def test_ask_is_greedy_unless_told_otherwise():
    backend = FakeBackend(["red"])
    assert backend.ask([b"1", b"2"], "which?") == "red"
    assert backend.requests[0].params.temperature == 0
    assert len(backend.requests[0].messages[0].images) == 2
    backend.ask(None, "which?", temperature=0.7)
    assert backend.requests[1].params.temperature == 0.7


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_tokens": 5}, r"SamplingParams\(max_tokens=...\)"),
        ({"tolls": []}, "did you mean 'tools'"),
        ({"messages": 5}, r"holds llavakit\.Message objects, not int"),
        ({"messages": None}, "not NoneType"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "not dict"),
        ({"params": {"max_tokens": 5}}, r"params is of type dict; give SamplingParams"),
        ({"tools": [{"type": "function"}]}, r"A tool is of type dict; give llavakit\.Tool"),
        ({"tools": [Tool("add"), Tool("add")]}, "Two tools are called 'add'"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tool_choice": ["add"]}, "tool_choice"),
        ({"timeout": "3"}, "timeout is '3'"),
        ({"timeout": 0}, "timeout is 0"),
    ],
    ids=str,
)
def test_what_is_no_request_is_refused_in_one_sentence(given, sentence):
    given = {"messages": "hi", **given}
    with pytest.raises(InputError, match=sentence):
        FakeBackend().generate(given.pop("messages"), **given)


def test_ask_names_the_parameters_that_it_knows():
    with pytest.raises(ParameterError, match="did you mean 'temperature'"):
        FakeBackend().ask(None, "which?", temprature=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_concurrency": "3"},
        {"max_waiting": 1.5},
        {"prefill_chunk": 0},
        {"context_length": 0},
        {"kv_cache_bytes": "1 GB"},
        {"image_cache_bytes": -1},
    ],
    ids=str,
)
def test_setting_that_is_no_such_number_is_refused_by_name(setting):
    (name,) = setting
    with pytest.raises(ParameterError, match=f"^{name} is .*whole number"):
        llavakit.load("demo", **setting)


@pytest.mark.parametrize(
    "setting",
    [
        {"model": 5},
        {"model": ""},
        {"base_url": 5},
        {"device": 5},
        {"source_policy": 5},
        {"load_in_4bit": "yes"},
    ],
    ids=str,
)
def test_setting_of_a_wrong_type_is_refused_by_name(setting):
    (name,) = setting
    with pytest.raises(ParameterError, match=f"^{name} is "):
        llavakit.load(**{"model": "demo", **setting})


@pytest.mark.parametrize("choice", ["required", "add"])
def test_tool_choice_without_its_tool_is_refused(choice):
    with pytest.raises(ParameterError, match="tool"):
        FakeBackend().generate("hi", tool_choice=choice)


def test_all_choices_answer_the_same_request_whatever_it_was_made_of():
    backend = FakeBackend(["a", "b"])
    messages = (Message("user", text) for text in ["hi", "there"])
    answers = backend.choices(messages, SamplingParams(seed=5), tools=iter([Tool("f")]), n=2)
    assert [answer.text for answer in answers] == ["a", "b"]
    first, second = backend.requests
    assert (first.params.seed, second.params.seed) == (5, 6)
    assert replace(second, params=first.params) == first
    assert len(first.messages) == 2 and first.tools == (Tool("f"),)


def test_tool_choice_may_name_a_tool():
    backend = FakeBackend()
    backend.generate("hi", tools=[Tool("add")], tool_choice="add")
    assert backend.requests[0].tool_choice == "add"


async def test_async_answer_equals_the_sync_one():
    backend = FakeBackend(["a b c"])
    assert (await backend.agenerate("hi")).text == backend.generate("hi").text == "a b c"
    assert "".join([chunk.text async for chunk in backend.astream("hi")]) == "a b c"


async def test_cancelled_async_answer_cancels_the_request():
    backend = FakeBackend(["never ends"], hang=True)
    task = asyncio.create_task(backend.agenerate("hi"))
    while not backend.requests:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.cancelled == 1


@pytest.mark.timeout(20)
async def test_closing_a_scripted_backend_ends_the_answers_that_hang():
    backend = FakeBackend(["never ends"], hang=True)
    stream = backend.stream("hi")
    waiting = [asyncio.create_task(backend.agenerate("hi")) for _ in range(2)]
    while len(backend.requests) < 3:
        await asyncio.sleep(0.005)
    backend.close()
    for task in waiting:
        with pytest.raises(EngineClosedError, match="the request was ended"):
            await task
    with pytest.raises(EngineClosedError, match="the request was ended"):
        list(stream)
    assert backend.cancelled == 0


def test_closed_backend_refuses():
    backend = FakeBackend()
    backend.close()
    with pytest.raises(EngineClosedError):
        backend.generate("hi")


LIGHT = (
    "import llavakit",
    "import llavakit; llavakit.load('demo'); llavakit.SamplingParams()",
    "import llavakit; llavakit.Image(b'x'); llavakit.Message('user', 'hi')",
    "from llavakit.documents import Task, open_files, run_job; Task('transcribe')",
    "import llavakit.cli.app",
    "import llavakit.langchain",
    "from llavakit.langchain import ChatLLaVA\nfor _ in range(10): ChatLLaVA(model='demo')",
)


@pytest.fixture(scope="module")
def imported():
    return packages_after(*LIGHT)


@pytest.mark.parametrize("statement", LIGHT)
def test_no_torch_is_imported_by(statement, imported):
    assert "llavakit" in imported[statement]
    assert "torch" not in imported[statement]


@pytest.mark.parametrize("module", ["langchain_core", "llama_index", "torch", "PIL", "httpx"])
def test_package_itself_imports_no(module, imported):
    assert module not in imported["import llavakit"]


def test_a_backend_is_copied_by_name_and_not_by_its_weights():
    backend = llavakit.load("demo")
    assert copy.deepcopy({"backend": backend})["backend"] is backend
    with pytest.raises(ParameterError, match=r"call llavakit\.load with the same arguments there"):
        pickle.dumps(backend)


async def test_tokens_are_counted_off_the_event_loop():
    class Noting(FakeBackend):
        def count_tokens(self, messages, *, tools=()):
            self.thread = threading.current_thread()
            return super().count_tokens(messages, tools=tools)

    backend = Noting()
    assert await backend.acount_tokens("two words") == FakeBackend().count_tokens("two words")
    assert backend.thread is not threading.current_thread()
