"""How a conversation ends, over HTTP: a new turn, or words that the answer goes on with."""

import httpx
import pytest

from llavakit.testing import FakeBackend
from llavakit.values import Message
from tests.serving.conftest import CHAT, events_of

HI = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def answer(text):
    return {"role": "assistant", "content": text}


def body(*messages, **more):
    return {"model": "fake", "messages": list(messages), "max_tokens": 40, "temperature": 0} | more


@pytest.mark.parametrize(
    "messages",
    [
        [HI, answer("Hello!")],
        [HI, answer("Hello!"), answer("How can I help?")],
        [{"role": "system", "content": "Name a colour."}],
        [answer("Hello!")],
        [HI, {"role": "assistant", "tool_calls": [CALL]},
         {"role": "tool", "tool_call_id": "c1", "content": "3"}],
    ],
)  # fmt: skip
async def test_an_answer_follows_whoever_spoke_last(client, messages):
    app = client()
    told = await app.post(CHAT, json=body(*messages))
    assert told.status_code == 200, told.text
    (request,) = app.backend.requests
    assert request.add_generation_prompt and not request.continue_final_message


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
async def test_words_that_are_there_are_gone_on_with(client, more):
    app = client()
    asked = body(HI, answer("Hello! How can"), continue_final_message=True, **more)
    assert (await app.post(CHAT, json=asked)).status_code == 200
    (request,) = app.backend.requests
    assert request.continue_final_message and not request.add_generation_prompt


@pytest.mark.parametrize(
    ("messages", "more", "param", "words"),
    [
        (
            [HI, answer("a")],
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
            "contradict",
        ),
        ([HI], {"add_generation_prompt": False}, "add_generation_prompt", "without a turn"),
        ([HI], {"continue_final_message": True}, "messages", "end with an assistant message"),
        ([HI, {"role": "assistant", "tool_calls": [CALL]}], {}, "messages", "'add' that has no"),
        ([{"role": "system", "content": ""}], {}, "messages", "empty"),
        ([HI], {"continue_final_message": "yes"}, "continue_final_message", ""),
    ],
)
async def test_what_no_answer_can_follow_is_told(client, messages, more, param, words):
    app = client()
    told = await app.post(CHAT, json=body(*messages, **more))
    assert told.status_code == 400
    assert told.json()["error"]["param"] == param and words in told.json()["error"]["message"]
    assert app.backend.requests == []


async def test_the_field_of_a_schema_that_cannot_be_held_to_is_named(client, demo_backend):
    class Asking(FakeBackend):
        def submit(self, request):
            return demo_backend.submit(request)

    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": "(?!a)b"}}}
    form = {"type": "json_schema", "json_schema": {"name": "P", "schema": schema}}
    told = await client(Asking()).post(CHAT, json=body(HI, response_format=form))
    assert (
        told.status_code == 400 and "field 'code': the pattern" in told.json()["error"]["message"]
    )


async def test_an_answer_that_is_no_object_follows_its_schema(client, demo_backend):
    class Asking(FakeBackend):
        def submit(self, request):
            return demo_backend.submit(request)

    form = {"type": "json_schema", "json_schema": {"name": "C", "schema": {"enum": ["up", "down"]}}}
    told = await client(Asking()).post(CHAT, json=body(HI, response_format=form))
    assert told.json()["choices"][0]["message"]["content"] in ('"up"', '"down"')


async def test_the_answer_goes_on_where_the_words_end(client, demo_backend):
    class Asking(FakeBackend):
        def submit(self, request):
            return demo_backend.submit(request)

    app = client(Asking())
    begun = "Hello! How can"
    asked = body(HI, answer(begun), continue_final_message=True)
    told = (await app.post(CHAT, json=asked)).json()["choices"][0]["message"]["content"]
    messages = [Message("user", "hello"), Message("assistant", begun)]
    assert told == demo_backend.generate(messages, continue_final_message=True).text
    assert told.startswith(" ")


@pytest.mark.enable_socket
def test_tokenize_counts_an_answer_that_goes_on(served):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am"}]
    with httpx.Client(base_url=served.url) as http:
        for more in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
            body = {"model": "demo", "messages": messages, **more}
            answer = http.post(CHAT, json=body | {"max_tokens": 1}).json()
            counted = http.post("/tokenize", json=body).json()
            assert counted["count"] == answer["usage"]["prompt_tokens"]
        both = {"continue_final_message": True, "add_generation_prompt": True}
        error = http.post("/tokenize", json=body | both).json()["error"]
        assert error["param"] == "add_generation_prompt"


@pytest.mark.enable_socket
def test_each_event_of_an_answer_that_goes_on_has_its_prompts_tokens(served):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am"}]
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {
        "model": "demo",
        "messages": messages,
        "continue_final_message": True,
        "max_tokens": 2,
        "stream": True,
        "stream_options": options,
    }
    events = events_of(httpx.post(f"{served.url}{CHAT}", json=body).text)
    assert len({event["usage"]["prompt_tokens"] for event in events}) == 1
