"""The images of a LangChain conversation, in their order, and their names in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from llavakit._checks import checked
from llavakit.errors import InputError, MessageError
from llavakit.langchain.content_blocks import document_of, picture_of, type_of
from llavakit.langchain.messages import role_of
from llavakit.questions.references import Shown, named


def images_of(messages: Sequence[BaseMessage]) -> list[Shown]:
    """Return every image and PDF of the messages; nothing is opened.

    What cannot be opened (another provider's file id) is there too, as the error: it counts,
    so that the others keep their numbers.
    """
    return [
        thing
        for message in messages
        for block in _blocks(message)
        for thing in _in_block(block, _by_user(message))
    ]


@checked
def name_images(messages: Sequence[BaseMessage], *, keep: bool = False) -> list[BaseMessage]:
    """Write the names of the images into the messages, as ``ImageQuestionTool`` has them.

    For an agent's model that cannot see, so that it can ask about images that it is never sent;
    nothing is mutated.

    Args:
        messages: the whole conversation, since names are counted from its beginning.
        keep: leave the images in, each behind its name, for a model that sees.
    """
    every = images_of(messages)
    names = iter([name for name, _ in named(every)])
    return [_renamed(message, names, keep) for message in messages]


def _renamed(message: BaseMessage, names: Iterator[str], keep: bool) -> BaseMessage:
    content: list[Any] = []
    changed = False
    for block in _blocks(message):
        new = _in_names(block, names, keep)
        changed = changed or new != [block]
        content += new
    return message.model_copy(update={"content": content}) if changed else message


def _in_names(block: Any, names: Iterator[str], keep: bool) -> list[Any]:
    if _is_result(block):
        inner = [new for one in block["content"] for new in _in_names(one, names, keep)]
        return [block if inner == block["content"] else {**block, "content": inner}]
    # Only its images are counted here, so the role does not matter.
    here = [next(names) for _ in _in_block(block, True)]
    if not here:
        return [block]
    text = {"type": "text", "text": f"[{here[0]}]"}
    return [text, block] if keep else [text]


def _in_block(block: Any, by_user: bool) -> Iterator[Shown]:
    if not isinstance(block, Mapping):
        return
    if _is_result(block):
        for one in block["content"]:
            yield from _in_block(one, False)
        return
    if type_of(block) == "non_standard" and isinstance(block.get("value"), Mapping):
        yield from _in_block(block["value"], by_user)
        return
    try:
        if (image := picture_of(block)) is not None:
            yield Shown(image, by_user=by_user)
        elif (document := document_of(block)) is not None:
            yield Shown(document.source, document=True, by_user=by_user)
    except InputError as error:
        yield Shown(error, by_user=by_user)


def _blocks(message: BaseMessage) -> Sequence[Any]:
    return () if isinstance(message.content, str) else message.content


def _is_result(block: Any) -> bool:
    return (
        isinstance(block, Mapping)
        and block.get("type") == "tool_result"
        and isinstance(block.get("content"), list)
    )


def _by_user(message: BaseMessage) -> bool:
    try:
        return role_of(message) in ("user", "system")
    except MessageError:
        return False
