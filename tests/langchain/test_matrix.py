"""Every carrier of an image through every way into the model: one answer, one cache entry."""

import asyncio
import io
import json
import sqlite3
import threading
from collections.abc import Iterator

import pytest
from langchain_core.caches import BaseCache
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda, RunnableParallel
from PIL import Image as PILImage
from PIL import ImageDraw

import llavakit
from llavakit.langchain import ChatLLaVA
from llavakit.sources import SourcePolicy
from tests.langchain.test_content_blocks import CARRIERS, Case, image, image_url
from tests.loopback import Server, reply

QUESTION = "What colour is the circle?"


def circle(colour: tuple[int, int, int]) -> PILImage.Image:
    drawn = PILImage.new("RGB", (200, 200), "white")
    ImageDraw.Draw(drawn).ellipse((50, 50, 150, 150), fill=colour)
    return drawn


def png_of(drawn: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Case:
    drawn = circle((221, 31, 29))  # pixels of its own, so that no other test has encoded them
    path = tmp_path_factory.mktemp("matrix") / "red.png"
    path.write_bytes(png_of(drawn))
    return Case(path.read_bytes(), drawn, path)


@pytest.fixture(scope="module")
def backend(demo_backend, red: Case) -> Iterator[llavakit.Backend]:
    """The bundled model, which may read the image's folder and loopback."""
    policy = SourcePolicy(roots=(red.path.parent,), allow_private_hosts=True)
    backend = llavakit.load("demo", source_policy=policy)
    backend.ask(None, "Hello")  # holds the shared engine, whose figures others have counted up
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def model(backend: llavakit.Backend) -> ChatLLaVA:
    return ChatLLaVA(backend=backend, model="demo", temperature=0, max_tokens=20)


def asked(block: object) -> list[HumanMessage]:
    return [HumanMessage([block, {"type": "text", "text": QUESTION}])]


def all_ways(model: ChatLLaVA, make) -> list[str]:
    """The answers of every method; ``make`` gives the messages anew (open files are read once)."""

    async def later() -> list[str]:
        streamed = [chunk.text async for chunk in model.astream(make())]
        batch = await model.abatch([make(), make()])
        return [(await model.ainvoke(make())).text, "".join(streamed), *(a.text for a in batch)]

    return [
        model.invoke(make()).text,
        "".join(chunk.text for chunk in model.stream(make())),
        *(answer.text for answer in model.batch([make(), make()])),
        *asyncio.run(later()),
        model.generate([make()]).generations[0][0].text,
    ]


def test_every_carrier_every_way_one_answer_and_one_encoding(model, backend, red: Case):
    before = backend.stats().get("images_encoded", 0)
    for name, carrier in CARRIERS.items():
        assert set(all_ways(model, lambda carrier=carrier: asked(carrier(red)))) == {"red"}, name
    assert backend.stats()["images_encoded"] == before + 1


def test_every_place_in_a_conversation(model, backend, red: Case):
    block = image(base64=red.b64)
    call = {"name": "look", "args": {}, "id": "1"}
    places = {
        "system": [SystemMessage([block]), HumanMessage(QUESTION)],
        "behind the question": [HumanMessage([QUESTION, block])],
        "an earlier turn": [*asked(block), AIMessage("red"), HumanMessage(QUESTION)],
        "two human messages": [HumanMessage([block]), HumanMessage(QUESTION)],
        "a tool's result": [
            HumanMessage(QUESTION),
            AIMessage("", tool_calls=[call]),
            ToolMessage([block], tool_call_id="1"),
            HumanMessage(QUESTION),
        ],
    }
    for name, messages in places.items():
        answer = model.invoke(messages)
        assert "red" in answer.text, name
        assert answer.usage_metadata["input_tokens"] == model.get_num_tokens_from_messages(messages)


@pytest.mark.enable_socket
def test_a_url_is_fetched_and_is_the_same_picture(model, backend, red: Case):
    server = Server()
    server.answer = reply(red.png)
    before = backend.stats().get("images_encoded", 0)
    model.invoke(asked(image(base64=red.b64)))
    for block in (image_url({"url": server.url()}), image(url=server.url("/b.png"))):
        assert set(all_ways(model, lambda block=block: asked(block))) == {"red"}
    server.close()
    assert backend.stats()["images_encoded"] <= before + 1


def test_branches_of_a_graph_share_the_model(model, red: Case):
    block = image(base64=red.b64)
    fan = RunnableParallel(
        colour=RunnableLambda(lambda _: asked(block)) | model,
        shape=RunnableLambda(lambda _: [HumanMessage([block, "What shape is it?"])]) | model,
    )
    answers = fan.invoke(None)
    assert (answers["colour"].text, answers["shape"].text) == ("red", "circle")


class SQLiteCache(BaseCache):
    """LangChain's cache interface over a file, as its SQLite cache does it."""

    def __init__(self, path) -> None:
        self.rows = sqlite3.connect(path, check_same_thread=False)
        self.rows.execute("CREATE TABLE answers (prompt, llm, answer, PRIMARY KEY (prompt, llm))")
        self.lock = threading.Lock()

    def lookup(self, prompt, llm_string):
        with self.lock:
            found = self.rows.execute(
                "SELECT answer FROM answers WHERE prompt = ? AND llm = ?", (prompt, llm_string)
            ).fetchone()
        if not found:
            return None
        return [loads(one, allowed_objects="all") for one in json.loads(found[0])]

    def update(self, prompt, llm_string, return_val):
        answer = json.dumps([dumps(one) for one in return_val])
        with self.lock:
            self.rows.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (prompt, llm_string, answer)
            )

    def clear(self, **kwargs):
        self.rows.execute("DELETE FROM answers")

    def count(self) -> int:
        return self.rows.execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_a_cache_in_a_file_tells_pictures_and_settings_apart(backend, red: Case, tmp_path):
    cache = SQLiteCache(tmp_path / "cache.sqlite")
    model = ChatLLaVA(backend=backend, model="demo", temperature=0, max_tokens=20, cache=cache)
    blue = circle((31, 61, 219))
    for _ in range(2):
        assert model.invoke(asked(image(image=red.pil))).text == "red"
        assert model.invoke(asked(image(image=blue))).text == "blue"
        assert model.invoke(asked(image(base64=red.b64))).text == "red"
    assert cache.count() == 2
    asyncio.run(model.ainvoke(asked(image(path=str(red.path)))))
    assert cache.count() == 2
    model.invoke(asked(image(image=blue)), temperature=0.7)
    ChatLLaVA(backend=backend, model="demo", temperature=0.5, max_tokens=20, cache=cache).invoke(
        asked(image(image=blue))
    )
    assert cache.count() == 4
    longest = cache.rows.execute("SELECT max(length(prompt)) FROM answers").fetchone()[0]
    assert longest < 2000  # digests, and no pixels
    cache.rows.close()


async def test_what_is_cancelled_frees_the_model(backend):
    model = ChatLLaVA(backend=backend, model="demo", max_tokens=2000)
    question = [HumanMessage("Count.")]
    task = asyncio.create_task(model.ainvoke(question, grammar="[ab]{2000}"))
    while not backend.stats()["running"]:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stream = model.stream(question, grammar="[ab]{2000}")
    next(stream)
    stream.close()
    async for _ in (later := model.astream(question, grammar="[ab]{2000}")):
        break
    await later.aclose()
    await backend.agenerate("Hi")  # ends behind the step in which they are freed
    stats = backend.stats()
    assert stats["running"] == stats["waiting"] == 0
