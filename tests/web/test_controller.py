"""What visitors can do, without a browser: real images, the bundled model, and a fake one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from llavakit.backend import Backend
from llavakit.errors import CheckpointError, InputError, ParameterError, RemoteError
from llavakit.testing import FakeBackend
from llavakit.values import Message
from llavakit.web.catalog import ListedModel
from llavakit.web.controller import Controller, Wish
from llavakit.web.conversation import AnswerStage
from llavakit.web.examples import copy_examples
from llavakit.web.log import ConversationLog
from llavakit.web.model_cache import ModelCache
from llavakit.web.pictures import Uploads
from llavakit.web.settings import WebSettings
from llavakit.web.visitors import Visit

DATA = Path(__file__).parents[2] / "examples" / "data"


class Page:
    """A controller with one visitor, whose uploads lie in a folder."""

    def __init__(self, folder: Path, backend: Backend, **options: object) -> None:
        self.folder = folder
        settings = options.pop("settings", None) or WebSettings(seats=1, places=1)
        assert isinstance(settings, WebSettings)
        model_cache = ModelCache([ListedModel("demo", "demo")], 1, lambda name: backend)
        self.controller = Controller(settings, model_cache, Uploads(folder, settings), **options)  # type: ignore[arg-type]
        self.visit = self.arrive("tab")

    def arrive(self, tab: str) -> Visit:
        self.controller.visitors.came(tab, f"owner of {tab}")
        return self.controller.visitors.of(tab)

    def upload(self, name: str, data: bytes | None = None, owner: str = "owner of tab") -> str:
        path = self.folder / name
        path.write_bytes((DATA / name).read_bytes() if data is None else data)
        self.controller.uploads.came(owner, [str(path)])
        return str(path)

    def wish(self, **changed: object) -> Wish:
        values = {
            "model": "demo",
            "temperature": 0,
            "top_p": 1,
            "max_tokens": 100,
            "seed": "",
            "system": "",
            "pages": "",
        }
        return self.controller.wish(**{**values, **changed})  # type: ignore[arg-type]

    async def ask(self, text: str, *files: str, **changed: object) -> None:
        await drained(self.controller.send(self.visit, text, files, self.wish(**changed)))

    @property
    def texts(self) -> list[str]:
        return [turn.answer.text or turn.answer.error for turn in self.visit.conversation.turns]


async def drained(changes: AsyncIterator[None]) -> None:
    async for _ in changes:
        pass


async def becomes(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_conversation_about_pictures_and_pages(
    tmp_path: Path, demo_backend: Backend
) -> None:
    page = Page(tmp_path, demo_backend)
    await page.ask("What colour is the circle?", page.upload("shapes.png"))
    await page.ask("Which image shows a heart?", page.upload("heart.png"))
    await page.ask("What is the invoice number?", page.upload("pages.pdf"), pages="2")
    assert page.texts == ["red", "the second image", "1609"]
    assert [len(turn.pictures) for turn in page.visit.conversation.turns] == [1, 1, 1]
    assert list(tmp_path.iterdir()) == []  # what was sent is removed


async def test_answers_are_the_same_for_the_same_seed(
    tmp_path: Path, demo_backend: Backend
) -> None:
    page = Page(tmp_path, demo_backend)
    for _ in range(2):
        await page.ask("What do you see?", seed="7", temperature=1.8)
        page.visit.conversation.turns[:-1] = []
    wished = page.wish(seed="7", temperature=1.8)
    first = page.texts[-1]
    await drained(page.controller.again(page.visit, wished))
    assert page.texts == [first]


async def test_a_file_that_is_none_fails_its_turn_alone(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]))
    await page.ask("What?", page.upload("bad.png", b"\x89PNG\r\n\x1a\nnothing"))
    await page.ask("Well?")
    assert page.texts[0].startswith("bad.png: ")
    assert page.texts[1] == "ok"
    [request] = page.controller.model_cache.stats().values()
    assert request["requests"] == 1


async def test_caps_on_bytes_pixels_pictures_and_the_whole_conversation(tmp_path: Path) -> None:
    small = WebSettings(
        max_file_bytes=140_000, max_pixels=100_000, max_images=2, max_kept_bytes=4_000
    )
    page = Page(tmp_path, FakeBackend(["ok"]), settings=small)
    await page.ask("Bytes?", page.upload("large.png", bytes(150_000)))
    await page.ask("Pixels?", page.upload("shapes.png"))
    await page.ask("Number?", *(page.upload(name) for name in ("heart.png", "pages.pdf")))
    bytes_, pixels, number = page.texts
    told = "is too large: a file has at most 0.134 MiB, and an image 0.1 million pixels."
    assert (bytes_, pixels) == (f"large.png {told}", f"shapes.png {told}")
    assert "2 images" in number
    heart = len((DATA / "heart.png").read_bytes())
    for _ in range(4_000 // heart + 1):
        await page.ask("Whole?", page.upload("heart.png"))
    assert page.texts[-1].startswith("This chat holds too many images")


async def test_a_long_document_is_cut_and_says_so(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]), settings=WebSettings(max_pages=3))
    await page.ask("What?", page.upload("pages.pdf"))
    [turn] = page.visit.conversation.turns
    assert len(turn.pictures) == 3
    assert turn.notes == (
        "Only the first 3 pages of pages.pdf were taken; name others in the settings, such as "
        "17-20.",
    )


async def test_files_of_others_cannot_be_sent(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]))
    path = page.upload("heart.png", owner="somebody else")
    with pytest.raises(InputError, match="upload it again"):
        await page.ask("What?", path)
    with pytest.raises(InputError, match="upload it again"):
        await page.ask("What?", "/etc/passwd")
    assert page.visit.conversation.turns == []
    assert Path(path).exists()


async def test_equal_files_of_two_visitors_go_when_both_are_done(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]))
    path = page.upload("heart.png")
    page.arrive("other")
    page.upload("heart.png", owner="owner of other")
    await page.ask("What?", path)
    assert Path(path).exists()
    page.controller.left("other")
    assert not Path(path).exists()


async def test_who_left_is_forgotten_though_nobody_else_comes(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]), settings=WebSettings(linger=0))
    path = page.upload("heart.png")
    program = page.upload("wide.webp", owner="a program that never opened the page")
    page.controller.left("tab")
    await becomes(lambda: len(page.controller.visitors) == 0)
    assert not Path(path).exists()
    assert not Path(program).exists()


async def test_stop_and_leaving_cancel_the_request(tmp_path: Path) -> None:
    backend = FakeBackend(["one two three"], hang=True)
    page = Page(tmp_path, backend)
    asking = asyncio.create_task(page.ask("What?"))
    await becomes(lambda: bool(page.texts) and page.texts[0] == "one two three")
    with pytest.raises(InputError, match="still on its way"):
        await page.ask("Another?")
    page.visit.stop()
    await asking
    assert backend.cancelled == 1
    assert page.visit.conversation.turns[0].answer.stage is AnswerStage.STOPPED

    asking = asyncio.create_task(page.ask("More?"))
    await becomes(lambda: len(page.texts) == 2 and page.texts[1] == "one two three")
    page.controller.left("tab")
    await asking
    assert backend.cancelled == 2
    assert page.controller.line.seated == 0


async def test_the_seat_is_free_though_nobody_looks_at_the_answer(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]))
    changes = page.controller.send(page.visit, "What?", (), page.wish())
    await anext(changes)  # the browser is gone before the answer
    await becomes(lambda: not page.visit.busy)
    assert page.texts == ["ok"]
    assert page.controller.line.seated == 0


async def test_who_is_stopped_in_line_never_reaches_the_model(tmp_path: Path) -> None:
    backend = FakeBackend(["talk"], hang=True)
    page = Page(tmp_path, backend)
    other = page.arrive("other")
    talking = asyncio.create_task(page.ask("Talk."))
    await becomes(lambda: page.controller.line.seated == 1)
    waiting = asyncio.create_task(drained(page.controller.send(other, "Wait.", (), page.wish())))
    await becomes(lambda: page.controller.line.waiting == 1)
    assert other.conversation.turns[0].answer.place == 1
    third = page.arrive("third")
    await drained(page.controller.send(third, "Late.", (), page.wish()))
    assert "Too many are waiting" in third.conversation.turns[0].answer.error

    other.stop()
    await waiting
    assert other.conversation.turns[0].answer.stage is AnswerStage.STOPPED
    page.visit.stop()
    await talking
    assert len(backend.requests) == 1


async def test_the_hook_refuses_with_a_sentence_and_sees_the_pictures(tmp_path: Path) -> None:
    seen: list[Sequence[Message]] = []

    def hook(messages: Sequence[Message]) -> str | None:
        seen.append(messages)
        return "Not here." if "bad" in messages[-1].text else None

    backend = FakeBackend(["ok"])
    page = Page(tmp_path, backend, moderation=hook)
    await page.ask("Something bad?", page.upload("heart.png"))
    await page.ask("Something good?")
    assert page.texts == ["Not here.", "ok"]
    assert len(seen[0][-1].images) == 1
    assert len(backend.requests) == 1


async def test_a_hook_may_be_a_coroutine_and_one_that_fails_refuses(tmp_path: Path) -> None:
    async def refusing(messages: Sequence[Message]) -> str | None:
        return "Never."

    def failing(messages: Sequence[Message]) -> str | None:
        raise RuntimeError("secret")

    for hook, sentence in ((refusing, "Never."), (failing, "could not be checked")):
        backend = FakeBackend(["ok"])
        page = Page(tmp_path, backend, moderation=hook)
        await page.ask("What?")
        assert sentence in page.texts[0] and "secret" not in page.texts[0]
        assert backend.requests == []


async def test_a_bug_is_told_without_its_secrets(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend([RuntimeError("secret")]))
    await page.ask("What?")
    assert page.texts == [
        "Something went wrong here (RuntimeError); the server's log has the details."
    ]


@pytest.mark.parametrize("kind", [RemoteError, CheckpointError])
async def test_addresses_and_directories_are_told_to_the_operator_alone(
    tmp_path: Path, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    page = Page(tmp_path, FakeBackend([kind("http://inside:8000 failed")]))
    await page.ask("What?")
    assert page.texts[0].startswith("The model cannot answer now")
    assert "inside" not in page.texts[0]
    assert "http://inside:8000" in caplog.text


async def test_wishes_out_of_range_are_told(tmp_path: Path) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]))
    for changed in ({"top_p": 0}, {"seed": "x"}, {"max_tokens": 10**6}, {"system": "x" * 10**5}):
        with pytest.raises(ParameterError):
            page.wish(**changed)
    with pytest.raises(InputError, match="Write a question"):
        await page.ask("  ")
    with pytest.raises(InputError, match="at most"):
        await page.ask("x" * 10**5)
    await page.ask("What?", model="/other/model")
    assert page.texts == ["model is not offered here; choose another."]


async def test_the_log_keeps_answers_votes_and_each_picture_once(tmp_path: Path) -> None:
    log = ConversationLog(tmp_path / "log")
    (tmp_path / "uploads").mkdir()
    page = Page(tmp_path / "uploads", FakeBackend(["ok"]), log=log)
    for _ in range(2):
        await page.ask("What?", page.upload("heart.png"), seed="3")
    await page.controller.vote(page.visit, 1, "Dislike")
    with pytest.raises(InputError):
        await page.controller.vote(page.visit, 2, "Like")

    def lines() -> list[str]:
        [file] = (tmp_path / "log").glob("*.jsonl")
        return file.read_text("utf-8").splitlines()

    await becomes(lambda: len(lines()) == 3)
    records = sorted((json.loads(line) for line in lines()), key=lambda one: one["event"])
    first, second, vote = records
    assert (first["question"], first["answer"], first["ended"]) == ("What?", "ok", "done")
    assert first["params"]["seed"] == 3
    digest = page.visit.conversation.turns[0].pictures[0].digest
    assert first["images"] == second["images"] == [{"name": "heart.png", "digest": digest}]
    assert [file.name for file in (tmp_path / "log" / "images").iterdir()] == [f"{digest}.png"]
    assert (vote["feedback"], vote["turn"]) == ("Dislike", 2)
    assert "owner" not in "".join(lines())
    [file] = (tmp_path / "log").glob("*.jsonl")
    assert file.stat().st_mode & 0o077 == 0


async def test_without_a_log_nothing_is_kept_and_there_is_nothing_to_vote_on(
    tmp_path: Path,
) -> None:
    page = Page(tmp_path, FakeBackend(["ok"]))
    await page.ask("What?")
    with pytest.raises(InputError, match="nothing to vote on"):
        await page.controller.vote(page.visit, 0, "Like")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="cannot be written"):
        ConversationLog(tmp_path / "file" / "log")


async def test_the_examples_are_answered_right(tmp_path: Path, demo_backend: Backend) -> None:
    examples = copy_examples(tmp_path / "examples")
    page = Page(tmp_path, demo_backend, examples=examples)
    for number in range(len(examples)):
        await drained(page.controller.example(page.visit, number, page.wish()))
        page.controller.clear(page.visit) if number + 1 < len(examples) else None
    answers = []
    for number in range(len(examples)):
        page.controller.clear(page.visit)
        await drained(page.controller.example(page.visit, number, page.wish()))
        answers += page.texts
    assert answers == ["red", "left", "2284", "3"]
