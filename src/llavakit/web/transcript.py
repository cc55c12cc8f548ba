"""Conversations as files: JSON that can be opened again, and Markdown to read."""

from __future__ import annotations

import io
import json
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llavakit.errors import InputError, LlavaKitError
from llavakit.sources.formats import sniff
from llavakit.values import Usage
from llavakit.web.conversation import AnswerStage, ShownAnswer, WebConversation, WebTurn
from llavakit.web.pictures import AttachedImage, naming, pixels, shown_picture
from llavakit.web.rendering import plain
from llavakit.web.settings import WebSettings

FORMAT = "llavakit-chat"
VERSION = 1
_LONGEST_ANSWER = 10
"""Times the longest question."""
_SHOWN_BY_BROWSERS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
_USAGE = ("prompt_tokens", "completion_tokens", "cached_tokens", "image_tokens")


def to_json(conversation: WebConversation, known: Collection[str] = ()) -> str:
    """Return a conversation as JSON, its images as data URIs.

    Args:
        conversation: answers on their way are in it as far as they have come.
        known: digests of images whose data the caller has, and which is left out.
    """
    turns = [_turn_record(turn, known) for turn in conversation.turns]
    record = {"format": FORMAT, "version": VERSION, "id": conversation.name, "turns": turns}
    return json.dumps(record, ensure_ascii=False)


def to_markdown(conversation: WebConversation) -> str:
    """Return a conversation as Markdown, its images inline as data URIs.

    Nothing in it makes a viewer fetch something: neither markup nor images of an answer.
    """
    parts = ["# A chat with llavakit"]
    for number, turn in enumerate(conversation.turns, 1):
        parts.append(f"## Question {number}")
        parts += [f"![{_alt(shown.name)}]({_data_uri(shown)})" for shown in turn.pictures]
        parts.append("\n".join(f"> {line}" for line in plain(turn.text).splitlines()))
        answer = turn.answer
        parts.append(f"## Answer {number}" + (f" ({_alt(answer.model)})" if answer.model else ""))
        if answer.text:
            parts.append(plain(answer.text))
        if answer.error:
            parts.append(f"*{plain(answer.error)}*")
    return "\n\n".join(parts) + "\n"


def from_json(data: bytes | bytearray, settings: WebSettings) -> list[WebTurn]:
    """Return the turns of a conversation that a browser kept.

    Whatever a browser sends may be forged: nothing is opened but image data, and every limit of
    the page holds.

    Raises:
        InputError: it is not such a conversation, or a limit is exceeded.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError("This is not a saved chat: it is not JSON.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f'This is not a saved chat: it has no "format": "{FORMAT}".')
    if record.get("version") != VERSION:
        raise InputError(f"This chat was saved in another version of the format than {VERSION}.")
    saved = _list(record, "turns")
    if len(saved) > settings.max_turns:
        raise InputError(f"A chat has at most {settings.max_turns} questions.")
    turns: list[WebTurn] = []
    room = settings.max_kept_bytes
    for number, one in enumerate(saved, 1):
        try:
            turns.append(_turn(one, settings, room))
        except LlavaKitError as error:
            raise InputError(f"Question {number} of the saved chat: {error}") from error
        room -= sum(shown.size for shown in turns[-1].pictures)
    return turns


def _turn_record(turn: WebTurn, known: Collection[str]) -> dict[str, Any]:
    answer = turn.answer
    stage = answer.stage if answer.stage.over else AnswerStage.STOPPED
    return {
        "question": turn.text,
        "images": [_image_record(shown, known) for shown in turn.pictures],
        "notes": list(turn.notes),
        "answer": answer.text,
        "model": answer.model,
        "ended": str(stage),
        "error": answer.error,
        "cut": answer.cut,
        "usage": None if answer.usage is None else asdict(answer.usage),
        "first_token": answer.first_token,
        "writing": answer.writing,
    }


def _image_record(shown: AttachedImage, known: Collection[str]) -> dict[str, Any]:
    record = {"name": shown.name, "digest": shown.digest}
    return record if shown.digest in known else {**record, "data": _data_uri(shown)}


def _data_uri(shown: AttachedImage) -> str:
    source: Any = shown.image.source
    kind = _SHOWN_BY_BROWSERS.get(sniff(source)) if isinstance(source, bytes) else None
    if kind is None:
        png = io.BytesIO()
        pixels(shown.image).rgb.save(png, "PNG")
        source, kind = png.getvalue(), "image/png"
    return f"data:{kind};base64,{b64encode(source).decode('ascii')}"


def _alt(name: str) -> str:
    return plain(" ".join(name.split())).replace("[", "\\[").replace("]", "\\]")


def _turn(saved: Any, settings: WebSettings, room: int) -> WebTurn:
    if not isinstance(saved, dict):
        raise InputError("it is not an object.")
    images = _list(saved, "images")
    if len(images) > settings.max_images:
        raise InputError(f"a message takes {settings.max_images} images.")
    text = _text(saved, "question", settings.max_text)
    if not text.strip():
        raise InputError("it has no words.")
    notes = [_text({"note": note}, "note", 1000) for note in _list(saved, "notes")[:16]]
    pictures: list[AttachedImage] = []
    for image in images:
        pictures.append(_image(image, settings))
        room -= pictures[-1].size
        if room < 0:
            raise InputError("a chat cannot hold so many images; begin a new one for these.")
    return WebTurn(text, tuple(pictures), tuple(notes), _answer(saved, settings))


def _image(saved: Any, settings: WebSettings) -> AttachedImage:
    if not isinstance(saved, dict):
        raise InputError("an image of it is not an object.")
    name = " ".join(_text(saved, "name", 300).split()) or "image"
    data = saved.get("data")
    head, comma, body = data.partition(",") if isinstance(data, str) else ("", "", "")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise InputError(f"the data of {name} is missing.")
    try:
        decoded = b64decode(body, validate=True)
    except ValueError as error:
        raise InputError(f"the data of {name} is not base64.") from error
    policy = replace(settings.policy(Path("/")), roots=())  # nothing but these bytes
    with naming(name, settings):
        return shown_picture(decoded, name, policy)


def _answer(saved: dict[str, Any], settings: WebSettings) -> ShownAnswer:
    ended = saved.get("ended")
    stage = AnswerStage(ended) if ended in ("done", "stopped", "failed") else AnswerStage.STOPPED
    return ShownAnswer(
        text=_text(saved, "answer", _LONGEST_ANSWER * settings.max_text),
        stage=stage,
        error=_text(saved, "error", 2000),
        model=_text(saved, "model", 300),
        usage=_usage(saved.get("usage")),
        cut=saved.get("cut") is True,
        first_token=_seconds(saved.get("first_token")),
        writing=_seconds(saved.get("writing")),
    )


def _usage(saved: Any) -> Usage | None:
    if not isinstance(saved, dict):
        return None
    counts = {name: saved.get(name, 0) for name in _USAGE}
    if any(type(count) is not int or not 0 <= count < 1 << 40 for count in counts.values()):
        return None
    return Usage(**counts)


def _seconds(saved: Any) -> float:
    return float(saved) if type(saved) in (int, float) and 0 <= saved < 1e6 else 0.0


def _text(saved: dict[str, Any], name: str, most: int) -> str:
    value = saved.get(name, "")
    if not isinstance(value, str):
        raise InputError(f"{name} is not a text.")
    if len(value) > most:
        raise InputError(f"{name} has more than {most} characters.")
    # A surrogate alone cannot be sent on as UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8")


def _list(saved: dict[str, Any], name: str) -> list[Any]:
    value = saved.get(name, [])
    if not isinstance(value, list):
        raise InputError(f"{name} is not a list.")
    return value
