"""Several answers to one request: seeds, usage, and that an error or a cancel is everybody's."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from PIL import Image as PILImage

from llavakit import Image, Message, SamplingParams
from llavakit.backend import Backend
from llavakit.errors import EngineError, ParameterError, SourceNotFoundError
from llavakit.streams import AnswerStream, Channel
from llavakit.testing import FakeBackend
from llavakit.values import Chunk, Completion, Request, Usage


class Scripted(FakeBackend):
    """Streams whose chunks the test puts."""

    def __init__(self, limit: int = 100) -> None:
        super().__init__()
        self.channels: list[Channel] = []
        self._limit = limit

    def submit(self, request: Request) -> AnswerStream:
        if len(self.channels) == self._limit:
            raise EngineError("No more.")
        self.requests.append(request)
        self.channels.append(Channel())
        return AnswerStream(self.channels[-1], self._count_cancel)


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest):
    """``Backend.choices``, or its async sister behind the same call."""

    def ask(backend: Backend, *args, **options) -> list[Completion]:
        if request.param == "sync":
            return backend.choices(*args, **options)
        return asyncio.run(backend.achoices(*args, **options))

    return ask


def test_answers_come_in_the_order_of_their_seeds(ask):
    backend = FakeBackend(lambda request: f"seed {request.params.seed}")
    answers = ask(backend, "hi", SamplingParams(seed=7), n=3)
    assert [answer.text for answer in answers] == ["seed 7", "seed 8", "seed 9"]


def test_without_a_seed_every_answer_draws_its_own(ask, demo_backend):
    params = SamplingParams(temperature=5.0, max_tokens=8)
    texts = [answer.text for answer in ask(demo_backend, "Tell me a story.", params, n=4)]
    assert len(set(texts)) > 1


def test_one_seed_gives_the_same_answers_again_and_each_as_if_it_were_alone(ask, demo_backend):
    params = SamplingParams(temperature=5.0, seed=3, max_tokens=8, frequency_penalty=0.5)
    first, again = (ask(demo_backend, "Tell me a story.", params, n=3) for _ in range(2))
    texts = [answer.text for answer in first]
    assert texts == [answer.text for answer in again] and len(set(texts)) == 3
    alone = demo_backend.generate(
        "Tell me a story.",
        SamplingParams(temperature=5.0, seed=5, max_tokens=8, frequency_penalty=0.5),
    )
    assert alone.text == texts[2]


def test_the_prompt_counts_once():
    usages = [Usage(9, 4, 0, 3), Usage(9, 5, 8, 3), Usage(9, 1, 8, 3)]
    assert Usage.of_choices(usages) == Usage(9, 10, 0, 3)
    assert Usage.of_choices(usages).total_tokens == 19


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "2", None])
def test_what_is_no_number_of_answers_is_refused(ask, n):
    backend = FakeBackend()
    with pytest.raises(ParameterError, match=r"^n is "):
        ask(backend, "hi", n=n)
    assert not backend.requests


@pytest.mark.timeout(30)
def test_first_error_ends_all_at_once(ask):
    """The others would never end by themselves."""
    backend = Scripted()

    def fail() -> None:
        while len(backend.channels) < 3:
            pass
        backend.channels[0].put(Chunk("a word"))
        backend.channels[2].fail(EngineError("No."))

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(EngineError, match="No"):
        ask(backend, "hi", n=3)
    thread.join()
    assert backend.cancelled == 2 and all(channel.ended for channel in backend.channels)


def test_a_refused_one_takes_those_before_it_along(ask):
    backend = Scripted(limit=2)
    with pytest.raises(EngineError, match="No more"):
        ask(backend, "hi", n=3)
    assert backend.cancelled == 2 and all(channel.ended for channel in backend.channels)


async def test_cancelling_cancels_all():
    backend = Scripted()
    asking = asyncio.ensure_future(backend.achoices("hi", n=3))
    async with asyncio.timeout(20):
        while len(backend.channels) < 3:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert backend.cancelled == 3 and all(channel.ended for channel in backend.channels)


async def test_cancelling_frees_the_engine(demo_backend):
    endless = SamplingParams(max_tokens=3000, grammar="[a-z ]{9000,12000}")
    asking = asyncio.ensure_future(demo_backend.achoices("Go on", endless, n=2))
    async with asyncio.timeout(30):
        while demo_backend.stats().get("running", 0) < 2:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while demo_backend.stats()["running"]:
            await asyncio.sleep(0.01)


def test_picture_is_read_once_for_all(ask, tmp_path: Path):
    place = tmp_path / "red.png"
    PILImage.new("RGB", (8, 8), "red").save(place)
    backend = FakeBackend()
    asked = Message("user", ["What is this?", Image(place), Image(str(place))], name="me")
    ask(backend, [asked], n=2)
    first, second = backend.requests
    assert first == second
    [message] = first.messages
    assert (message.text, message.name) == ("What is this?", "me")
    assert {image.source for image in message.images} == {place.read_bytes()}
    with pytest.raises(SourceNotFoundError):
        ask(backend, [Message("user", [Image(tmp_path / "none.png")])], n=2)
