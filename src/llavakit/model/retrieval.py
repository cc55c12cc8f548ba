"""Retrieval adapters: a LoRA on the language model and a projection of its last hidden states.

A directory in PEFT's format: ``adapter_config.json``, ``adapter_model.safetensors`` with the LoRA
and, as a module that was trained whole, ``retrieval_projection`` ([dimensions, hidden], no bias),
and ``retrieval.json``. ``llavakit train retrieve`` writes it. Image tokens and words become vectors
as in ColPali (https://arxiv.org/abs/2407.01449).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.errors import CheckpointError, ModelNotFoundError
from llavakit.model.adapter import OLD_NAMES
from llavakit.model.identity import identity_of
from llavakit.model.json_files import read_json
from llavakit.model.layer_decoder import Attend, Decoder
from llavakit.model.llava import Llava
from llavakit.model.low_rank import LowRankPair, adapted
from llavakit.model.original.directories import ADAPTER_CONFIG, ADAPTERS, first_of
from llavakit.model.original.lora import LAYER, check_kind, scale_of
from llavakit.model.original.tensors import open_file

SETTINGS = "retrieval.json"
"""Beside the weights: how they were trained, and that they are a retrieval adapter."""

PROJECTION = "retrieval_projection"
"""Name of the projection among the weights, and of the module that is trained."""

FOLDER = "retrieval"
"""Folder of a checkpoint that holds the adapter for it, if one came with it."""

_LANGUAGE_MODEL = ("model.language_model.", "language_model.model.")


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalAdapter:
    """An adapter as its files have it.

    Attributes:
        path: its directory.
        pairs: LoRA of the language model's layers.
        projection: [dimensions, hidden].
        fingerprint: which adapter it is (see :mod:`llavakit.model.identity`).
        settings: what ``retrieval.json`` holds.
    """

    path: Path
    pairs: dict[str, LowRankPair]
    projection: Tensor
    fingerprint: str
    settings: dict[str, Any]

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return len(self.projection)


def is_retrieval_adapter(path: Path) -> bool:
    """Whether a directory holds a retrieval adapter."""
    return (path / SETTINGS).is_file()


def read_retrieval_adapter(path: Path) -> RetrievalAdapter:
    """Read an adapter from its directory.

    Raises:
        ModelNotFoundError: there is no such directory.
        CheckpointError: it is none, lacks something, or has weights that llavakit does not know.
    """
    if not path.is_dir():
        raise ModelNotFoundError(
            f"There is no retrieval adapter at {path}; train one with `llavakit train retrieve`."
        )
    if not is_retrieval_adapter(path):
        raise CheckpointError(
            f"{path} has no {SETTINGS} and is no retrieval adapter; `llavakit train retrieve` "
            "writes them."
        )
    settings = read_json(path / ADAPTER_CONFIG)
    check_kind(settings, path)
    file = first_of(path, ADAPTERS)
    if file is None:
        raise CheckpointError(f"{path} has no {' or '.join(ADAPTERS)}; copy it too.")
    halves: dict[str, dict[str, Tensor]] = {}
    projection: Tensor | None = None
    for key, stored in open_file(file).items():
        name = key.removeprefix("base_model.model.")
        found = LAYER.fullmatch(name)
        plain = name.replace(".modules_to_save", "").replace(".default", "")
        if found is not None:
            halves.setdefault(_layer(found["layer"], path), {})[found["part"]] = stored.read()
        elif plain == f"{PROJECTION}.weight":
            projection = stored.read().float()
        else:
            raise CheckpointError(
                f"{file} holds {key}; a retrieval adapter is a LoRA of the language model and "
                f"{PROJECTION}, and nothing else."
            )
    if projection is None or projection.dim() != 2:
        raise CheckpointError(f"{file} lacks {PROJECTION}.weight; copy it again.")
    pairs = {}
    for layer, parts in halves.items():
        if len(parts) < 2:
            raise CheckpointError(f"{file} lacks one half of {layer}; copy it again.")
        down, up = parts["A"].float(), parts["B"].float()
        pairs[layer] = LowRankPair(down, up * scale_of(settings, layer, rank=len(down)))
    every = [projection, *(half for pair in pairs.values() for half in (pair.down, pair.up))]
    if not all(bool(torch.isfinite(one).all()) for one in every):
        raise CheckpointError(f"{file} holds numbers that are not finite; train it again.")
    return RetrievalAdapter(
        path, pairs, projection, identity_of([path]), read_json(path / SETTINGS)
    )


def _layer(name: str, path: Path) -> str:
    """The layer's name within the language model."""
    for pattern, new in ((p, to) for p, to in OLD_NAMES):
        name = pattern.sub(new, name)
    for prefix in _LANGUAGE_MODEL:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    raise CheckpointError(
        f"The adapter in {path} changes {name}, which is outside of the language model: features "
        "of images are shared with answers, so only the language model can be adapted."
    )


class RetrievalModel:
    """A model's decoder with an adapter in it, and the projection behind it.

    Args:
        model: the loaded model, whose weights are shared.
        adapter: fits it.

    Raises:
        CheckpointError: the adapter does not fit the model.
    """

    def __init__(self, model: Llava, adapter: RetrievalAdapter) -> None:
        self.dimensions = adapter.dimensions
        self.fingerprint = adapter.fingerprint
        hidden = int(model.config.text_config.hidden_size)
        if adapter.projection.shape[1] != hidden:
            raise CheckpointError(
                f"The retrieval adapter in {adapter.path} projects {adapter.projection.shape[1]} "
                f"numbers, and the model's hidden states have {hidden}; name the model that it "
                "was trained on."
            )
        self._projection = adapter.projection.to(model.device)
        self._decoder: Decoder = adapted(model.decoder, model.language_model, adapter.pairs)

    def decode(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run the decoder with the adapter, as ``Llava.decode`` does without."""
        return self._decoder(embeddings, positions, attend)

    def project(self, hidden: Tensor) -> Tensor:
        """Vectors of length 1 in fp32: [N, hidden] -> [N, dimensions]."""
        return F.normalize(F.linear(hidden.to(self._projection).float(), self._projection), dim=-1)


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write ``retrieval.json``."""
    (path / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
