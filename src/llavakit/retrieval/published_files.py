"""The files of a published retriever: what they say, and the model that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.engine import memory
from llavakit.engine.config import EngineConfig
from llavakit.errors import CheckpointError
from llavakit.retrieval.published_families import Family, family_of
from llavakit.retrieval.published_model import LoadedRetriever


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint's small files say.

    Attributes:
        path: its directory.
        family: the kind of retriever.
        config: its HF configuration.
        fingerprint: names configuration and weights, wherever they lie.
    """

    path: Path
    family: Family
    config: Any
    fingerprint: str


def describe(config: EngineConfig) -> Description:
    """Read what a checkpoint's small files say; its weights are not needed.

    Args:
        config: names the model and its revision.

    Raises:
        ModelNotFoundError: there is no such model.
        CheckpointError: files are missing or broken, or it is of a kind that is not known.
    """
    from transformers import AutoConfig

    from llavakit.model.identity import identity_of
    from llavakit.model.loader import settings_of
    from llavakit.model.locate import check_pointers, locate

    path = locate(config.model, config.revision)
    check_pointers(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds an adapter and no whole model; name the retriever in transformers' "
            "format (names that end in -hf)."
        )
    family = family_of(path, settings_of(path))
    try:
        read = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever a wrong file of settings leads to
        raise CheckpointError(f"{path} cannot be read as {family.title}: {error}") from error
    return Description(path, family, read, identity_of([path]))


def load(config: EngineConfig, described: Description) -> LoadedRetriever:
    """Load a model onto the device and in the type that :func:`llavakit.load` would choose.

    Args:
        config: names device and type.
        described: from :func:`describe`.

    Raises:
        CheckpointError: weights or the processor's files are missing or do not fit.
        ParameterError: there is no such device.
    """
    import transformers

    from llavakit.model.loader import device_for, type_on
    from llavakit.model.reader import built, without_bar

    path, family = described.path, described.family
    place = device_for(config.device)
    text = described.config.vlm_config.get_text_config()
    kind = type_on(place, config.dtype, text, memory.available())
    if hasattr(text, "use_cache"):
        text.use_cache = False  # keys and values of a single pass are of no use
    try:
        # As llavakit.model.preprocess: results must not change where torchvision is installed.
        processor = getattr(transformers, f"{family.class_name}Processor").from_pretrained(
            path, backend="pil", local_files_only=True
        )
    except Exception as error:  # whatever a missing or wrong file leads to
        raise CheckpointError(
            f"The processor of {path} cannot be loaded: {error}; copy its processor, tokenizer "
            "and preprocessor files beside the weights."
        ) from error
    with without_bar():
        model = built(
            path,
            lambda: getattr(transformers, family.architecture).from_pretrained(
                path,
                config=described.config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, by their names
                local_files_only=True,
                dtype=kind,
            ),
        )
    return LoadedRetriever(path, family, described.config, processor, model.to(place).eval())
