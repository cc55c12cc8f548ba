"""What the model is told of a conversation, and what its visitor sees of it."""

from __future__ import annotations

import pytest

from llavakit.errors import InputError
from llavakit.values import Image, Usage
from llavakit.web.conversation import AnswerStage, ShownAnswer, WebConversation
from llavakit.web.pictures import AttachedImage
from llavakit.web.rendering import facts, plain, status, to_chat, turn_of, typed

PICTURE = AttachedImage('a"<b>.png', Image(b"file"), "digest", "data:image/jpeg;base64,AA", 4)


def answered(
    conversation: WebConversation, question: str, answer: str, *pictures: AttachedImage
) -> None:
    turn = conversation.ask(question, pictures)
    turn.answer = ShownAnswer(answer, AnswerStage.DONE, usage=Usage(10, 2))


def test_the_model_is_told_what_was_said_and_nothing_of_what_failed() -> None:
    conversation = WebConversation()
    answered(conversation, "First?", "one", PICTURE)
    conversation.fail("Broken?", "a.png: damaged.")
    stopped = conversation.ask("Long?")
    stopped.answer = ShownAnswer("begun", AnswerStage.STOPPED)
    silent = conversation.ask("Silent?")
    silent.answer = ShownAnswer("", AnswerStage.STOPPED)
    conversation.ask("Last?")

    messages = conversation.messages("Be short.")
    told = [(message.role, message.text) for message in messages]
    assert told == [
        ("system", "Be short."),
        ("user", "First?"),
        ("assistant", "one"),
        ("user", "Long?"),
        ("assistant", "begun"),
        ("user", "Last?"),
    ]
    assert messages[1].images == (PICTURE.image,)
    assert conversation.messages()[0].role == "user"  # no system text: the template's own


def test_an_edit_forgets_what_came_after_and_keeps_the_pictures() -> None:
    conversation = WebConversation()
    answered(conversation, "First?", "one", PICTURE)
    answered(conversation, "Second?", "two")
    turn = conversation.edit(0, "Other?")
    assert conversation.turns == [turn]
    assert turn.pictures == (PICTURE,)
    assert not turn.answer.text
    with pytest.raises(InputError, match="gone"):
        conversation.edit(1, "x")
    with pytest.raises(InputError, match="needs words"):
        conversation.edit(0, "  ")
    assert conversation.turns == [turn]


def test_again_needs_a_question_and_clear_begins_another_conversation() -> None:
    conversation = WebConversation()
    with pytest.raises(InputError, match="Ask something"):
        conversation.again()
    answered(conversation, "First?", "one")
    assert conversation.again().answer.stage is AnswerStage.WAITING
    name = conversation.name
    conversation.clear()
    assert conversation.turns == [] and conversation.name != name


def test_every_message_shown_leads_back_to_its_turn() -> None:
    conversation = WebConversation()
    answered(conversation, "First?", "one", PICTURE)
    conversation.fail("Broken?", "damaged")
    answered(conversation, "Third?", "three")
    roles = [message["role"] for message in to_chat(conversation)]
    assert roles == [
        *("user", "user", "assistant", "assistant"),
        *("user", "assistant"),
        *("user", "assistant", "assistant"),
    ]
    turns = [turn_of(conversation, index) for index in range(len(roles))]
    assert turns == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert turn_of(conversation, [4, 0]) == 1
    assert turn_of(conversation, 9) == -1


def test_names_of_files_cannot_add_markup() -> None:
    conversation = WebConversation()
    answered(conversation, "First?", "one", PICTURE)
    [part] = to_chat(conversation)[0]["content"]
    assert "<b>" not in part["value"]
    assert 'alt="a&quot;&lt;b&gt;.png"' in part["value"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("![x](http://host/a.png)", "!\\[x](http://host/a.png)"),
        ("`<b>` and ```\n<i>\n```", "`<b>` and ```\n<i>\n```"),
        ("```\n<open", "```\n<open"),
    ],
)
def test_text_is_shown_as_text(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert typed(plain(text)) == text


def test_the_figures_below_an_answer() -> None:
    answer = ShownAnswer(
        "red", AnswerStage.DONE, usage=Usage(80, 11, 64, 60), first_token=1.0, writing=0.5, cut=True
    )
    assert facts(answer) == (
        "11 tokens in 1.5 s · 20 per second · prompt 80 tokens, 60 of images, 64 cached · "
        "cut at the longest answer; raise it in the settings"
    )
    assert (
        facts(ShownAnswer("r", AnswerStage.STOPPED, first_token=0.1, writing=0.15))
        == "Stopped after 0.25 s"
    )
    assert facts(ShownAnswer("", AnswerStage.STOPPED)) == "Stopped"


def test_who_waits_is_told_his_place() -> None:
    assert status(ShownAnswer(place=1)) == "You are next in line."
    assert status(ShownAnswer(place=3)) == "You are number 3 in line."
    assert status(ShownAnswer(stage=AnswerStage.LOADING, model="demo")) == "Loading demo…"
