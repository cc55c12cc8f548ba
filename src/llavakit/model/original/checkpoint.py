"""An original checkpoint put together: what reads prompts, and the weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model.json_files import read_json
from llavakit.model.language_models import context_limit
from llavakit.model.layout import ImageLayout, layout_of
from llavakit.model.original import fastvit
from llavakit.model.original.anyres import AnyresFeatures
from llavakit.model.original.config import OriginalConfig, projector_depth
from llavakit.model.original.directories import CheckpointDirectories, find_tower, parts_of
from llavakit.model.original.tensors import Tensors
from llavakit.model.original.tokenizer import ChunkedPrompts, read_tokenizer
from llavakit.model.original.weights import hf_tensors, on_disk
from llavakit.model.preprocess import ImagePreprocessor
from llavakit.model.reader import Reader, built, revision_of
from llavakit.model.tokens import Special, special_tokens
from llavakit.prompts.templates import auto_template, named_template, template

log = logging.getLogger(__name__)

PREPROCESSOR = "preprocessor_config.json"


def read_original(
    path: Path, *, conv_mode: str | None, name: str, model_base: Path | None
) -> Reader:
    """A checkpoint of the original's; arguments and errors are those of ``load_reader``."""
    return OriginalCheckpoint(path, name=name, conv_mode=conv_mode, base=model_base).reader()


class OriginalCheckpoint:
    """A checkpoint of the original's, in HF's terms; nothing large is read before it is asked for.

    Args:
        path: its directory.
        name: what it is called, which implies the conversation template.
        conv_mode: that template by its name; None follows the original's rule.
        base: directory of the base model, if it is a LoRA or only a projector.

    Attributes:
        parts: the directories that it is made of.
        tokenizer: its tokenizer.
        config: the HF configuration.
        conv_mode: the conversation template's name.
    """

    def __init__(self, path: Path, *, name: str, conv_mode: str | None, base: Path | None) -> None:
        self.parts: CheckpointDirectories = parts_of(path, base)
        said = self.parts.config
        if said.fastvit_side is None:
            self.conv_mode = _template_name(_telling_name(name, base), conv_mode)
        else:
            self.conv_mode = _chosen(name, fastvit.TEMPLATE, conv_mode)
        self.tokenizer = read_tokenizer(
            self.parts.language, said.added_tokens, fast=said.text["model_type"] == "mistral"
        )
        self._tower = find_tower(self.parts)
        vision = None if said.fastvit_side is not None else _vision_config(self._tower)
        self.config = said.to_hf(vision, len(self.tokenizer.hf), self.tokenizer.image_id)
        self._features: AnyresFeatures | None = None
        if said.anyres and vision is not None:
            side = vision.image_size // vision.patch_size
            self._features = AnyresFeatures(
                said.grids, vision.image_size, side, said.merge, int(said.keeps_cls)
            )

    def reader(self) -> Reader:
        """What reads prompts, and builds the model."""
        revision = revision_of((*self.parts.directories, self._tower))
        prompts = ChunkedPrompts(
            self.tokenizer, template(self.conv_mode), self.parts.config.image_text
        )
        return Reader(
            path=self.parts.path,
            config=self.config,
            tokenizer=prompts,
            preprocess=ImagePreprocessor(self.processor, revision),
            layout=self._layout,
            special=self._special(prompts.stop_strings),
            context_length=context_limit(self.config.text_config),
            revision=revision,
            build=self.build,
            describe=self._describe,
        )

    def _describe(self, reader: Reader, path: Path) -> None:
        from llavakit.model.original.description import describe_original

        describe_original(self, reader, path)

    def _special(self, stop_strings: tuple[str, ...]) -> Special:
        hf = self.tokenizer.hf
        special = special_tokens(hf, self.config, self.generation, stop_strings)
        # Text is decoded without any token that is marked as special, named or not.
        marked = hf.backend_tokenizer.get_added_tokens_decoder().items()
        ends = {number for number, one in marked if one.special and one.content in stop_strings}
        return replace(special, stops=special.stops | ends)

    @property
    def _layout(self) -> ImageLayout:
        return self._features if self._features is not None else layout_of(self.config)

    @cached_property
    def processor(self) -> Any:
        """The HF image processor that gives the pixels of the original."""
        return original_processor(self._tower, self.parts.config)

    @cached_property
    def generation(self) -> SimpleNamespace:
        """What ends an answer, by ``generation_config.json``."""
        for path in self.parts.directories:
            file = path / "generation_config.json"
            if file.is_file():
                return SimpleNamespace(eos_token_id=read_json(file).get("eos_token_id"))
        return SimpleNamespace(eos_token_id=None)

    @property
    def plain(self) -> bool:
        """Whether transformers' own classes compute the same (but for rounding of sizes)."""
        said = self.parts.config
        merged = not said.anyres or said.merge == "spatial_unpad"
        return merged and (projector_depth(said.projector) or 0) <= 2

    def tensors(self) -> Tensors:
        """The weights, under HF's names on disk; each is read when it is indexed."""
        import torch

        with torch.device("meta"):
            empty = self._model_class(self.config)
        shapes = {on_disk(name): tuple(one.shape) for name, one in empty.state_dict().items()}
        return hf_tensors(self.parts, self._tower, shapes, self.tokenizer.known)

    def build(self, options: dict[str, Any]) -> Any:
        """The HF model, with options of ``from_pretrained``.

        Raises:
            CheckpointError: weights are missing, damaged, or do not fit.
        """
        tensors = self.tensors()
        return built(
            self.parts.path,
            lambda: self._model_class.from_pretrained(
                None,
                config=self.config,
                state_dict=tensors,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, by their names
                **options,
            ),
        )

    @property
    def _model_class(self) -> Any:
        from llavakit.model.original.modeling import model_class

        return model_class(self.parts.config, self._features)


def model_name(name: str) -> str:
    """What the original calls a model by: the end of its path, and more for a trainer's steps.

    ``llava-lora/checkpoint-500`` is ``llava-lora_checkpoint-500``; a directory of the hub's
    cache (``models--owner--name/snapshots/...``) goes by the name on the hub.
    """
    parts = PurePath(name).parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1] if parts else name


def _telling_name(name: str, base: Path | None) -> str:
    """Return the name that implies the template: a LoRA's own, or else its base's."""
    if base is None or named_template(model_name(name)) is not None:
        return name
    return str(base) if named_template(model_name(str(base))) is not None else name


def _template_name(name: str, conv_mode: str | None) -> str:
    called = model_name(name)
    implied = auto_template(called)
    if conv_mode is None:
        if named_template(called) is None:
            log.warning(
                "The name %s implies no conversation template; the original takes %r for such "
                "names. Name the one that the model was trained with by conv_mode=",
                *(called, implied),
            )
        return implied
    return _chosen(name, implied, conv_mode)


def _chosen(name: str, own: str, conv_mode: str | None) -> str:
    """Return the template that is asked for, with a warning where it is not the model's own."""
    if conv_mode is None:
        return own
    if template(conv_mode) != template(own):
        log.warning(
            "The name %s implies conv_mode=%r, but conv_mode=%r is taken; answers are poor if "
            "the model was not trained with it",
            *(model_name(name), own, conv_mode),
        )
    return conv_mode


def _vision_config(tower: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(tower, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{tower} cannot be read as a vision tower: {error}") from error
    if config.model_type == "clip":
        config = config.vision_config
    if config.model_type != "clip_vision_model":
        raise CheckpointError(
            f"{tower / 'config.json'} describes a vision tower of type {config.model_type!r}; of "
            "models in the original format only those with CLIP are supported."
        )
    return config


def original_processor(tower: Path, said: OriginalConfig) -> Any:
    """The HF image processor that gives the pixels of the original.

    Args:
        tower: directory of the vision tower, with its ``preprocessor_config.json``.
        said: what the checkpoint's configuration says.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    if said.fastvit_side is not None:
        return fastvit.processor(said.fastvit_side, pads=said.pads)
    file = tower / PREPROCESSOR
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing, which declares how images are prepared; copy it from where the "
            "vision tower came from."
        )
    settings = _clip_settings(read_json(file))
    if not said.anyres:
        return LlavaImageProcessorPil(**settings, do_pad=said.pads)
    return LlavaNextImageProcessorPil(
        **settings, do_pad=True, image_grid_pinpoints=said.turned_grids
    )


def _clip_settings(written: dict[str, Any]) -> dict[str, Any]:
    """Settings of a ``CLIPImageProcessor``; files of 2022 give sizes as plain numbers."""
    keys = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    more = ("resample", "rescale_factor", "image_mean", "image_std")
    settings = {key: written[key] for key in (*keys, *more) if written.get(key) is not None}
    size, crop = written.get("size", 224), written.get("crop_size", 224)
    settings["size"] = {"shortest_edge": size} if isinstance(size, int) else size
    settings["crop_size"] = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    return settings
