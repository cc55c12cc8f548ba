"""Documents that are read page by page, and what is left when a reading ends early."""

import asyncio
import subprocess
import time

import pytest

from llavakit.errors import ParameterError
from llavakit.questions import ImageAsker
from llavakit.questions.comparing import compare_images
from llavakit.questions.reading import AT_ONCE, read_document
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from tests.loopback import PNG

PDF = "examples/data/pages.pdf"


@pytest.fixture
def renderers(monkeypatch) -> list[subprocess.Popen]:
    """The processes that draw pages."""
    started: list[subprocess.Popen] = []

    class Noted(subprocess.Popen):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return started


async def ended(renderers: list[subprocess.Popen]) -> bool:
    for _ in range(1000):
        if renderers and all(one.returncode is not None for one in renderers):
            return True
        await asyncio.sleep(0.01)
    return False


async def test_no_more_than_a_few_pages_are_asked_about_at_once_and_cancelling_frees_all(renderers):
    eyes = FakeBackend(["word"] * 9, hang=True)
    asker = ImageAsker(backend=eyes, attachments={"scan": PDF})
    task = asyncio.ensure_future(read_document(asker, "scan", asker.pictures))
    while len(eyes.requests) < AT_ONCE:
        await asyncio.sleep(0.01)
        assert not task.done()
    await asyncio.sleep(0.05)
    assert len(eyes.requests) == AT_ONCE
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        await asyncio.sleep(0)
    assert eyes.cancelled == AT_ONCE and asyncio.all_tasks() == {asyncio.current_task()}
    assert await ended(renderers)


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.3])
async def test_a_reading_that_is_cancelled_at_any_moment_leaves_no_renderer(renderers, moment):
    asker = ImageAsker(backend=FakeBackend(), attachments={"scan": PDF})
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def pictures():
        loop.call_soon_threadsafe(began.set)
        return asker.pictures()

    task = asyncio.ensure_future(read_document(asker, "scan", pictures))
    await began.wait()
    await asyncio.sleep(moment)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    while not renderers:
        await asyncio.sleep(0.01)
    assert await ended(renderers)


async def test_a_reading_that_ends_well_leaves_no_renderer(renderers):
    asker = ImageAsker(backend=FakeBackend(["one"]), attachments={"scan": PDF})
    answers = await read_document(asker, "scan", asker.pictures)
    assert [page.text for page in answers.pages] == ["one"] * 4
    assert await ended(renderers)


@pytest.mark.enable_socket
async def test_addresses_that_drip_do_not_hold_up_images_that_are_here(server):
    def drip(connection) -> None:
        time.sleep(3)

    server.answer = drip
    policy = SourcePolicy(allow_private_hosts=True, timeout=2)
    eyes = FakeBackend(["red"], policy=policy)
    asker = ImageAsker(backend=eyes, attachments={"plan": PNG, "scan": PDF}, allow_urls=True)
    slow = [
        asyncio.ensure_future(asker.aask("What?", server.url(), asker.pictures)) for _ in range(20)
    ]
    slow += [
        asyncio.ensure_future(read_document(asker, server.url(), asker.pictures)) for _ in range(9)
    ]
    while not server.connections:
        await asyncio.sleep(0.01)
    assert (await asker.aask("What?", "plan", asker.pictures)).text == "red"
    assert len((await read_document(asker, "plan", asker.pictures)).pages) == 1
    assert not all(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


@pytest.mark.parametrize("images", [[], ["plan"], ["plan"] * 9, "plan", [3, 4], None])
async def test_what_is_no_list_of_images_is_not_compared(images):
    eyes = FakeBackend()
    asker = ImageAsker(backend=eyes, attachments={"plan": PNG})
    with pytest.raises(ParameterError, match="images"):
        await compare_images(asker, "What?", images, asker.pictures)
    assert not eyes.requests


async def test_pages_are_sampled_as_the_settings_say():
    eyes = FakeBackend(["one"])
    asker = ImageAsker(backend=eyes, attachments={"plan": PNG}, stop=["\n"], timeout=9)
    await read_document(asker, "plan", asker.pictures)
    (request,) = eyes.requests
    params = request.params
    assert (params.temperature, params.max_tokens, params.stop) == (0, 1024, ("\n",))
    assert request.timeout == 9 and "Transcribe" in request.messages[-1].text
    short = ImageAsker(backend=eyes, attachments={"plan": PNG}, max_tokens=7)
    schema = {"type": "object"}
    await read_document(short, "plan", short.pictures, prompt="The sum.", json_schema=schema)
    request = eyes.requests[-1]
    assert request.params.max_tokens == 7 and request.params.json_schema == schema
    assert request.messages[-1].text == "The sum."
