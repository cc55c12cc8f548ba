"""What an export of an original checkpoint holds beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from llavakit.errors import CheckpointError
from llavakit.model.description import write_generation, write_json
from llavakit.model.families import CLIP, FAST_VLM
from llavakit.model.jinja import chat_template
from llavakit.model.original.directories import CheckpointDirectories
from llavakit.model.reader import Reader
from llavakit.prompts.templates import template


class Described(Protocol):
    """What is asked of an original checkpoint (see :mod:`llavakit.model.original.checkpoint`)."""

    parts: CheckpointDirectories
    conv_mode: str
    tokenizer: Any
    config: Any

    @property
    def plain(self) -> bool:
        """Whether transformers has a class for it."""

    @property
    def processor(self) -> Any:
        """Of its images."""


def check_plain(checkpoint: Described) -> None:
    """Raise a ``CheckpointError`` for models that transformers has no class for."""
    if not checkpoint.plain:
        said = checkpoint.parts.config
        raise CheckpointError(
            f"{said.file} asks for {said.projector} and {said.merge}, and transformers has no "
            "class for such a model; run it with llavakit, which reads it as it is."
        )


def describe_original(checkpoint: Described, reader: Reader, path: Path) -> None:
    """Write all files of an original checkpoint in HF format but its weights.

    Args:
        checkpoint: what is written.
        reader: of the checkpoint.
        path: the directory to fill.

    Raises:
        CheckpointError: transformers has no class for it, or its template cannot be written.
    """
    check_plain(checkpoint)
    image_text = checkpoint.parts.config.image_text
    jinja = chat_template(
        template(checkpoint.conv_mode), image_text, spaced=checkpoint.tokenizer.spaced
    )
    config = checkpoint.config
    name = "LlavaNext" if config.model_type == "llava_next" else "Llava"
    kind = "FastVlm" if config.model_type == FAST_VLM else name
    config.architectures = [f"{kind}ForConditionalGeneration"]
    config.save_pretrained(path)
    tokenizer = _plain_tokenizer(checkpoint.tokenizer.hf, jinja)
    write_generation(reader, path)
    _write_processor(checkpoint, tokenizer, path, jinja, f"{name}Processor")


def _plain_tokenizer(hf: Any, jinja: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=hf.backend_tokenizer,
        **{name: getattr(hf, name) for name in names if getattr(hf, name) is not None},
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        chat_template=jinja,
    )


def _write_processor(
    checkpoint: Described, tokenizer: Any, path: Path, jinja: str, name: str
) -> None:
    import transformers

    config = checkpoint.config
    getattr(transformers, name)(
        image_processor=checkpoint.processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(config.vision_config.model_type == CLIP),  # its CLS
        image_token="<image>",
        chat_template=jinja,
    ).save_pretrained(path)
    # Older programs look for the images' settings in a file of their own, and every program
    # knows these two class names.
    settings = checkpoint.processor.to_dict()
    settings["image_processor_type"] = name.replace("Processor", "ImageProcessor")
    settings["processor_class"] = name
    write_json(path / "preprocessor_config.json", settings)
    file = path / "tokenizer_config.json"
    write_json(
        file,
        {**json.loads(file.read_text("utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"},
    )
