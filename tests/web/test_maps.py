"""Where a model looked, as the controller gives it: the bundled model, and others without maps."""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

import llavakit
from llavakit.backend import Backend
from llavakit.errors import InputError, ParameterError, QueueFullError
from llavakit.testing import FakeBackend
from llavakit.web import maps
from llavakit.web.looking import MapRoute
from llavakit.web.maps import PageMaps, ShownMap
from llavakit.web.rendering import to_chat
from tests.web.test_controller import Page

FILES = ("heart.png", "shapes.png", "squares.png")


@pytest.fixture(scope="module")
def demo() -> Iterator[Backend]:
    with closing(llavakit.load("demo")) as backend:
        yield backend


async def asked(page: Page, text: str, *names: str) -> None:
    files = [page.upload(name) for name in names]
    async for _ in page.controller.send(page.visit, text, files, page.wish()):
        pass


def look(page: Page, turn: int = 0, **options: Any) -> Any:
    return page.controller.look(page.visit, page.visit.conversation.name, turn, **options)


def pixels(shown: ShownMap) -> PILImage.Image:
    head, _, body = shown.image.partition(",")
    assert head == "data:image/jpeg;base64"
    return PILImage.open(io.BytesIO(b64decode(body)))


def buttons(page: Page) -> int:
    shown = to_chat(page.visit.conversation, page.controller.model_cache.has_maps)
    return str(shown).count('class="lk-look"')


async def test_images_are_ranked_and_the_best_is_drawn(tmp_path: Path, demo: Backend) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "Which image shows a heart?", *FILES)
    assert buttons(page) == 1
    shown = await look(page)
    scores = [one.score for one in shown.ranking]
    assert scores == sorted(scores, reverse=True)
    assert sorted(one.name for one in shown.ranking) == sorted(FILES)
    assert sorted(one.number for one in shown.ranking) == [0, 1, 2]
    assert shown.number == shown.ranking[0].number and shown.word == ""
    assert shown.words == ("Which", "image", "shows", "a", "heart")
    assert pixels(shown).size == pixels(await look(page, number=shown.number)).size


async def test_scores_are_those_of_a_search(tmp_path: Path, demo: Backend) -> None:
    from llavakit.embeddings import maxsim

    page = Page(tmp_path, demo)
    await asked(page, "a red heart", *FILES)
    shown = await look(page)
    (query,) = demo.embed(texts=["a red heart"])
    pages = demo.embed(images=[one.image for one in page.visit.conversation.turns[0].pictures])
    for one in shown.ranking:
        assert one.score == pytest.approx(maxsim(query, pages[one.number]), rel=1e-5)


async def test_another_word_or_image_runs_no_model(tmp_path: Path, demo: Backend) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "Where is the square?", *FILES)
    whole = await look(page, number=1)
    before = demo.stats()
    drawn = {whole.image}
    for word in whole.words:
        one = await look(page, number=1, word=word)
        assert one.word == word and one.number == 1
        drawn.add(one.image)
    await look(page, number=2)
    assert len(drawn) > 2
    after = demo.stats()
    assert {name: after[name] for name in ("requests", "prefill_tokens") if name in after} == {
        name: before[name] for name in ("requests", "prefill_tokens") if name in before
    }


async def test_images_of_earlier_turns_count_and_later_ones_do_not(
    tmp_path: Path, demo: Backend
) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "What is it?", "heart.png")
    await asked(page, "And how many squares?", "squares.png")
    await asked(page, "Which is red?")
    assert buttons(page) == 3
    names = [sorted(one.name for one in (await look(page, turn)).ranking) for turn in range(3)]
    both = ["heart.png", "squares.png"]
    assert names == [["heart.png"], both, both]


async def test_what_is_not_there_is_one_sentence(tmp_path: Path, demo: Backend) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "What is it?", "heart.png")
    for wrong in ({"number": 1}, {"number": -1}, {"turn": 1}, {"turn": -1}):
        with pytest.raises(InputError):
            await look(page, **wrong)
    with pytest.raises(ParameterError, match="no word"):
        await look(page, word="zebra")
    with pytest.raises(InputError, match="gone"):
        await page.controller.look(page.visit, "another chat", 0)


async def test_a_model_without_an_adapter_has_no_button_and_no_map(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["a heart"]))
    await asked(page, "What is it?", "heart.png")
    assert buttons(page) == 0
    with pytest.raises(InputError, match="cannot show where it looked"):
        await look(page)


async def test_without_images_or_an_answer_there_is_no_button(
    tmp_path: Path, demo: Backend
) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "What is it?")
    page.upload("broken.png", b"no image")
    async for _ in page.controller.send(
        page.visit, "And this?", [str(page.folder / "broken.png")], page.wish()
    ):
        pass
    assert buttons(page) == 0


async def test_a_map_that_is_given_up_frees_the_model_and_its_seat(
    tmp_path: Path, demo: Backend
) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "Where is the circle?", *FILES)
    images = page.visit.conversation.turns[0].pictures
    waiting = PageMaps(page.controller.model_cache)
    tasks = [
        asyncio.create_task(waiting.show(images, f"question {number}", "demo"))
        for number in range(maps.AT_ONCE + maps.WAITING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="try again"):
        await waiting.show(images, "one more", "demo")
    await asyncio.sleep(0.05)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not tasks[0].cancelled() and all(task.cancelled() for task in tasks[1:])
    shown = await waiting.show(images, "one more", "demo")
    assert len(shown.ranking) == 3
    for _ in range(500):
        if demo.stats()["running"] == demo.stats()["waiting"] == 0:
            break
        await asyncio.sleep(0.01)
    assert demo.stats()["running"] == demo.stats()["waiting"] == 0


async def test_another_map_or_a_closed_tab_gives_up_the_one_before(
    tmp_path: Path, demo: Backend
) -> None:
    page = Page(tmp_path, demo)
    first = asyncio.create_task(asyncio.sleep(60))
    second = asyncio.create_task(asyncio.sleep(60))
    page.visit.look(first)  # type: ignore[arg-type]
    page.visit.look(second)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert first.cancelled() and not second.done()
    page.controller.left("tab")
    await asyncio.sleep(0)
    assert second.cancelled()


async def called(
    page: Page, query: str, *events: str, token: str | None = None, owner: str = "owner of tab"
) -> tuple[int, str]:
    """What the route answers to a request, and whatever the browser does behind it."""
    sent: list[Any] = []
    waiting: asyncio.Queue[Any] = asyncio.Queue()
    for one in ("http.request", *events):
        waiting.put_nowait({"type": one, "body": b"", "more_body": False})

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-llavakit-visit", (token or page.visit.token).encode())]
    scope = {"method": "GET", "headers": headers, "query_string": query.encode()}
    await MapRoute(page.controller)(scope, waiting.get, send, owner)
    return sent[0]["status"], sent[1]["body"].decode()


async def test_the_route_gives_a_map_to_the_visitor_whose_chat_it_is(
    tmp_path: Path, demo: Backend
) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "Where is the circle?", *FILES)
    query = f"chat={page.visit.conversation.name}&turn=0&image=1&word=circle"
    status, body = await called(page, query)
    found = json.loads(body)
    assert (status, found["number"], found["word"]) == (200, 1, "circle")
    assert found["image"].startswith("data:image/jpeg;base64,")
    assert {one["name"] for one in found["ranking"]} == set(FILES)

    assert (await called(page, query, token="another"))[0] == 404
    assert (await called(page, query, owner="another browser"))[0] == 404
    for wrong in ("", "turn=x", "turn=-1", "turn=0&image=one", f"{query}0", "chat=x&turn=0"):
        status, body = await called(page, wrong)
        assert status == 400 and body.endswith((".", "chat.")), wrong


async def test_a_browser_that_is_gone_gives_up_its_map(tmp_path: Path, demo: Backend) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "Where is the triangle?", *FILES)
    query = f"chat={page.visit.conversation.name}&turn=0"
    status, body = await called(page, query, "http.disconnect")
    assert status == 409 and "Another map" in body
    assert page.controller.maps._asked == 0 and page.visit.looking.cancelled()
    assert (await called(page, query))[0] == 200


async def test_what_is_kept_is_bounded(
    tmp_path: Path, demo: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(tmp_path, demo)
    await asked(page, "Where is the circle?", *FILES)
    images = page.visit.conversation.turns[0].pictures
    kept = PageMaps(page.controller.model_cache)
    await kept.show(images[:1], "a", "demo")
    one = sum(map(maps._size, kept._kept.values()))
    monkeypatch.setattr(maps, "KEPT_BYTES", 2 * one)
    for question in ("b", "c", "d", "e"):
        await kept.show(images[:1], question, "demo")
        assert sum(map(maps._size, kept._kept.values())) <= 2 * one
    assert [key[1] for key in kept._kept][-1] == "e"


async def test_cancelling_embeddings_ends_them() -> None:
    with closing(llavakit.load("demo")) as backend:
        image = PILImage.new("RGB", (40, 40), "red")
        backend.embed(images=[image])
        images = [PILImage.new("RGB", (40, 40), (n, n, n)) for n in range(200)]
        task = asyncio.create_task(backend.aembed(images=images))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        encoded = None
        for _ in range(500):
            stats = backend.stats()
            if stats["running"] == stats["waiting"] == 0 and encoded == stats["images_encoded"]:
                break
            encoded = stats["images_encoded"]
            await asyncio.sleep(0.05)
        assert backend.stats()["images_encoded"] < 200
