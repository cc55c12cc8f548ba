"""Which template a checkpoint is read with: the one that was asked for, its own, or a guess."""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePath
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model import catalog
from llavakit.model.tokens import PromptTokenizer
from llavakit.prompts.conversation import Turn
from llavakit.prompts.templates import named_template, template
from llavakit.values import Image, Text

log = logging.getLogger(__name__)

LEGACY_FILE = "chat_template.json"
"""Where processors kept their template before ``chat_template.jinja``; many checkpoints on the
hub do still. A tokenizer that is loaded without its processor does not look there."""

# The picture is only counted, never opened.
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
) -> PromptTokenizer:
    """The tokenizer with the template that the checkpoint is read with.

    Args:
        tokenizer: an HF tokenizer.
        image_id: the id of the image token.
        path: the checkpoint's directory.
        conv_mode: the template that was asked for, if any. A warning is logged if the
            checkpoint's own template writes a conversation differently.
        name: the model's name or directory. It tells the template, with a warning, if the
            checkpoint has none.
        stop_strings: what ends an answer beside special tokens, if the checkpoint's own
            template is taken.

    Raises:
        ParameterError: no template is called ``conv_mode``.
        CheckpointError: no template was asked for, and neither files nor name tell of one.
    """
    if not tokenizer.chat_template:
        tokenizer.chat_template = _legacy_template(path)
    if conv_mode is not None:
        asked = PromptTokenizer(tokenizer, image_id, template(conv_mode))
        if tokenizer.chat_template and not _agree(asked, PromptTokenizer(tokenizer, image_id)):
            log.warning(
                "conv_mode=%r writes prompts differently from the chat template of %s; answers "
                "are poor if the model was not trained with it",
                conv_mode,
                name,
            )
        return asked
    if tokenizer.chat_template:
        return PromptTokenizer(tokenizer, image_id, stop_strings=stop_strings)
    guess = named_template(_telling_name(name))
    if guess is None:
        raise CheckpointError(
            f"{path} has no chat template and its name tells of none; name the one that the "
            "model was trained with by conv_mode=."
        )
    log.warning(
        "%s has no chat template; its name tells of conv_mode=%r, which is taken", name, guess
    )
    return PromptTokenizer(tokenizer, image_id, template(guess))


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


def _telling_name(name: str) -> str:
    """The part of an id or a directory that tells of the model.

    Converted checkpoints go by the name of the original one (``llava-1.5-7b-hf`` is
    ``llava-v1.5-7b``); a trainer's ``checkpoint-500`` by that of the directory it is in.
    """
    entry = catalog.resolve(name)
    parts = PurePath(entry.original_id if entry is not None else name).parts[-2:]
    if parts and not parts[-1].startswith("checkpoint-"):
        parts = parts[-1:]
    return "_".join(parts)
