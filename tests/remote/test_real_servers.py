"""The same calls on real servers of the bundled model: the same answers as from its weights here.

What a server enforces on tokens (schemas, tools, grammars) is compared where it does.
"""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

import llavakit
from llavakit import Image, Message, SamplingParams, Tool
from llavakit.backend import Backend
from llavakit.errors import ModelNotFoundError, RemoteError
from tests.servers import SERVERS

pytestmark = pytest.mark.enable_socket

GREEDY = SamplingParams(temperature=0, max_tokens=60)
MULTIPLY = Tool(
    "multiply",
    "Multiply two numbers.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)
WEATHER = Tool(
    "get_weather",
    "Get the weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def drawn(colour: Any = "red", shape: str = "ellipse") -> PILImage.Image:
    image = PILImage.new("RGB", (200, 200), "white")
    getattr(ImageDraw.Draw(image), shape)((50, 50, 150, 150), fill=colour)
    return image


def jpeg() -> bytes:
    buffer = io.BytesIO()
    drawn("blue").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@pytest.fixture(params=list(SERVERS))
def there(request: pytest.FixtureRequest) -> Backend:
    """The remote backend of each server; the dialect is found out."""
    server = SERVERS[request.param]()
    return llavakit.load(server.model, base_url=server.url)


@pytest.fixture
def ours() -> Backend:
    server = SERVERS["llavakit"]()
    return llavakit.load(server.model, base_url=server.url)


@pytest.mark.parametrize(
    "question",
    ["What colour is the circle?", "Describe the picture.", "How many shapes are there?"],
)
@pytest.mark.parametrize("colour", ["red", "blue"])
def test_answers_about_pictures_are_those_of_the_weights(there, demo_backend, question, colour):
    asked = Message("user", [Image(drawn(colour)), question])
    here, far = (backend.generate([asked], GREEDY) for backend in (demo_backend, there))
    assert (far.text, far.finish_reason) == (here.text, here.finish_reason)
    assert far.usage.prompt_tokens == here.usage.prompt_tokens


def test_a_jpeg_is_the_same_picture_there(there, demo_backend):
    asked = Message("user", [Image(jpeg()), "Describe the picture."])
    assert there.generate([asked], GREEDY).text == demo_backend.generate([asked], GREEDY).text


def test_a_conversation_goes_on_there_as_here(there, demo_backend):
    asked = [
        Message("system", "Be short."),
        Message("user", [Image(drawn("green", "rectangle")), "What is this?"]),
        Message("assistant", "a green square"),
        Message("user", "What colour is the square?"),
    ]
    assert there.generate(asked, GREEDY).text == demo_backend.generate(asked, GREEDY).text


def test_a_picture_of_a_system_message_is_seen_there_as_here(there, demo_backend):
    asked = [
        Message("system", [Image(drawn("green"))]),
        Message("user", "What colour is the circle?"),
    ]
    assert (
        there.generate(asked, GREEDY).text == demo_backend.generate(asked, GREEDY).text == "green"
    )


def test_pieces_come_one_by_one_and_make_the_answer(there, demo_backend):
    asked = Message("user", [Image(drawn()), "Describe the picture."])
    pieces = list(there.stream([asked], GREEDY))
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == demo_backend.generate([asked], GREEDY).text
    assert pieces[-1].usage.completion_tokens > 2


def test_many_ask_at_once_and_each_gets_its_own_answer(there):
    colours = ["red", "blue", "green", "yellow"] * 3
    with ThreadPoolExecutor(len(colours)) as pool:
        told = list(pool.map(lambda c: there.ask(drawn(c), "What colour is the circle?"), colours))
    assert told == colours


async def test_async_answers_are_the_same(there):
    asked = Message("user", [Image(drawn("blue")), "What colour is the circle?"])
    answers = await asyncio.gather(*(there.agenerate([asked], GREEDY) for _ in range(4)))
    assert {answer.text for answer in answers} == {"blue"}


def test_a_stream_that_is_left_harms_nobody(there):
    long = SamplingParams(temperature=1.5, max_tokens=1500, seed=1)
    for _ in range(3):
        with there.stream("Tell me everything.", long) as stream:
            next(stream)
    assert there.ask(drawn("green"), "What colour is the circle?") == "green"


def test_stop_strings_end_the_answer_there_as_here(there, demo_backend):
    params = SamplingParams(temperature=0, stop=("circle", "never"))
    asked = Message("user", [Image(drawn()), "Describe the picture."])
    here, far = (backend.generate([asked], params) for backend in (demo_backend, there))
    assert (far.text, far.finish_reason) == (here.text, here.finish_reason)
    assert "circle" not in far.text


def test_max_tokens_ends_the_answer_there_as_here(there, demo_backend):
    params = SamplingParams(temperature=0, max_tokens=2)
    asked = Message("user", [Image(drawn()), "Describe the picture."])
    here, far = (backend.generate([asked], params) for backend in (demo_backend, there))
    assert (far.text, far.finish_reason) == (here.text, "length")
    assert far.usage == here.usage or far.usage.completion_tokens == 2


def test_temperature_and_top_k_have_their_effect_there(there):
    wild = SamplingParams(temperature=5.0, max_tokens=12, seed=1)
    tame = SamplingParams(temperature=5.0, max_tokens=12, seed=1, top_k=1)
    greedy = there.generate("Hello", SamplingParams(temperature=0, max_tokens=12)).text
    assert there.generate("Hello", wild).text != greedy
    assert there.generate("Hello", tame).text == greedy


def test_a_tool_is_called_there_as_here(there, demo_backend):
    told = [
        backend.generate("Multiply 6 and 7.", GREEDY, tools=[MULTIPLY, WEATHER])
        for backend in (demo_backend, there)
    ]
    assert [
        [(call.name, dict(call.arguments)) for call in answer.tool_calls] for answer in told
    ] == [[("multiply", {"a": 6, "b": 7})]] * 2
    assert {answer.finish_reason for answer in told} == {"tool_calls"}


def test_a_tools_result_is_told_there(there):
    first = there.generate("Multiply 6 and 7.", GREEDY, tools=[MULTIPLY])
    conversation = [
        Message("user", "Multiply 6 and 7."),
        Message("assistant", first.text, tool_calls=first.tool_calls),
        Message("tool", "42", tool_call_id=first.tool_calls[0].id),
    ]
    assert "42" in there.generate(conversation, GREEDY, tools=[MULTIPLY]).text


def test_json_of_a_schema_comes_there_as_here(there, demo_backend):
    params = SamplingParams(temperature=0, json_schema=PERSON)
    here, far = (
        backend.generate("Ada is 36 years old.", params) for backend in (demo_backend, there)
    )
    assert far.text == here.text == '{"name":"Ada","age":36}'


def test_an_answer_against_the_schema_is_an_error_where_nothing_enforces_it():
    server = SERVERS["transformers"]()
    backend = llavakit.load(server.model, base_url=server.url)
    schema = {"type": "object", "properties": {"x": {"const": "violet"}}, "required": ["x"]}
    with pytest.raises(RemoteError, match="enforces nothing"):
        backend.generate("Hello", SamplingParams(temperature=0, json_schema=schema))


# What only our own server does


def test_our_server_draws_the_same_answer_from_the_same_seed(ours, demo_backend):
    params = SamplingParams(temperature=1.2, top_k=20, min_p=0.01, seed=7, max_tokens=20)
    asked = Message("user", [Image(drawn()), "Describe the picture."])
    assert ours.generate([asked], params).text == demo_backend.generate([asked], params).text


def test_our_server_tells_the_same_logprobs(ours, demo_backend):
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2)
    here, far = (backend.generate("Hello", params).logprobs for backend in (demo_backend, ours))
    assert [one.token for one in far] == [one.token for one in here]
    assert [one.logprob for one in far] == pytest.approx([one.logprob for one in here], abs=1e-4)
    assert [len(one.top) for one in far] == [2] * len(here)


def test_our_server_holds_answers_to_grammars_and_schemas(ours):
    params = SamplingParams(temperature=0, grammar="(violet|orange) [0-9]{2}")
    assert ours.generate("Hello", params).text.split()[0] in ("violet", "orange")
    schema = {"type": "object", "properties": {"x": {"const": "violet"}}, "required": ["x"]}
    answer = ours.generate("Hello", SamplingParams(temperature=0, json_schema=schema))
    assert answer.text == '{"x":"violet"}'
    assert ours.generate("Hello", GREEDY, tools=[WEATHER], tool_choice="required").tool_calls


def test_our_server_counts_tokens_and_knows_its_context(ours, demo_backend):
    asked = Message("user", [Image(drawn()), "Describe the picture."])
    assert ours.count_tokens([asked]) == demo_backend.count_tokens([asked])
    with_tools = ours.count_tokens([asked], tools=[MULTIPLY])
    assert with_tools == demo_backend.count_tokens([asked], tools=[MULTIPLY])
    assert ours.info.context_length == demo_backend.info.context_length


@pytest.mark.parametrize("name", list(SERVERS))
def test_a_model_that_is_not_there_is_told(name):
    with pytest.raises(ModelNotFoundError, match="nonesuch"):
        llavakit.load("nonesuch", base_url=SERVERS[name]().url).generate("Hello")
