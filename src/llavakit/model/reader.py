"""What the files of a checkpoint hold, in HF's terms, whatever format they have.

There are two readers of files: :mod:`llavakit.model.hf` for directories in HF format and
:mod:`llavakit.model.original` for those of the original LLaVA. Code that runs a model sees only
what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.model.layout import ImageLayout
from llavakit.model.preprocess import ImagePreprocessor
from llavakit.model.tokens import PromptTokenizer, Special
from llavakit.model.videos import VideoPreprocessor

Build = Callable[[dict[str, Any]], Any]
"""Options of ``from_pretrained`` (dtype, device_map, quantization_config) -> the HF model."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What turns a conversation into the model's input; holds no weights.

    Attributes:
        path: the checkpoint's directory.
        config: the HF configuration.
        tokenizer: renders and tokenises turns.
        preprocess: makes the vision tower's input.
        layout: counts an image's tokens.
        special: ids with a meaning of their own.
        context_length: tokens of prompt and answer together.
        revision: which model it is (see :mod:`llavakit.model.identity`).
        build: makes the HF model of the weights; raises ``CheckpointError``.
        describe: writes all files of the checkpoint in HF format but its weights, for this
            reader or one that was made from it.
        videos: makes the vision tower's input of videos; None where the model takes none.
    """

    path: Path
    config: Any
    tokenizer: PromptTokenizer
    preprocess: ImagePreprocessor
    layout: ImageLayout
    special: Special
    context_length: int
    revision: str
    build: Build
    describe: Callable[[Reader, Path], None]
    videos: VideoPreprocessor | None = None


def built(
    path: Path, load: Callable[[], tuple[Any, Mapping[str, Any]]], exact: bool = False
) -> Any:
    """Build the HF model that ``load`` gives, with every weight.

    Args:
        path: the checkpoint's directory, for messages.
        load: a ``from_pretrained`` with ``output_loading_info``.
        exact: whether tensors that the model has no place for are an error, too.

    Raises:
        CheckpointError: weights are missing, damaged, or do not fit the configuration.
    """
    try:
        model, report = load()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The weights in {path} cannot be loaded: {error}") from error
    _check_shapes(path, report)
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors, among them {missing[0]}; "
            "its files are incomplete, download or copy them again."
        )
    if exact:
        _check_exact(path, report)
    _check_quantised(path, model)
    return model


def _check_shapes(path: Path, report: Mapping[str, Any]) -> None:
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        more = f", and {len(wrong) - 1} others differ too" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path} holds {name} as {list(found)}, and its config.json asks for {list(wanted)}"
            f"{more}; its files are not those of one checkpoint."
        )


def _check_quantised(path: Path, model: Any) -> None:
    """Compare shapes again: before 5.23, transformers reported none of a quantised model's."""
    if getattr(model, "hf_quantizer", None) is None:
        return
    import torch

    with torch.device("meta"):
        asked = dict(type(model)(model.config).named_parameters())
    found = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
    wrong = [
        (name, one.shape, asked[name].shape)
        for name, one in found.items()
        if one.numel() and name in asked and one.shape != asked[name].shape
    ]
    _check_shapes(path, {"mismatched_keys": wrong})


def _check_exact(path: Path, report: Mapping[str, Any]) -> None:
    left = sorted(report["unexpected_keys"])
    if left:
        raise CheckpointError(
            f"{path} holds {len(left)} tensors that its model has no place for, among them "
            f"{left[0]}; its files are not those of one checkpoint."
        )


@contextmanager
def without_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar of progress."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
