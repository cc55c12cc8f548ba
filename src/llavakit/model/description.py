"""The small files of a checkpoint in HF format: all that it holds beside its weights.

A model that was trained or merged is written with the files of what it was made from, and with
the conversation template that it is read with, so that every program asks it alike.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model.chat_template import LEGACY_FILE, PROBE
from llavakit.model.jinja import chat_template
from llavakit.model.reader import Reader

# The tokenizer's, the processor's and the template's; never weights, nor cards of other models.
_COPIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("*preprocessor_config.json", "processor_config.json", "chat_template*"),
    *("generation_config.json", "*.jinja"),
)


def spelt_stops(reader: Reader) -> list[str]:
    """Stop strings that no id stands for.

    ``generate`` of transformers asks for the tokenizer where there are any, so there are none
    that are not needed.
    """
    ids = reader.tokenizer.tokenizer.get_vocab()
    stops = reader.tokenizer.stop_strings
    return [one for one in stops if ids.get(one) not in reader.special.stops]


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON, as people like to read it."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_generation(reader: Reader, path: Path) -> None:
    """Write what ends an answer (``generation_config.json``)."""
    from transformers import GenerationConfig

    tokenizer = reader.tokenizer.tokenizer
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(reader.special.stops),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=spelt_stops(reader) or None,
    ).save_pretrained(path)


def copy_description(source: Path, reader: Reader, path: Path) -> None:
    """Write the small files of an HF checkpoint for weights that are made from it.

    Args:
        source: the directory of that checkpoint.
        reader: with the template that the new weights are read with.
        path: the directory to fill.
    """
    for pattern in _COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, path / file.name)
    template = reader.tokenizer.template
    if template is not None:
        jinja = chat_template(template, reader.tokenizer.image_token, spaced=False)
        (path / LEGACY_FILE).unlink(missing_ok=True)
        for name in ("tokenizer_config.json", "processor_config.json"):
            _without_template(path / name)
        (path / "chat_template.jinja").write_text(jinja, encoding="utf-8")
        write_generation(reader, path)
    reader.config.save_pretrained(path)


def _without_template(file: Path) -> None:
    if not file.is_file():
        return
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if settings.pop("chat_template", None) is not None:
        write_json(file, settings)


def check_same_prompts(mine: Reader, theirs: Reader) -> None:
    """Raise where a directory that was written is read otherwise than what it was made from.

    Such a directory would answer badly without a word.

    Raises:
        CheckpointError: prompts or stops differ.
    """
    same = (
        mine.tokenizer.encode(PROBE) == theirs.tokenizer.encode(PROBE)
        and mine.special.stops == theirs.special.stops
        and spelt_stops(mine) == spelt_stops(theirs)
    )
    if not same:
        raise CheckpointError(
            f"The prompts of {mine.path} cannot be written as it reads them for other programs; "
            "run it with llavakit, which reads it as it is."
        )
