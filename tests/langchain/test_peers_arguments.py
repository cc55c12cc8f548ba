"""What programs pass to ChatOpenAI and ChatOllama is honoured here, or refused in a sentence."""

import itertools

import httpx
import pytest
from langchain_core.messages import HumanMessage

from llavakit.errors import LlavaKitError, ModelError, ParameterError
from llavakit.langchain import ChatLLaVA, LLaVALLM
from llavakit.testing import FakeBackend
from tests.remote.scripted import scripted

QUESTION = [HumanMessage("What colour is it?")]


@pytest.fixture
def peer():
    with scripted() as server:
        yield server


def says(text):
    def script(handler):
        handler.begin()
        for delta, finish in (({"content": text}, None), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            handler.event({"choices": [choice]})
        handler.event("[DONE]")
        handler.end()

    return script


def test_n_answers_come_from_one_prompt():
    backend = FakeBackend(["red", "blue", "green"])
    model = ChatLLaVA(backend=backend, n=3, seed=7)
    (answers,) = model.generate([QUESTION]).generations
    assert [one.text for one in answers] == ["red", "blue", "green"]
    assert [request.params.seed for request in backend.requests] == [7, 8, 9]
    assert model.invoke(QUESTION).text == "red"


async def test_n_answers_come_asynchronously_and_by_the_call():
    model = ChatLLaVA(backend=FakeBackend(["red", "blue"]))
    (answers,) = (await model.agenerate([QUESTION], n=2)).generations
    assert sorted(one.text for one in answers) == ["blue", "red"]
    with pytest.raises(ParameterError, match="n is 2, and a stream is one answer"):
        list(model.stream(QUESTION, n=2))
    with pytest.raises(ParameterError, match="n is 0"):
        model.invoke(QUESTION, n=0)


async def test_n_completions_of_each_prompt():
    numbers = itertools.count()
    backend = FakeBackend(lambda request: f"{request.messages[-1].text}{next(numbers)}")
    model = LLaVALLM(backend=backend, n=2)
    for result in (model.generate(["p", "q"]), await model.agenerate(["p", "q"])):
        told = [[one.text for one in both] for both in result.generations]
        assert [[text[0] for text in both] for both in told] == [["p", "p"], ["q", "q"]]
        assert len({text for both in told for text in both}) == 4
    with pytest.raises(ParameterError, match="a stream is one answer"):
        list(model.stream("p"))


def test_an_answer_is_not_cached_for_another_n():
    assert (
        ChatLLaVA(model="demo", n=2)._get_llm_string() != ChatLLaVA(model="demo")._get_llm_string()
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"presence_penalty": 0.5, "frequency_penalty": -1}, {"presence_penalty": 0.5}),
        ({"logit_bias": {"5": 3}}, {"logit_bias": ((5, 3.0),)}),
        ({"model_kwargs": {"top_k": 4}}, {"top_k": 4}),
        ({"model_kwargs": {"num_predict": 4}}, {"max_tokens": 4}),
        ({"format": "json"}, {"json_schema": True}),
        ({"format": {"type": "object"}}, {"json_schema": {"type": "object"}}),
        ({"format": ""}, {"json_schema": None}),
    ],
)
def test_sampling_settings_of_peers_reach_the_model(settings, expected):
    backend = FakeBackend(["{}"])
    ChatLLaVA(backend=backend, **settings).invoke(QUESTION)
    params = backend.requests[0].params
    assert {name: getattr(params, name) for name in expected} == expected


def test_what_a_call_is_held_to_wins_over_the_format():
    backend = FakeBackend(['{"a": 1}'])
    schema = {"title": "A", "type": "object", "properties": {"a": {"type": "integer"}}}
    model = ChatLLaVA(backend=backend, format="json")
    assert model.with_structured_output(schema).invoke("q") == {"a": 1}
    assert backend.requests[0].params.json_schema["title"] == "A"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_kwargs": {"topk": 4}}, "did you mean 'top_k'"),
        ({"temperature": 0, "model_kwargs": {"temperature": 1}}, "given twice"),
        ({"logit_bias": {"5": 300}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"format": "yaml"}, "format"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"extra_body": {"a": 1}}, "extra_body is for servers"),
        ({"default_headers": {"X": "a"}}, "default_headers is for servers"),
        ({"client_kwargs": {"http2": False}}, "client_kwargs is for servers"),
        ({"base_url": "http://h:1", "default_headers": {"X": "a\nb"}}, "default_headers"),
        ({"base_url": "http://h:1", "client_kwargs": {"prxy": "x"}}, "client_kwargs"),
        ({"base_url": "http://h:1", "extra_body": {"messages": []}}, "extra_body"),
        ({"base_url": "http://h:1", "http_client": "x"}, "http_client"),
        ({"base_url": "http://h:1", "keep_alive": "5m"}, "keep_alive"),
    ],
)
def test_what_cannot_be_honoured_is_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        ChatLLaVA(model="demo", **settings).backend_for()


def test_the_model_is_looked_at_by_construction_where_that_is_asked_for(tmp_path):
    ChatLLaVA(model="demo", validate_model_on_init=True)
    ChatLLaVA(model=str(tmp_path))
    with pytest.raises((ModelError, LlavaKitError)):
        ChatLLaVA(model=str(tmp_path), validate_model_on_init=True)


def test_usage_of_streams_can_be_left_out():
    model = ChatLLaVA(backend=FakeBackend(["red"]))
    assert any(chunk.usage_metadata for chunk in model.stream(QUESTION))
    assert not any(chunk.usage_metadata for chunk in model.stream(QUESTION, stream_usage=False))
    silent = ChatLLaVA(backend=FakeBackend(["red"]), stream_usage=False)
    assert not any(chunk.usage_metadata for chunk in silent.stream(QUESTION))


def test_names_of_peers_are_understood():
    model = ChatLLaVA(model_name="m", openai_api_base="http://h:1/v1", openai_api_key="k")
    assert (model.model, model.base_url) == ("m", "http://h:1/v1")
    assert model.api_key.get_secret_value() == "k"


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of a client that nobody closes
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("client", [None, httpx.Client, httpx.AsyncClient])
async def test_headers_fields_and_clients_reach_the_server(peer, client):
    made = None if client is None else client(headers={"X-Mine": "1"})
    model = ChatLLaVA(
        model="m",
        base_url=peer.url,
        dialect="generic",
        default_headers={"X-Tenant": "a"},
        extra_body={"chat_template_kwargs": {"b": 1}},
        http_client=made,
    )
    peer.says(says("red"), says("blue"), says("green"))
    assert model.invoke(QUESTION).text == "red"
    assert (await model.ainvoke(QUESTION)).text == "blue"
    assert "".join(chunk.text for chunk in model.stream(QUESTION)) == "green"
    for asked in peer.asked:
        assert asked["chat_template_kwargs"] == {"b": 1}
    headers = {name.lower(): value for name, value in peer.seen[-1][2].items()}
    assert headers["x-tenant"] == "a"
    assert ("x-mine" in headers) == (client is not None)
    if isinstance(made, httpx.Client):
        made.close()


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_arguments_of_the_client_are_its_own(peer):
    seen = []

    async def remember(request):
        seen.append(str(request.url))

    model = ChatLLaVA(
        model="m",
        base_url=peer.url,
        dialect="generic",
        client_kwargs={"event_hooks": {"request": [remember]}},
    )
    peer.says(says("red"))
    assert model.invoke(QUESTION).text == "red" and seen
