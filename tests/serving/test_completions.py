"""The older completions, by OpenAI's client and LlamaIndex's."""

import openai
import pytest

from llavakit.values import Completion, Usage
from tests.serving.conftest import events_of

PATH = "/v1/completions"


def asking(**change):
    return {"model": "fake", "prompt": "Hello"} | change


@pytest.mark.enable_socket
def test_a_prompt_is_answered_as_a_users_message(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        text = client.completions.create(model="demo", prompt="Hello", temperature=0)
        chat = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hello"}],
            temperature=0,
            max_tokens=16,
        )
        assert text.choices[0].text == chat.choices[0].message.content
        stream = client.completions.create(model="demo", prompt="Hello", temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == text.choices[0].text


@pytest.mark.enable_socket
def test_llama_index_asks_with_its_defaults(served):
    like = pytest.importorskip("llama_index.llms.openai_like")
    model = like.OpenAILike(model="demo", api_base=f"{served.url}/v1", api_key="x", temperature=0)
    assert model.complete("Hello").text.strip()


async def test_several_prompts_have_several_answers_each(client):
    app = client([Completion(str(number), usage=Usage(3, 1)) for number in range(4)])
    answer = (await app.post(PATH, json=asking(prompt=["a", "b"], n=2, echo=True))).json()
    assert [choice["text"] for choice in answer["choices"]] == ["a0", "a1", "b2", "b3"]
    assert [request.messages[0].text for request in app.backend.requests] == ["a", "a", "b", "b"]
    assert answer["usage"]["prompt_tokens"] == 6 and answer["usage"]["completion_tokens"] == 4
    assert all(request.params.max_tokens == 16 for request in app.backend.requests)


async def test_echo_and_usage_are_streamed(client):
    app = client([Completion("world", usage=Usage(3, 1))])
    body = asking(echo=True, stream=True, stream_options={"include_usage": True})
    events = events_of((await app.post(PATH, json=body)).text)
    texts = [choice["text"] for event in events for choice in event["choices"]]
    assert "".join(texts) == "Helloworld" and texts[0] == "Hello"
    assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] == 4


@pytest.mark.enable_socket
def test_logprobs_have_the_older_form(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        answer = client.completions.create(
            model="demo", prompt="Hello", temperature=0, logprobs=2, max_tokens=4
        )
    told = answer.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) > 0
    assert told.text_offset[0] == 0 and told.text_offset == sorted(told.text_offset)
    assert all(len(top) == 2 for top in told.top_logprobs)
    assert answer.choices[0].text.startswith(told.tokens[0].lstrip())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": []}, "tools"),
        ({"model": "other"}, "model"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_its_name(client, change, param):
    app = client()
    answer = await app.post(PATH, json=asking(**change))
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param, answer.text
    assert app.backend.requests == []
