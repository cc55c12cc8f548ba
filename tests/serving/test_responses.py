"""The Responses API: OpenAI's client and LangChain's on the bundled model, and every refusal."""

import httpx
import openai
import pytest
from pydantic import BaseModel

from llavakit.testing import FakeBackend
from llavakit.values import Chunk, Completion, CutCall, ToolCall, Usage
from tests.serving.conftest import data_uri, draw, running

RESPONSES = "/v1/responses"
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CIRCLE = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": data_uri(draw("red"))},
            {"type": "input_text", "text": "What colour is the circle?"},
        ],
    }
]


def asking(**change):
    return {"model": "fake", "input": "Hello"} | change


@pytest.fixture
def openai_client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.enable_socket
def test_an_answer_is_about_the_image(openai_client):
    answer = openai_client.responses.create(model="demo", input=CIRCLE, temperature=0, store=False)
    assert "red" in answer.output_text.lower()
    assert (answer.status, answer.store, answer.error) == ("completed", False, None)
    assert answer.usage.output_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.enable_socket
def test_a_stream_ends_with_the_whole_answer(openai_client):
    whole = openai_client.responses.create(model="demo", input=CIRCLE, temperature=0)
    events = list(
        openai_client.responses.create(model="demo", input=CIRCLE, temperature=0, stream=True)
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type.endswith("text.delta"))
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.enable_socket
def test_the_clients_own_stream_helper_and_parser_work(openai_client):
    class Shape(BaseModel):
        colour: str
        sides: int

    with openai_client.responses.stream(
        model="demo", input=CIRCLE, temperature=0, text_format=Shape
    ) as stream:
        assert any(event.type == "response.output_text.delta" for event in stream)
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Shape)
    parsed = openai_client.responses.parse(
        model="demo", input="A circle.", temperature=0, text_format=Shape
    )
    assert isinstance(parsed.output_parsed, Shape)


@pytest.mark.enable_socket
def test_a_tool_is_called_and_its_result_comes_back(openai_client):
    weather = {
        "type": "function",
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"sunny": {"type": "boolean"}},
            "required": ["sunny"],
            "additionalProperties": False,
        },
        "strict": True,
    }
    rest = {"model": "demo", "tools": [weather], "temperature": 0}
    first = openai_client.responses.create(input="Weather?", tool_choice="required", **rest)
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = [{"role": "user", "content": "Weather?"}, call, result]
    second = openai_client.responses.create(input=history, tool_choice="none", **rest)
    assert second.output[0].type == "message"
    kinds = [
        event.type
        for event in openai_client.responses.create(
            input="Weather?", tool_choice="required", stream=True, **rest
        )
    ]
    assert "response.function_call_arguments.done" in kinds
    assert not any("output_text" in kind for kind in kinds)


@pytest.mark.enable_socket
def test_logprobs_are_those_of_the_answer(openai_client):
    answer = openai_client.responses.create(
        model="demo",
        input=CIRCLE,
        temperature=0,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    tokens = answer.output[0].content[0].logprobs
    said = "".join(token.token for token in tokens).removesuffix("</s>")
    assert said.strip() == answer.output_text.strip()
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


@pytest.mark.enable_socket
def test_the_token_limit_makes_it_incomplete(openai_client):
    settings = {"model": "demo", "input": CIRCLE, "max_output_tokens": 1, "temperature": 0}
    answer = openai_client.responses.create(**settings)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(openai_client.responses.create(stream=True, **settings))
    assert events[-1].type == "response.incomplete"


@pytest.mark.enable_socket
@pytest.mark.parametrize("stream", [False, True])
def test_langchain_asks_by_the_responses_api(served, stream):
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        model="demo",
        use_responses_api=True,
        temperature=0,
    )
    message = HumanMessage(
        [
            {"type": "image_url", "image_url": {"url": data_uri(draw("blue"))}},
            {"type": "text", "text": "What colour is the circle?"},
        ]
    )
    if stream:
        chunks = list(model.stream([message]))
        answer = chunks[0]
        for chunk in chunks[1:]:
            answer += chunk
    else:
        answer = model.invoke([message])
    assert "blue" in answer.text.lower()
    assert answer.usage_metadata["output_tokens"] > 0


@pytest.mark.enable_socket
def test_langchains_tools_and_schemas_work_there(served):
    from langchain_openai import ChatOpenAI

    class Shape(BaseModel):
        """A shape."""

        sides: int

    model = ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        model="demo",
        use_responses_api=True,
        temperature=0,
    )
    for method in ("json_schema", "function_calling"):
        assert isinstance(
            model.with_structured_output(Shape, method=method).invoke("A square."), Shape
        )


async def test_calls_follow_the_answer_that_made_them(client):
    app = client()
    history = [
        {"role": "user", "content": "Look."},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "look", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [{"type": "input_image", "image_url": data_uri(draw(size=32))}],
        },
    ]
    body = asking(input=history, instructions="Be brief.", tools=[TOOL])
    answer = await app.post(RESPONSES, json=body)
    assert answer.status_code == 200, answer.text
    (request,) = app.backend.requests
    assert [one.role for one in request.messages] == ["system", "user", "assistant", "tool", "tool"]
    assert [call.id for call in request.messages[2].tool_calls] == ["a", "b"]
    assert len(request.messages[4].images) == 1


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"conversation": {"id": "c"}}, "conversation", "nothing is stored"),
        ({"background": True}, "background", "nothing is stored"),
        ({"prompt": {"id": "p"}}, "prompt", "not stored here"),
        ({"truncation": "auto"}, "truncation", "shorten the input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "nothing is stored"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        ({"input": []}, "input", ""),
        ({"input": 3}, "input", "a string or a list of items"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", ""),
        ({"input": [{"role": "user", "content": None}]}, "input[0].content", "null"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "input[0].content[0]",
            "input_audio",
        ),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "/a.png"}]}
                ]
            },
            "input[0].content[0]",
            "reads no paths",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
            "input[0]",
            "no assistant message",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "'json_schema'"),
        ({"max_tokens": 5}, "max_tokens", "not known"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'allowed_tools'"),
        ({"include": ["file_search_call.results"]}, "include[0]", ""),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "",
        ),
        ({"model": "other"}, "model", "not served"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_its_name(client, change, param, words):
    app = client()
    answer = await app.post(RESPONSES, json=asking(**change))
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and error["param"] == param, error
    assert words in error["message"]
    assert app.backend.requests == []


async def test_an_error_in_mid_stream_fails_the_response(client):
    class Broken(FakeBackend):
        """Ends without an end."""

        def submit(self, request):
            from llavakit.streams import AnswerStream, Channel

            channel = Channel()
            channel.put(Chunk(text="a red"))
            channel.fail(RuntimeError("secret"))
            return AnswerStream(channel, lambda: None)

    answer = await client(Broken()).post(RESPONSES, json=asking(stream=True))
    assert "event: response.failed" in answer.text and "event: error" in answer.text
    assert "response.completed" not in answer.text and "secret" not in answer.text


@pytest.mark.enable_socket
def test_the_client_raises_for_a_stream_that_failed():
    class Broken(FakeBackend):
        """Ends without an end."""

        def submit(self, request):
            from llavakit.streams import AnswerStream, Channel

            channel = Channel()
            channel.put(Chunk(text="a red"))
            channel.fail(RuntimeError("secret"))
            return AnswerStream(channel, lambda: None)

    with (
        running(Broken()) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIError, match="log says more"),
    ):
        list(client.responses.create(model="fake", input="x", stream=True))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_call_is_not_among_the_output(client, stream):
    cut = Completion("", finish_reason="length", cut_calls=(CutCall("pay", '{"amount": 345'),))
    answer = await client([cut]).post(RESPONSES, json=asking(stream=stream, tools=[TOOL]))
    assert '"function_call"' not in answer.text
    assert "cut_tool_calls" in answer.text and "incomplete" in answer.text


async def test_words_go_before_calls_in_both_forms(client):
    said = Completion(
        "Let me look.", (ToolCall("call_1", "look", {"x": 1}),), "tool_calls", Usage(3, 4)
    )
    whole = await client([said]).post(RESPONSES, json=asking(tools=[TOOL]))
    assert [item["type"] for item in whole.json()["output"]] == ["message", "function_call"]
    assert whole.json()["output"][1]["arguments"] == '{"x":1}'


async def test_an_empty_answer_is_a_message_without_words(client):
    answer = await client([Completion("")]).post(RESPONSES, json=asking())
    (item,) = answer.json()["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")


@pytest.mark.enable_socket
def test_raw_events_have_their_names(served):
    body = {"model": "demo", "input": "Hi", "stream": True, "max_output_tokens": 2}
    answer = httpx.post(served.url + RESPONSES, json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names[0] == "event: response.created" and "[DONE]" not in answer.text
