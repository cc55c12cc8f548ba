"""Conversations as gradio's chat shows them: plain dictionaries, a few for each turn."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape, unescape
from typing import Any

from llavakit.web.conversation import AnswerStage, ShownAnswer, WebConversation, WebTurn

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


def to_chat(
    conversation: WebConversation, has_maps: Callable[[str], bool] = lambda _: False
) -> list[dict[str, Any]]:
    """Return the messages of a conversation.

    A turn is up to four: its images, its words, its answer, and the facts below that. They
    are messages of their own, so that its words can be edited and its answer be copied alone.

    Args:
        conversation: the conversation.
        has_maps: whether a model, by its name, can show where it looked.
    """
    messages: list[dict[str, Any]] = []
    shown = 0
    for number, turn in enumerate(conversation.turns):
        shown += len(turn.pictures)
        mapped = turn.answer.counts and shown and has_maps(turn.answer.model)
        messages += _messages(turn, _look_button(conversation.name, number) if mapped else "")
    return messages


def feedback(conversation: WebConversation) -> list[str | None]:
    """Return the visitor's vote on each message of the model, in their order."""
    given: list[str | None] = []
    for turn in conversation.turns:
        answers = [message for message in _messages(turn) if message["role"] == "assistant"]
        given += [turn.answer.feedback if turn.answer.text else None] + [None] * (len(answers) - 1)
    return given


def turn_of(conversation: WebConversation, index: Any) -> int:
    """Return the number of the turn, from 0, that a message belongs to; -1 if there is none."""
    left = int(index[0] if isinstance(index, (list, tuple)) else index)
    for number, turn in enumerate(conversation.turns):
        left -= len(_messages(turn))
        if left < 0:
            return number
    return -1


def typed(text: str) -> str:
    """Return what a visitor typed, from what was shown of it (see :func:`plain`)."""
    return unescape(text.replace("!\\[", "!["))


def plain(text: str) -> str:
    """Escape text for a place that renders Markdown: no HTML, and no image is fetched.

    What stands in code is left as it is: there Markdown itself escapes it.
    """
    parts = _CODE.split(text)
    return "".join(
        part if number % 2 else escape(part, quote=False).replace("![", "!\\[")
        for number, part in enumerate(parts)
    )


def _look_button(chat: str, turn: int) -> str:
    """Return the button that opens the map of a turn; the page's script reads its data."""
    return (
        f'<button type="button" class="lk-look" aria-haspopup="dialog" data-chat="{escape(chat)}" '
        f'data-turn="{turn}">Where it looked</button>'
    )


def _messages(turn: WebTurn, button: str = "") -> list[dict[str, Any]]:
    pictures = _html(_gallery(turn)) if turn.pictures else None
    question = {"type": "text", "text": plain(turn.text)}
    asked = [part for part in (pictures, question) if part is not None]
    answer = turn.answer
    said = [{"type": "text", "text": plain(answer.text)}] if answer.text else []
    below = _below(answer, button)
    if below:
        said.append(_html(below))
    return [
        *({"role": "user", "content": [part]} for part in asked),
        *({"role": "assistant", "content": [part]} for part in said),
    ]


def _gallery(turn: WebTurn) -> str:
    shown = "".join(
        f'<img src="{picture.thumbnail}" alt="{escape(picture.name)}" '
        f'title="{escape(picture.name)}">'
        for picture in turn.pictures
    )
    many = " lk-many" if len(turn.pictures) > 2 else ""
    notes = f'<div class="lk-note">{escape(" ".join(turn.notes))}</div>' if turn.notes else ""
    return f'<div class="lk-pictures{many}">{shown}</div>{notes}'


def _below(answer: ShownAnswer, button: str = "") -> str:
    """Return what stands below an answer, or in the place of one that is not there yet."""
    if answer.stage is AnswerStage.FAILED:
        return f'<div class="lk-error" role="alert">{escape(answer.error)}</div>'
    if answer.stage.over:
        return f'<div class="lk-facts">{escape(facts(answer))}</div>{button}'
    if not answer.text:
        return f'<div class="lk-status" role="status">{escape(status(answer))}</div>'
    return ""


def status(answer: ShownAnswer) -> str:
    """Return what a visitor who waits is shown."""
    if answer.stage is AnswerStage.WAITING:
        if answer.place == 1:
            return "You are next in line."
        return f"You are number {answer.place} in line." if answer.place else "One moment…"
    return f"Loading {answer.model}…" if answer.stage is AnswerStage.LOADING else "Looking…"


def facts(answer: ShownAnswer) -> str:
    """Return tokens and speed of an answer that is over."""
    seconds = answer.first_token + answer.writing
    if answer.stage is AnswerStage.STOPPED:
        return f"Stopped after {_seconds(seconds)}" if seconds else "Stopped"
    usage = answer.usage
    if usage is None:
        return _seconds(seconds)
    shown = [f"{_tokens(usage.completion_tokens)} in {_seconds(seconds)}"]
    # Tokens that came at once have no speed.
    if usage.completion_tokens > 1 and answer.writing >= 0.005:
        shown.append(f"{(usage.completion_tokens - 1) / answer.writing:,.0f} per second")
    prompt = f"prompt {_tokens(usage.prompt_tokens)}"
    if usage.image_tokens:
        prompt += f", {usage.image_tokens:,} of images"
    if usage.cached_tokens:
        prompt += f", {usage.cached_tokens:,} cached"
    shown.append(prompt)
    if answer.cut:
        shown.append("cut at the longest answer; raise it in the settings")
    return " · ".join(shown)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def _html(code: str) -> dict[str, Any]:
    return {
        "type": "component",
        "component": "html",
        "value": code,
        "constructor_args": {},
        "props": {},
    }
