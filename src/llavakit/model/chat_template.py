"""Which template a checkpoint is read with: the one that was asked for, its own, or a guess.

The original's models are an exception: the chat templates of their conversions leave out the
system text that they were trained with, so they are read with the original's own templates.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePath
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model import catalog
from llavakit.model.tokens import PromptTokenizer
from llavakit.prompts.conversation import Turn
from llavakit.prompts.templates import OWN, named_template, template
from llavakit.values import Image, Text

log = logging.getLogger(__name__)

LEGACY_FILE = "chat_template.json"
"""Where processors kept their template before ``chat_template.jinja``; many checkpoints on the
hub do still. A tokenizer that is loaded without its processor does not look there."""

# The image is only counted, never opened.
PROBE = (
    Turn("user", (Image("picture.png"), Text("Is it red?"))),
    Turn("assistant", (Text("Yes."),)),
    Turn("user", (Text("And now?"),)),
)


def prompt_tokenizer(
    tokenizer: Any,
    image_id: int,
    *,
    path: Path,
    conv_mode: str | None,
    name: str,
    stop_strings: tuple[str, ...] = (),
    video_id: int | None = None,
) -> PromptTokenizer:
    """The tokenizer with the template that the checkpoint is read with.

    Args:
        tokenizer: an HF tokenizer.
        image_id: the id of the image token.
        path: the checkpoint's directory.
        conv_mode: the template that was asked for, if any; ``OWN`` is the checkpoint's. A
            warning is logged if that writes a conversation differently.
        name: the model's name or directory. The original's models are read with the
            original's templates; for others it selects the template, with a warning, if the
            checkpoint has none.
        stop_strings: what ends an answer beside special tokens, if the checkpoint's own
            template is taken.
        video_id: the id of the video token, where the model takes videos.

    Raises:
        ParameterError: no template is called ``conv_mode``.
        CheckpointError: no template was asked for, and neither files nor name imply one.
    """
    if not tokenizer.chat_template:
        tokenizer.chat_template = _legacy_template(path)
    if conv_mode == OWN or (conv_mode is None and not _original(name) and tokenizer.chat_template):
        return PromptTokenizer(tokenizer, image_id, stop_strings=stop_strings, video_id=video_id)
    chosen = conv_mode or _named(name)
    if chosen is None:
        raise CheckpointError(
            f"{path} has no chat template and its name implies none; name the one that the "
            "model was trained with by conv_mode=."
        )
    asked = PromptTokenizer(tokenizer, image_id, template(chosen), video_id=video_id)
    if not tokenizer.chat_template:
        if conv_mode is None:
            log.warning(
                "%s has no chat template; its name implies conv_mode=%r, which is taken",
                name,
                chosen,
            )
    elif not _agree(asked, PromptTokenizer(tokenizer, image_id)):
        if conv_mode is None:
            log.info(
                "%s is read with the original's template %r rather than with its chat template, "
                "which writes prompts differently; conv_mode=%r takes that one",
                name,
                chosen,
                OWN,
            )
        else:
            log.warning(
                "conv_mode=%r writes prompts differently from the chat template of %s; answers "
                "are poor if the model was not trained with it",
                conv_mode,
                name,
            )
    return asked


def _legacy_template(path: Path) -> str | None:
    file = path / LEGACY_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}") from error
    if not isinstance(found, str):
        raise CheckpointError(f"{file} holds no template but a {type(found).__name__}.")
    return found


def _agree(asked: PromptTokenizer, own: PromptTokenizer) -> bool:
    """Whether both make the same ids of a conversation (their texts may differ by a BOS)."""
    try:
        expected = own.encode(PROBE)
    except Exception:  # a chat template is a program, and fails as it likes
        return False
    return asked.encode(PROBE) == expected


def _original(name: str) -> bool:
    """Whether this is one of the original's models, converted or not."""
    entry = _entry(name)
    return entry is not None and entry.of_original


def _named(name: str) -> str | None:
    """Return the template that the name of an id or a directory implies.

    A trainer's ``checkpoint-500`` goes by the name of the directory it is in.
    """
    if (entry := _entry(name)) is not None:
        return None if entry.template == OWN else entry.template
    parts = PurePath(name).parts[-2:]
    if parts and not parts[-1].startswith("checkpoint-"):
        parts = parts[-1:]
    return named_template("_".join(parts))


def _entry(name: str) -> catalog.CatalogEntry | None:
    """The catalog's entry of a name, of a directory of that name, or of one in the hub's cache."""
    if (entry := catalog.resolve(name)) is not None:
        return entry
    parts = PurePath(name).parts
    cached = next((part for part in reversed(parts) if part.startswith("models--")), None)
    if cached is not None:
        return catalog.resolve(cached.removeprefix("models--").replace("--", "/", 1))
    return catalog.of_repository(parts[-1]) if parts else None
