"""The page as its visitors see it, in a real browser, with real models behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import DATA, idle, until
from tests.web.visitor import Visitor

pytestmark = [
    pytest.mark.web,
    pytest.mark.enable_socket,
    # gradio's own warnings arise in its threads, where they would end what they interrupt.
    pytest.mark.filterwarnings("default"),
]

Visit = Callable[..., Visitor]


def test_a_picture_is_asked_about_and_then_another_one(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    assert "tokens in" in visitor.facts(1)
    assert "64 of images" in visitor.facts(1)

    visitor.ask("How many shapes are there?")
    assert visitor.answer(2) == "3"

    visitor.ask("Which image shows a heart?", DATA / "heart.png")
    assert visitor.answer(3) == "the second image"
    assert "128 of images" in visitor.facts(3)


def test_several_pictures_go_with_one_question(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("Which image shows a heart?", DATA / "heart.png", DATA / "shapes.png")
    assert visitor.answer(1) == "the first image"
    assert visitor.turns()[0]["pictures"] == 2


def test_a_picture_can_be_pasted_and_dropped(visit: Visit) -> None:
    visitor = visit()
    for event in ("paste", "drop"):
        visitor.tab.evaluate(_GIVE, [event, list((DATA / "heart.png").read_bytes())])
    visitor.tab.wait_for_function(
        "document.querySelectorAll('#lk-box .thumbnail-item').length === 2"
    )
    visitor.ask("What is in the first image?")
    assert visitor.answer(1) == "a red heart"


_GIVE = """([event, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], `${event}.png`, {type: 'image/png'}));
    const box = document.querySelector('#lk-box textarea');
    const given = event === 'paste'
        ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
        : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
    box.dispatchEvent(given);
}"""


def test_stop_frees_the_engine_and_keeps_what_was_said(visit: Visit, site: Any) -> None:
    visitor = visit()
    visitor.choose("endless-talker", tokens=50_000)
    visitor.ask("Talk.", DATA / "heart.png")
    visitor.wait_for_words(1)
    assert not idle(site)

    visitor.stop.click()
    until(lambda: idle(site))
    said = visitor.answer(1)
    assert len(said) > 20
    assert visitor.facts(1).startswith("Stopped after")

    visitor.ask("Talk more.")  # the page goes on
    visitor.wait_for_words(2)
    visitor.tab.keyboard.press("Escape")
    until(lambda: idle(site))
    assert visitor.facts(2).startswith("Stopped")


def test_a_closed_tab_frees_its_request(visit: Visit, site: Any) -> None:
    visitor = visit()
    visitor.choose("endless-talker", tokens=50_000)
    visitor.ask("Talk.")
    visitor.wait_for_words(1)
    assert not idle(site)
    visitor.leave()
    until(lambda: idle(site))


def test_regenerate_answers_the_last_question_anew(visit: Visit, site: Any) -> None:
    visitor = visit()
    visitor.ask("How many squares are there?", DATA / "squares.png")
    assert visitor.answer(1) == "3"
    before = site.controller.model_cache.stats()["demo"]["requests"]
    visitor.press("Regenerate")
    until(lambda: site.controller.model_cache.stats()["demo"]["requests"] > before)
    assert visitor.answer(1) == "3"
    assert len(visitor.turns()) == 1


def test_an_edited_question_is_asked_anew_about_the_same_picture(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    visitor.ask("How many shapes are there?")
    assert visitor.answer(2) == "3"

    visitor.tab.get_by_role("button", name="Edit", exact=True).first.click()
    visitor.tab.locator("#lk-chat textarea").fill("What color is the square?")
    visitor.tab.locator("#lk-chat").get_by_role("button", name="Submit", exact=True).click()
    visitor.tab.get_by_text("blue", exact=True).wait_for()
    assert visitor.answer(1) == "blue"
    assert len(visitor.turns()) == 1
    assert visitor.turns()[0]["pictures"] == 1


def test_a_new_chat_forgets(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What is in this image?", DATA / "heart.png")
    assert visitor.answer(1) == "a red heart"
    visitor.press("New chat")
    visitor.tab.get_by_text("Ask about an image").wait_for()
    assert visitor.turns() == []


def test_a_document_becomes_its_pages(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What is the title of the second image?", DATA / "pages.pdf")
    assert visitor.answer(1) == "INVOICE"
    assert visitor.turns()[0]["pictures"] == 4

    visitor.press("New chat")
    visitor.tab.get_by_text("Ask about an image").wait_for()
    visitor.setting("Pages of documents", "3")
    visitor.ask("What is the total?", DATA / "pages.pdf")
    assert visitor.answer(1) == "8117"


def test_a_corrupt_file_costs_one_sentence(visit: Visit, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((DATA / "heart.png").read_bytes()[:200])
    visitor = visit()
    visitor.ask("What is in this image?", broken)
    assert visitor.error(1).startswith("broken.png: ")
    assert "Traceback" not in visitor.tab.inner_text("body")

    visitor.ask("What is in this image?", DATA / "heart.png")
    assert visitor.answer(2) == "a red heart"


def test_a_refresh_keeps_the_conversation_and_frees_the_engine(visit: Visit, site: Any) -> None:
    visitor = visit()
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    visitor.choose("endless-talker", tokens=50_000)
    visitor.ask("Talk.")
    visitor.wait_for_words(2)

    visitor.reload()
    until(lambda: idle(site))
    assert visitor.answer(1) == "red"
    assert visitor.facts(2).startswith("Stopped")
    visitor.ask("What color is the square?")
    # What it says depends on how long the talk before it became; it is asked with all of that.
    assert visitor.answer(3)
    assert "64 of images" in visitor.facts(3) and "tokens in" in visitor.facts(3)


def test_two_visitors_are_answered_at_once_and_do_not_see_each_other(
    visit: Visit, site: Any
) -> None:
    first, second = visit(), visit()
    for visitor in (first, second):
        visitor.choose("endless-talker", tokens=50_000)
        visitor.ask("Talk.")
    first.wait_for_words(1)
    second.wait_for_words(1)
    [talking] = [
        value for value in site.controller.model_cache.stats().values() if value["running"]
    ]
    assert talking["running"] == 2

    first.stop.click()
    assert first.answer(1)
    assert talking_now(site) == 1  # the other one is not disturbed
    second.stop.click()
    assert len(first.turns()) == len(second.turns()) == 1


def talking_now(site: Any) -> int:
    return sum(figures["running"] for figures in site.controller.model_cache.stats().values())


def test_whoever_finds_no_seat_waits_in_line_and_moves_up(visit: Visit, site: Any) -> None:
    talkers = [visit(), visit()]
    for visitor in talkers:
        visitor.choose("endless-talker", tokens=50_000)
        visitor.ask("Talk.")
        visitor.wait_for_words(1)
    patient, late = visit(), visit()
    patient.ask("What is in this image?", DATA / "heart.png")
    assert patient.waits(1) == "You are next in line."
    late.ask("What is in this image?", DATA / "heart.png")
    assert "Too many are waiting" in late.error(1)

    talkers[0].leave()
    assert patient.answer(1) == "a red heart"
    talkers[1].stop.click()


@pytest.mark.parametrize(
    ("button", "answer"),
    [
        ("Caption", "a red circle, a blue square and a green triangle"),
        ("List objects", "a red circle, a blue square and a green triangle"),
        ("Describe the scene", "a red circle, a blue square and a green triangle"),
    ],
)
def test_a_ready_task_asks_about_the_picture_in_the_box(
    visit: Visit, button: str, answer: str
) -> None:
    visitor = visit()
    visitor.attach(DATA / "shapes.png")
    visitor.press(button)
    assert visitor.answer(1) == answer


def test_ready_tasks_read_documents_and_answer_shortly(visit: Visit) -> None:
    visitor = visit()
    visitor.press("Read the document")
    assert "Add an image first." in visitor.notice()
    visitor.attach(DATA / "invoice.png")
    visitor.press("Read the document")
    assert visitor.answer(1).split() == ["INVOICE", "No.", "2284", "Total", "320", "Name", "ANNA"]
    visitor.write("What is the total?")
    visitor.press("Short answer")
    assert visitor.answer(2) == "320"


def test_an_example_shows_how_it_goes(visit: Visit) -> None:
    visitor = visit()
    visitor.tab.get_by_text("What is the invoice number?").click()
    assert visitor.answer(1) == "2284"


def test_votes_and_flags_are_kept_in_the_log(visit: Visit, site: Any) -> None:
    visitor = visit()
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    visitor.press("Like")
    [folder] = [site.controller.log.folder]
    until(lambda: '"Like"' in _log(folder))
    visitor.tab.get_by_role("button", name="Feedback").first.hover()
    visitor.tab.get_by_text("Flag", exact=True).first.click()
    until(lambda: '"Flag"' in _log(folder))
    records = [json.loads(line) for line in _log(folder).splitlines()]
    answer = [record for record in records if record["event"] == "answer"][-1]
    assert answer["question"] == "What colour is the circle?"
    assert answer["answer"] == "red"
    [picture] = answer["images"]
    assert (folder / "images" / f"{picture['digest']}.png").is_file()
    assert records[-1]["conversation"] == answer["conversation"]


def _log(folder: Path) -> str:
    return "".join(file.read_text("utf-8") for file in folder.glob("*.jsonl"))


def test_a_question_without_words_is_told_plainly(visit: Visit) -> None:
    visitor = visit()
    visitor.attach(DATA / "heart.png")
    visitor.tab.click("#lk-box .submit-button")
    assert "Write a question" in visitor.notice()
    visitor.ask("What is in this image?")  # the picture waited in the box
    assert visitor.answer(1) == "a red heart"


def test_too_large_a_file_is_refused_before_it_is_here(
    visit: Visit, site: Any, tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2 << 20))
    visitor = visit()
    visitor.tab.set_input_files("#lk-box input[type=file]", str(large))
    assert "maximum allowed size" in visitor.notice()
    visitor.complaints.clear()  # the browser itself reports the refused request


def test_uploads_are_gone_when_they_were_sent_or_their_visitor_left(
    visit: Visit, site: Any
) -> None:
    visitor = visit()
    before = _files(site)
    visitor.attach(DATA / "heart.png", DATA / "wide.webp")
    assert len(_files(site)) == len(before) + 2
    visitor.ask("What is in the first image?")
    assert visitor.answer(1)
    until(lambda: _files(site) == before)

    visitor.attach(DATA / "heart.png")
    assert len(_files(site)) == len(before) + 1
    visitor.leave()
    until(lambda: _files(site) == before)


def _files(site: Any) -> set[Path]:
    return {file for file in site.controller.uploads.folder.rglob("*") if file.is_file()}


def test_an_answer_that_holds_markup_fetches_and_runs_nothing(visit: Visit, site: Any) -> None:
    visitor = visit()
    evil = "![x](http://picture.invalid/a.png) <img src=http://picture.invalid/b.png> <b>bold</b>"
    visitor.ask(f"Repeat after me: {evil}")
    assert visitor.answer(1)
    assert "picture.invalid" in visitor.turns()[0]["question"]


def test_the_page_is_dark_where_the_system_is_and_can_be_turned(visit: Visit) -> None:
    visitor = visit(color_scheme="dark")
    assert _background(visitor) < 60
    visitor.tab.click("#lk-dark")
    assert _background(visitor) > 200


def _background(visitor: Visitor) -> int:
    """The red of the page's background, from 0 to 255."""
    colour = "getComputedStyle(document.querySelector('gradio-app')).backgroundColor"
    return int(visitor.tab.evaluate(f"Number({colour}.match(/\\d+/)[0])"))


def test_on_a_phone_nothing_sticks_out(visit: Visit) -> None:
    visitor = visit(viewport={"width": 360, "height": 700}, has_touch=True)
    visitor.ask("What is the title of the second image?", DATA / "pages.pdf")
    assert visitor.answer(1) == "INVOICE"
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert visitor.tab.evaluate(wide) <= 0
    box = visitor.tab.locator("#lk-box .submit-button").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 700


def test_everything_can_be_done_from_the_keyboard(visit: Visit) -> None:
    visitor = visit()
    focused = "document.activeElement.innerText || document.activeElement.tagName"
    assert visitor.tab.evaluate(focused) == "TEXTAREA"  # one can type at once
    visitor.tab.keyboard.press("Escape")  # nothing is running: nothing happens
    visitor.attach(DATA / "shapes.png")
    reached = set()
    for _ in range(40):
        visitor.tab.keyboard.press("Shift+Tab")
        reached.add(visitor.tab.evaluate(focused).strip())
        if reached >= {"Caption", "New chat", "Settings", "Regenerate"}:
            break
    assert reached >= {"Caption", "Read the document", "New chat", "Settings", "Regenerate"}
    visitor.tab.locator("#lk-box textarea").focus()
    visitor.tab.keyboard.type("What colour is")
    visitor.tab.keyboard.press("Shift+Enter")
    visitor.tab.keyboard.type("the circle?")
    visitor.tab.keyboard.press("Enter")
    assert visitor.answer(1) == "red"
