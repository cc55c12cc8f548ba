"""`presence_penalty`, `frequency_penalty` and `logit_bias` over HTTP."""

import httpx
import pytest

import llavakit
from llavakit import Message, SamplingParams
from llavakit.serving import ServerSettings, create_app
from tests.serving.conftest import CHAT, running, saying

SHIFTS = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "logit_bias": {"300": 2.5, "7": -100}}


async def test_they_reach_the_backend(client):
    app = client()
    answer = await app.post(CHAT, json=saying(**SHIFTS))
    assert answer.status_code == 200, answer.text
    assert app.backend.requests[0].params == SamplingParams(**SHIFTS)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
    ],
    ids=str,
)
async def test_what_cannot_be_honoured_is_told_by_name(client, change, param):
    app = client()
    answer = await app.post(CHAT, json=saying(**change))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert param in error["message"] and (error["param"] or param).startswith(param)
    assert not app.backend.requests


async def test_a_token_beyond_the_vocabulary_is_the_clients_fault(demo_backend):
    app = create_app(demo_backend, ServerSettings(warm_up=False))
    app.state.service.readiness.begin()
    app.state.service.readiness._thread.join(60)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = saying(logit_bias={"99999999": 1}) | {"model": "demo"}
        answer = await client.post(CHAT, json=body)
    assert answer.status_code == 400 and "vocabulary" in answer.json()["error"]["message"]


@pytest.mark.enable_socket
def test_answers_over_base_url_are_those_of_the_weights(demo_backend):
    asked = [Message("user", "Tell me a story.")]
    with running(demo_backend) as server:
        there = llavakit.load("demo", base_url=server.url)
        texts = set()
        for shift in ({}, {"presence_penalty": -2.0, "frequency_penalty": -2.0}, SHIFTS):
            params = SamplingParams(temperature=0, max_tokens=12, **shift)
            here, far = (backend.generate(asked, params).text for backend in (demo_backend, there))
            assert far == here
            texts.add(here)
        assert len(texts) > 1
        answers = there.choices(asked, SamplingParams(temperature=5.0, seed=1, max_tokens=6), n=2)
        mine = demo_backend.choices(
            asked, SamplingParams(temperature=5.0, seed=1, max_tokens=6), n=2
        )
        assert [one.text for one in answers] == [one.text for one in mine]
        there.close()
