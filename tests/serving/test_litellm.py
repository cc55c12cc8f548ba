"""litellm, where it is installed (it holds some packages back, so that the suite does without)."""

import pytest

from tests.serving.conftest import data_uri, draw

litellm = pytest.importorskip("litellm")
pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.filterwarnings("ignore")]

QUESTION = "What colour is the circle?"
TOOL = {
    "name": "look",
    "parameters": {"type": "object", "properties": {"shape": {"type": "string"}}},
}


@pytest.fixture
def settings(served):
    base = {"model": "openai/demo", "api_base": f"{served.url}/v1", "api_key": "none"}
    return base | {"temperature": 0}


def messages():
    image = {"type": "image_url", "image_url": {"url": data_uri(draw("red"))}}
    return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]


def test_chat_completions_whole_streamed_and_with_a_tool(settings):
    whole = litellm.completion(messages=messages(), **settings)
    assert whole.choices[0].message.content == "red"
    chunks = litellm.completion(messages=messages(), stream=True, **settings)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "red"
    tools = [{"type": "function", "function": TOOL}]
    called = litellm.completion(
        messages=messages(), tools=tools, tool_choice="required", **settings
    )
    assert called.choices[0].message.tool_calls[0].function.name == "look"


def test_the_responses_api_whole_and_streamed(settings):
    image = {"type": "input_image", "image_url": data_uri(draw("red"))}
    content = [{"type": "input_text", "text": QUESTION}, image]
    asked = [{"role": "user", "content": content}]
    answer = litellm.responses(input=asked, **settings)
    assert answer.output[0].content[0].text == "red"
    events = list(litellm.responses(input=asked, stream=True, **settings))
    assert events[-1].type == "response.completed"


def test_what_is_too_long_is_its_own_error(settings):
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "so " * 9000}], **settings)
