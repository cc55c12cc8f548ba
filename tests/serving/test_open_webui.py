"""What Open WebUI sends to a server of OpenAI's API, sent by OpenAI's client.

https://docs.openwebui.com: a connection is checked by the list of models; chats are streamed with
their usage and images as data URIs; titles, tags and follow-ups are asked for in requests of their
own, whole, with the task beside them.
"""

import json

import openai
import pytest

from tests.serving.conftest import data_uri, draw

pytestmark = pytest.mark.enable_socket

CONTROLS = {
    "temperature": 0,
    "top_p": 0.9,
    "max_tokens": 40,
    "seed": 3,
    "stop": ["\n\n"],
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "reasoning_effort": "medium",
}
"""The controls of a chat."""
TASK = (
    "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
    '### Output:\nJSON format: {{ "title": "your concise title here" }}\n'
    "### Chat History:\n<chat_history>\nUSER: What colour is the circle?\nASSISTANT: red\n"
    "</chat_history>"
)


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-none", max_retries=0) as made:
        yield made


def question(colour="red"):
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": "What colour is the circle?"},
            {"type": "image_url", "image_url": {"url": data_uri(draw(colour))}},
        ],
    }


def test_a_connection_is_checked_by_the_list_of_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("demo", "model") and model.owned_by


def test_a_chat_is_streamed_with_its_usage_and_goes_on(client):
    messages = [{"role": "system", "content": "You answer briefly."}, question()]
    for expected in ("red", "blue"):
        events = list(
            client.chat.completions.create(
                model="demo",
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                metadata={"chat_id": "c1", "message_id": "m1"},
                **CONTROLS,
            )
        )
        said = "".join(one.choices[0].delta.content or "" for one in events if one.choices)
        assert said == expected and events[-1].usage.completion_tokens > 0
        messages += [{"role": "assistant", "content": said}, question("blue")]


def test_titles_are_asked_for_beside_the_chat(client):
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": TASK}],
        stream=False,
        max_completion_tokens=60,
        extra_body={"metadata": {"task": "title_generation", "chat_id": "c1"}},
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.content is not None


def test_its_native_tools_are_called(client):
    tool = {
        "type": "function",
        "function": {
            "name": "get_current_timestamp",
            "description": "Get the current Unix timestamp in seconds.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
    events = client.chat.completions.create(
        model="demo",
        messages=[question()],
        tools=[tool],
        tool_choice="required",
        stream=True,
        temperature=0,
    )
    calls = [call for one in events for call in one.choices[0].delta.tool_calls or ()]
    assert calls[0].function.name == "get_current_timestamp"
    assert json.loads(calls[0].function.arguments) == {}


def test_a_wrong_setting_is_an_error_that_it_can_show(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[question()], extra_body={"mirostat": 2}
        )
    assert caught.value.param == "mirostat" and "not known here" in caught.value.message
