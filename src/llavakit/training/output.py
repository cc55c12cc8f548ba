"""What a run of training leaves: a directory that ``llavakit.load`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.model.adapter import TRAINING
from llavakit.model.description import write_json
from llavakit.model.export import describe
from llavakit.model.original.directories import PROJECTORS
from llavakit.model.retrieval import write_settings
from llavakit.training.config import TrainConfig
from llavakit.training.start import Start

if TYPE_CHECKING:
    from torch import Tensor

_PROJECTOR = "model.multi_modal_projector."
_ORIGINAL = {
    "linear_1": "model.mm_projector.0",
    "linear_2": "model.mm_projector.2",
}


def describe_output(start: Start, config: TrainConfig) -> None:
    """Write all but the weights, before anything is trained: what cannot be written fails now.

    Raises:
        CheckpointError: the checkpoint cannot be written in HF format.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / TRAINING, config.as_dict())
    if config.stage in ("lora", "qlora", "retrieve"):
        return
    if start.projector_of is not None:
        write_json(out / "config.json", start.projector_of)
    elif config.stage == "align":
        # Captions taught it no conversation: the checkpoint keeps the template that it had.
        from llavakit.model.loader import load_reader

        describe(load_reader(start.reader.path, name=start.base), out)
    else:
        describe(start.reader, out)


def write_weights(
    start: Start, config: TrainConfig, model: Any, state: dict[str, Tensor], *, mixed: bool
) -> None:
    """Write the weights; the directory is whole then.

    Args:
        start: what was trained.
        config: the settings.
        model: the trained model, as :func:`~llavakit.training.trainable.prepare` gave it.
        state: all its weights.
        mixed: whether it computed in bfloat16; whole models are written so.
    """
    import torch
    from safetensors.torch import save_file

    out = Path(config.out)
    if config.stage in ("lora", "qlora", "retrieve"):
        model.save_pretrained(out, state_dict=state, save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a card
        if config.stage == "retrieve":
            write_settings(out, {"dimensions": config.dimensions, "base_model": start.base})
        return
    if start.projector_of is not None:
        named = {
            f"{_ORIGINAL[layer]}.{kind}": state[f"{_PROJECTOR}{layer}.{kind}"].contiguous()
            for layer in _ORIGINAL
            for kind in ("weight", "bias")
        }
        save_file(named, out / PROJECTORS[0], metadata={"format": "pt"})
        return
    kind = torch.bfloat16 if mixed else torch.float32
    model.config.dtype = kind
    model.save_pretrained(out, state_dict={name: one.to(kind) for name, one in state.items()})
