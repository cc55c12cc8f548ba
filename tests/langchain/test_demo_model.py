"""ChatLLaVA with the bundled model: what the answers mean, not only their shape."""

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from PIL import Image as PILImage
from PIL import ImageDraw

from llavakit.langchain import ChatLLaVA

RED_CIRCLE = ("What colour is the circle?", "red")
BLUE_SQUARE = ("What colour is the square?", "blue")


@pytest.fixture(scope="module")
def model(demo_dir, demo_backend):
    if not (demo_dir / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not built")
    return ChatLLaVA(backend=demo_backend, model="demo", temperature=0, max_tokens=40)


def picture(shape, colour):
    image = PILImage.new("RGB", (256, 256), "white")
    draw = getattr(ImageDraw.Draw(image), shape)
    draw((70, 70, 190, 190), fill=colour)
    return image


@pytest.fixture(scope="module")
def circle():
    return picture("ellipse", (220, 30, 30))


@pytest.fixture(scope="module")
def square():
    return picture("rectangle", (30, 60, 220))


def ask(image, question):
    return [HumanMessage([{"type": "image", "image": image}, {"type": "text", "text": question}])]


def test_it_sees_the_picture(model, circle, square):
    assert model.invoke(ask(circle, RED_CIRCLE[0])).content == RED_CIRCLE[1]
    assert model.invoke(ask(square, BLUE_SQUARE[0])).content == BLUE_SQUARE[1]


def test_the_question_may_come_first(model, circle):
    (message,) = ask(circle, RED_CIRCLE[0])
    assert model.invoke([HumanMessage(message.content[::-1])]).content == RED_CIRCLE[1]


def test_a_batch_mixes_nothing_up(model, circle, square):
    pairs = [(circle, *RED_CIRCLE), (square, *BLUE_SQUARE)] * 4
    answers = model.batch([ask(image, question) for image, question, _ in pairs])
    assert [answer.content for answer in answers] == [expected for *_, expected in pairs]


async def test_an_async_batch_gives_the_same(model, circle, square):
    inputs = [ask(circle, RED_CIRCLE[0]), ask(square, BLUE_SQUARE[0])]
    answers = await model.abatch(inputs)
    assert [answer.content for answer in answers] == ["red", "blue"]


async def test_a_stream_is_the_answer_in_pieces(model, circle):
    messages = ask(circle, "Describe the picture.")
    whole = model.invoke(messages)
    assert "".join(chunk.content for chunk in model.stream(messages)) == whole.content
    pieces = [chunk async for chunk in model.astream(messages)]
    assert "".join(chunk.content for chunk in pieces) == whole.content
    assert pieces[-1].usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_a_second_question_knows_the_first_picture(model, circle):
    first = ask(circle, "What shape is it?")
    answer = model.invoke(first)
    history = [*first, AIMessage(answer.content), HumanMessage(RED_CIRCLE[0])]
    assert model.invoke(history).content == "red"


def test_counted_tokens_are_those_of_the_prompt(model, circle):
    messages = ask(circle, RED_CIRCLE[0])
    answer = model.invoke(messages)
    assert model.get_num_tokens_from_messages(messages) == answer.usage_metadata["input_tokens"]
    assert model.get_num_tokens_from_messages([AIMessage("red")]) > 0


async def test_a_cancelled_request_frees_the_model(model, circle):
    # The grammar keeps the answer from ending by itself before it is cancelled.
    endless = model.ainvoke(ask(circle, "Describe it."), max_tokens=2000, grammar="[ab]{2000}")
    task = asyncio.create_task(endless)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(200):
        stats = model.backend_for().stats()
        if stats["running"] == stats["waiting"] == 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(stats)


def test_json_follows_its_schema(model, circle):
    schema = {
        "title": "Answer",
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = model.with_structured_output(schema).invoke(ask(circle, RED_CIRCLE[0]))
    assert list(answer) == ["colour"]
    assert answer["colour"] in ("red", "blue", "green")
