"""LLaVALLM: text in, text out, images at call time."""

import asyncio
import pickle
from copy import deepcopy

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseLLM
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from PIL import Image as PILImage
from PIL import ImageDraw

from llavakit.errors import (
    ContextLengthError,
    ParameterError,
    SourceNotAllowedError,
    UnsupportedContentError,
)
from llavakit.langchain import LLaVALLM
from llavakit.testing import FakeBackend
from llavakit.values import Completion, Usage

QUESTION = "What colour is the circle?"


def circle(colour):
    image = PILImage.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((70, 70, 190, 190), fill=colour)
    return image


@pytest.fixture(scope="module")
def red():
    return circle((220, 30, 30))


@pytest.fixture(scope="module")
def blue():
    return circle((30, 60, 220))


@pytest.fixture(scope="module")
def model(demo_backend):
    return LLaVALLM(backend=demo_backend, model="demo", temperature=0, max_tokens=20)


@pytest.fixture
def fake():
    return FakeBackend(lambda request: f"answer to {request.messages[0].text}")


@pytest.fixture
def cache():
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


def test_it_is_an_llm_that_sees(model, red, blue):
    assert isinstance(model, BaseLLM)
    assert model.invoke(QUESTION, images=red) == "red"
    assert model.invoke(QUESTION, images=[blue]) == "blue"


def test_every_way_in_gives_the_same(model, red, tmp_path):
    path = tmp_path / "red.png"
    red.save(path)

    async def later():
        pieces = [piece async for piece in model.astream(QUESTION, images=path)]
        batch = await model.abatch([QUESTION] * 2, images=path)
        return ["".join(pieces), *batch, await model.ainvoke(QUESTION, images=path)]

    answers = [
        "".join(model.stream(QUESTION, images=path)),
        *model.batch([QUESTION] * 3, images=str(path)),
        *asyncio.run(later()),
    ]
    assert set(answers) == {"red"}


def test_it_stands_in_a_chain_and_is_bound_to_a_picture(model, blue):
    prompt = PromptTemplate.from_template("What colour is the {shape}?")
    chain = prompt | model.bind(images=blue) | StrOutputParser()
    assert chain.invoke({"shape": "circle"}) == "blue"


def test_the_cache_tells_pictures_and_settings_apart(model, red, blue, cache):
    assert model.invoke(QUESTION, images=red) == "red"
    assert model.invoke(QUESTION, images=blue) == "blue"
    model.invoke(QUESTION, images=blue, max_tokens=3)
    model.invoke(QUESTION, images=blue, temperature=0.5, seed=1)
    model.invoke(QUESTION, images=[blue, blue])
    assert len(cache._cache) == 5
    model.invoke(QUESTION, images=circle((30, 60, 220)))
    assert len(cache._cache) == 5  # the same pixels are the same picture


async def test_the_cache_works_in_async_code_too(model, red, blue, cache):
    assert await model.ainvoke(QUESTION, images=red) == "red"
    assert await model.ainvoke(QUESTION, images=blue) == "blue"


def test_traces_hold_a_digest_and_no_picture(fake, red):
    model = LLaVALLM(backend=fake, model="fake")
    seen = model.called_with(images=red).asdict()["images"]
    assert len(seen) == 1 and seen[0].startswith("sha256:")
    remote = model.called_with(images="https://example.org/a.png").asdict()["images"]
    assert remote == ["https://example.org/a.png"]


class Together(FakeBackend):
    """Tells no answer before three requests are there: asked in turn, the first would wait."""

    def _tell(self, request, answer, channel):
        self.held = [*getattr(self, "held", []), (request, answer, channel)]
        if len(self.held) == 3:
            for one in reversed(self.held):
                super()._tell(*one)


SEVERAL = {
    "generate": lambda model, prompts: model.generate(prompts),
    "batch": lambda model, prompts: model.batch(prompts),
    "agenerate": lambda model, prompts: asyncio.run(model.agenerate(prompts)),
    "abatch": lambda model, prompts: asyncio.run(model.abatch(prompts)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", SEVERAL)
def test_the_prompts_of_one_call_are_under_way_at_the_same_time(way):
    together = Together(lambda request: request.messages[0].text)
    answers = SEVERAL[way](LLaVALLM(backend=together, model="fake"), ["one", "two", "three"])
    if "generate" in way:
        answers = [one[0].text for one in answers.generations]
    assert answers == ["one", "two", "three"]


@pytest.mark.parametrize("way", ["generate", "agenerate"])
def test_the_tokens_of_all_prompts_are_counted(way):
    used = [Completion("a", usage=Usage(10 * n, n)) for n in (1, 2, 3)]
    result = SEVERAL[way](LLaVALLM(backend=FakeBackend(used), model="fake"), ["x", "y", "z"])
    assert result.llm_output["token_usage"] == {
        "prompt_tokens": 60,
        "completion_tokens": 6,
        "total_tokens": 66,
    }


def test_many_prompts_keep_their_order(fake):
    model = LLaVALLM(backend=fake, model="fake")
    prompts = [f"question {number}" for number in range(150)]
    result = model.generate(prompts)
    assert [one[0].text for one in result.generations] == [f"answer to {p}" for p in prompts]
    assert result.llm_output["model_name"] == "fake"


def test_one_failure_leaves_nothing_running(demo_backend):
    model = LLaVALLM(backend=demo_backend, model="demo", max_tokens=2000)
    with pytest.raises(ContextLengthError):
        model.generate(["Count.", "word " * 9000], grammar="[ab]{4000}")
    demo_backend.generate("Hi")  # ends behind the step in which the first one is freed
    assert demo_backend.stats()["running"] == 0


def test_a_closed_stream_cancels(demo_backend):
    model = LLaVALLM(backend=demo_backend, model="demo", max_tokens=500)
    stream = model.stream("Count.", grammar="[ab]{2000}")
    next(stream)
    stream.close()
    demo_backend.generate("Hi")
    assert demo_backend.stats()["running"] == 0


def test_stop_and_finish_reason(model, red):
    (generation,) = model.generate(["Describe the picture."], images=red).generations[0]
    assert generation.generation_info["finish_reason"] == "stop"
    word = generation.text.split()[1]
    cut = model.generate(["Describe the picture."], stop=[word], images=red).generations[0][0]
    assert cut.text == generation.text.partition(word)[0]


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, messages: model.invoke(messages),
        lambda model, messages: model.batch([messages]),
        lambda model, messages: list(model.stream(messages)),
        lambda model, messages: (RunnableLambda(lambda _: messages) | model).invoke(""),
        lambda model, messages: model.generate_prompt([ChatPromptValue(messages=messages)]),
        lambda model, messages: asyncio.run(model.ainvoke(messages)),
        lambda model, messages: asyncio.run(
            model.agenerate_prompt([ChatPromptValue(messages=messages)])
        ),
    ],
    ids=["invoke", "batch", "stream", "chain", "generate_prompt", "ainvoke", "agenerate_prompt"],
)
def test_a_picture_in_a_message_is_refused_and_never_dropped(fake, ask):
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    model = LLaVALLM(backend=fake)
    with pytest.raises(UnsupportedContentError, match="'image_url'; use the chat model, ChatLLaVA"):
        ask(model, [HumanMessage(["What is this?", shown])])
    assert not fake.requests
    ask(model, [HumanMessage(["What ", {"type": "text", "text": "is this?"}])])
    assert "What is this?" in fake.requests[0].messages[-1].text


def test_unknown_arguments_and_forbidden_files_are_refused(fake):
    model = LLaVALLM(backend=fake, model="fake")
    with pytest.raises(ParameterError, match="did you mean 'temperature'"):
        model.invoke("x", temprature=1)
    with pytest.raises(ParameterError):
        model.invoke("x", tools=[])
    with pytest.raises(ParameterError, match="temperature"):
        model.invoke("x", temperature=-1)
    with pytest.raises(SourceNotAllowedError):
        model.invoke("x", images="ftp://example.org/a.png")
    assert fake.requests == []


def test_copies_and_pickles_ask_for_the_same_model(red):
    model = LLaVALLM(model="demo", temperature=0)
    for other in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.asdict() == model.asdict()
        assert other.invoke(QUESTION, images=red) == "red"
