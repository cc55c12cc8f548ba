"""Conversations as gradio's chat shows them: plain dictionaries, a pair for each turn."""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

from llavakit.web.conversation import Answer, Conversation, Stage, Turn

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


def to_chat(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages of a conversation: the question of turn i at 2i, its answer at 2i + 1."""
    return [message for turn in conversation.turns for message in (_question(turn), _answer(turn))]


def feedback(conversation: Conversation) -> list[str | None]:
    """What the visitor thinks of each answer."""
    return [turn.answer.feedback for turn in conversation.turns]


def turn_of(index: Any) -> int:
    """The turn that a message belongs to."""
    return int(index[0] if isinstance(index, (list, tuple)) else index) // 2


def typed(text: str) -> str:
    """What a visitor typed, from what was shown of it."""
    return unescape(text)


def plain(text: str) -> str:
    """Text for a place that renders Markdown: nothing in it is HTML, or fetches a picture.

    What stands in code is left as it is: there Markdown itself escapes it.
    """
    parts = _CODE.split(text)
    return "".join(
        part if number % 2 else escape(part, quote=False).replace("![", "!\\[")
        for number, part in enumerate(parts)
    )


def _question(turn: Turn) -> dict[str, Any]:
    content: list[Any] = []
    if turn.pictures:
        content.append(_html(_gallery(turn)))
    content.append({"type": "text", "text": escape(turn.text, quote=False)})
    if turn.notes:
        content.append(_html(f'<div class="lk-note">{escape(" ".join(turn.notes))}</div>'))
    return {"role": "user", "content": content}


def _gallery(turn: Turn) -> str:
    shown = "".join(
        f'<img src="{picture.thumbnail}" alt="{escape(picture.name)}" '
        f'title="{escape(picture.name)}">'
        for picture in turn.pictures
    )
    return f'<div class="lk-pictures">{shown}</div>'


def _answer(turn: Turn) -> dict[str, Any]:
    answer = turn.answer
    content: list[Any] = []
    if answer.text:
        content.append({"type": "text", "text": plain(answer.text)})
    if answer.stage is Stage.FAILED:
        content.append(_html(f'<div class="lk-error" role="alert">{escape(answer.error)}</div>'))
    elif answer.stage.over:
        content.append(_html(f'<div class="lk-facts">{escape(facts(answer))}</div>'))
    elif not answer.text:
        content.append(
            _html(f'<div class="lk-status" role="status">{escape(status(answer))}</div>')
        )
    return {"role": "assistant", "content": content}


def status(answer: Answer) -> str:
    """What somebody who waits is told."""
    if answer.stage is Stage.WAITING:
        if answer.place == 1:
            return "You are next in line."
        return f"You are number {answer.place} in line." if answer.place else "One moment…"
    return f"Loading {answer.model}…" if answer.stage is Stage.LOADING else "Looking…"


def facts(answer: Answer) -> str:
    """Tokens and speed of an answer that is over."""
    seconds = answer.first_token + answer.writing
    if answer.stage is Stage.STOPPED:
        return f"Stopped after {seconds:.1f} s" if seconds else "Stopped"
    usage = answer.usage
    if usage is None:
        return f"{seconds:.1f} s"
    told = [f"{_tokens(usage.completion_tokens)} in {seconds:.1f} s"]
    if usage.completion_tokens > 1 and answer.writing > 0:
        told.append(f"{(usage.completion_tokens - 1) / answer.writing:,.0f} per second")
    prompt = f"prompt {_tokens(usage.prompt_tokens)}"
    if usage.image_tokens:
        prompt += f", {usage.image_tokens:,} of pictures"
    if usage.cached_tokens:
        prompt += f", {usage.cached_tokens:,} cached"
    told.append(prompt)
    if answer.cut:
        told.append("cut at the longest answer; raise it in the settings")
    return " · ".join(told)


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
