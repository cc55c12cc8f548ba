"""Checkpoints in HF format: transformers reads them itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model.chat_template import prompt_tokenizer
from llavakit.model.description import copy_description
from llavakit.model.families import PIXTRAL
from llavakit.model.identity import identity_of
from llavakit.model.language_models import context_limit, proven
from llavakit.model.layout import ImageLayout, layout_of
from llavakit.model.preprocess import ImagePreprocessor, image_processor, rows_layout
from llavakit.model.reader import Reader, built
from llavakit.model.tokens import special_tokens
from llavakit.model.videos import video_preprocessor


def read_hf(path: Path, *, conv_mode: str | None, name: str) -> Reader:
    """A checkpoint directory in HF format; arguments and errors are those of ``load_reader``."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        processor = image_processor(path, config)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a LLaVA checkpoint: {error}") from error
    ends: tuple[int, int] | None = None
    if config.vision_config.model_type == PIXTRAL:
        rows = rows_layout(path, processor, config, tokenizer)
        layout: ImageLayout = rows
        ends = (rows.row_end, rows.image_end)
    else:
        layout = layout_of(config)
    if not proven(config.text_config):
        from llavakit.model.self_check import check_language_model

        check_language_model(path, config.text_config)
    generation = None
    if (path / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(path)
    revision = identity_of([path])
    context_length = context_limit(config.text_config)
    videos = video_preprocessor(path, config, context_length, revision)
    prompts = prompt_tokenizer(
        tokenizer,
        int(config.image_token_id),
        path=path,
        conv_mode=conv_mode,
        name=name,
        stop_strings=tuple(getattr(generation, "stop_strings", None) or ()),
        video_id=None if videos is None else int(config.video_token_id),
    )
    return Reader(
        path=path,
        config=config,
        tokenizer=prompts,
        preprocess=ImagePreprocessor(processor, revision, ends),
        layout=layout,
        special=special_tokens(tokenizer, config, generation, prompts.stop_strings),
        context_length=context_length,
        revision=revision,
        build=lambda options: _build(path, config, options),
        describe=lambda reader, out: copy_description(path, reader, out),
        videos=videos,
    )


def _build(path: Path, config: Any, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForImageTextToText

    from llavakit.model.packed_checkpoint import build_packed, stored_quantization

    if stored_quantization(config) is not None:
        return build_packed(path, config, options)
    return built(
        path,
        lambda: AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, by their names
            local_files_only=True,
            trust_remote_code=False,
            **options,
        ),
    )
