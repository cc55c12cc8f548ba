"""The official client, unchanged, against a server process with the bundled model."""

import asyncio
import base64
import json

import openai
import pytest
from pydantic import BaseModel

from tests.serving.conftest import ENDLESS, asking, busy, data_uri, draw, eventually, picture_block

pytestmark = pytest.mark.enable_socket

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a shape.",
        "parameters": {
            "type": "object",
            "properties": {"shape": {"type": "string", "enum": ["circle", "square"]}},
            "required": ["shape"],
        },
    },
}


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client):
    return client.chat.completions.create


@pytest.mark.parametrize("colour", ["red", "blue", "green"])
def test_the_answer_is_about_the_picture(ask, colour):
    answer = ask(**asking(colour=colour))
    assert answer.choices[0].message.content == colour
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.image_tokens == 64
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_block_that_carries_a_picture_is_the_same_picture(ask, form):
    uri = data_uri(draw("blue"), form)
    blocks = [
        {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
        {"type": "image_url", "image_url": uri},
        {"type": "input_image", "image_url": uri},
        {"type": "image", "image": uri},
        {"type": "image", "base64": uri.partition(",")[2], "mime_type": "image/png"},
    ]
    for block in blocks:
        content = [block, {"type": "text", "text": "What colour is the circle?"}]
        messages = [{"role": "user", "content": content}]
        answer = ask(model="demo", messages=messages, temperature=0)
        assert answer.choices[0].message.content == "blue", block["type"]


def test_a_stream_tells_the_same_as_the_whole_answer(ask):
    request = asking("Describe the picture.")
    whole = ask(**request)
    chunks = list(ask(**request, stream=True, stream_options={"include_usage": True}))
    first, last = chunks[0], chunks[-1]
    assert first.choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == "stop" and set(finishes[:-1]) == {None}
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_streamed_only_if_it_was_asked_for(ask):
    chunks = list(ask(**asking(), stream=True))
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)


def test_the_conversation_goes_on(ask):
    messages = asking("What shape is it?")["messages"]
    first = ask(model="demo", messages=messages, temperature=0).choices[0].message
    messages = [*messages, first.model_dump(), {"role": "user", "content": "What colour is it?"}]
    second = ask(model="demo", messages=messages, temperature=0)
    assert (first.content, second.choices[0].message.content) == ("circle", "red")
    assert second.usage.prompt_tokens_details.cached_tokens > 64


def test_several_choices_share_one_prompt(ask):
    answer = ask(**asking(n=3))
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == ["red"] * 3
    assert answer.usage.completion_tokens == 6
    streamed = {}
    for chunk in ask(**asking(n=3), stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert streamed == {0: "red", 1: "red", 2: "red"}


def test_a_seed_gives_the_same_answer_again_and_choices_that_differ(ask):
    request = asking("Tell me a story.", temperature=5.0, seed=7, n=3, max_tokens=12)
    first, again = ([c.message.content for c in ask(**request).choices] for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


def test_the_token_limit_ends_with_length_under_both_names(ask):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(**asking("Describe the picture.", **{name: 2}))
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2


def test_stop_strings_end_the_answer_and_stay_out_of_it(ask):
    whole = ask(**asking("Describe the picture.")).choices[0].message.content
    word = whole.split()[2]
    cut = ask(**asking("Describe the picture.", stop=[word]))
    assert cut.choices[0].message.content == whole.partition(word)[0]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_have_the_shape_of_openai(ask):
    answer = ask(**asking(logprobs=True, top_logprobs=3))
    first = answer.choices[0].logprobs.content[0]
    assert (first.token, bytes(first.bytes)) == (" red", b" red")
    assert -0.1 < first.logprob <= 0
    assert len(first.top_logprobs) == 3 and first.top_logprobs[0].token == " red"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    assert ask(**asking(logprobs=True)).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(**asking()).choices[0].logprobs is None
    chunks = list(ask(**asking(logprobs=True, top_logprobs=3), stream=True))
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == answer.choices[0].logprobs.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_tools_are_called_whole_and_streamed(ask, choice):
    request = asking(tools=[LOOK], tool_choice=choice, parallel_tool_calls=False)
    answer = ask(**request)
    call = answer.choices[0].message.tool_calls[0]
    assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "look")
    assert json.loads(call.function.arguments)["shape"] in ("circle", "square")
    assert answer.choices[0].message.content is None
    pieces = [
        piece
        for chunk in ask(**request, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or ()
    ]
    assert pieces[0].id and pieces[0].function.name == "look" and pieces[0].index == 0
    arguments = "".join(piece.function.arguments for piece in pieces)
    assert arguments == call.function.arguments


def test_results_of_tools_come_back(ask):
    request = asking(tools=[LOOK], tool_choice="required", parallel_tool_calls=False)
    called = ask(**request).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "It is round."}
    messages = [*request["messages"], called.model_dump(), result]
    answer = ask(model="demo", messages=messages, tools=[LOOK], tool_choice="none", temperature=0)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.tool_calls is None


def test_a_schema_is_always_followed(client, ask):
    class Seen(BaseModel):
        colour: str
        count: int

    parsed = client.chat.completions.parse(**asking(), response_format=Seen)
    assert isinstance(parsed.choices[0].message.parsed, Seen)
    free = ask(**asking("Answer in JSON."), response_format={"type": "json_object"}, max_tokens=400)
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content), dict)
    assert free.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        ({"choice": ["a blue thing", "a red thing"]}, {"a blue thing", "a red thing"}),
        ({"regex": "(blue|red)!"}, {"blue!", "red!"}),
        ({"grammar": 'start: "it is " ("red" | "blue")'}, {"it is red", "it is blue"}),
        ({"json": {"type": "string", "enum": ["red", "blue"]}}, {'"red"', '"blue"'}),
    ],
)
def test_structured_outputs_hold_the_model_to_a_form(ask, form, answers):
    answer = ask(**asking(), extra_body={"structured_outputs": form})
    assert answer.choices[0].message.content in answers


def test_sampling_extensions_have_their_effect(ask):
    request = asking("Tell me a story.", temperature=5.0, seed=3)
    greedy = ask(**asking("Tell me a story.")).choices[0].message.content
    wild = ask(**request, max_tokens=20).choices[0].message.content
    assert wild != greedy
    for extra in ({"top_k": 1}, {"min_p": 0.999}):
        assert ask(**request, extra_body=extra).choices[0].message.content == greedy
    assert ask(**request, top_p=1e-9).choices[0].message.content == greedy


def test_models_are_listed_and_found(client):
    listed = client.models.list().data
    assert [(one.id, one.owned_by) for one in listed] == [("demo", "llavakit")]
    assert client.models.retrieve("demo").max_model_len == 4096
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "kind", "param", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model", "model_not_found"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"extra_body": {"beams": 2}}, openai.BadRequestError, "beams", "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": "so " * 5000}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_errors_are_those_that_the_client_knows(ask, change, kind, param, code):
    with pytest.raises(kind) as caught:
        ask(**(asking() | change))
    assert (caught.value.param, caught.value.code) == (param, code)


async def test_many_at_once_each_get_their_own_answer(served):
    colours = ["red", "blue", "green", "yellow"] * 4
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(**asking(colour=colour)) for colour in colours)
        )
    assert [answer.choices[0].message.content for answer in answers] == colours


def test_a_closed_stream_frees_the_engine(served, ask):
    before = served.idle()
    stream = ask(model="demo", messages=[{"role": "user", "content": "Go on"}], n=2, stream=True,
                 extra_body=ENDLESS)  # fmt: skip
    next(iter(stream))
    assert busy(served.metrics()) == 2
    stream.close()
    after = served.idle()
    assert after["engine_requests_cancelled_total"] == before["engine_requests_cancelled_total"] + 2


async def test_a_cancelled_request_frees_the_engine(served):
    before = served.idle()
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="any", max_retries=0
    ) as client:
        work = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Go on"}], n=2, extra_body=ENDLESS
        )
        task = asyncio.create_task(work)
        await asyncio.to_thread(eventually, served.metrics, lambda found: busy(found) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    after = await asyncio.to_thread(served.idle)
    assert after["engine_requests_cancelled_total"] == before["engine_requests_cancelled_total"] + 2


def test_a_picture_of_bare_base64_is_understood(ask):
    block = picture_block("green")
    raw = block["image_url"]["url"].partition(",")[2]
    assert base64.b64decode(raw)[:4] == b"\x89PNG"
    content = [{"type": "image_url", "image_url": {"url": raw}},
               {"type": "text", "text": "What colour is the circle?"}]  # fmt: skip
    answer = ask(model="demo", messages=[{"role": "user", "content": content}], temperature=0)
    assert answer.choices[0].message.content == "green"
