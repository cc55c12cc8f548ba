"""Which parameters a stage trains, and in which precision."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError, MissingDependencyError, ParameterError
from llavakit.model.retrieval import PROJECTION
from llavakit.training.config import Stage, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

PROJECTOR = "multi_modal_projector"
_LANGUAGE = "model.language_model."
_TRAINED_WHOLE = (_LANGUAGE, "lm_head.", f"model.{PROJECTOR}.", "model.image_newline")


def prepare(model: Any, config: TrainConfig) -> Any:
    """Freeze what the stage does not train; with adapters, put them in.

    What is trained is kept in float32, whatever the model computes in.

    Args:
        model: the HF model.
        config: with the stage.

    Returns:
        The model, wrapped by PEFT for stages with adapters.

    Raises:
        MissingDependencyError: adapters without peft.
        CheckpointError: a language model without linear layers to adapt.
    """
    model.requires_grad_(False)
    if config.stage in ("lora", "qlora", "retrieve"):
        model = _adapted(model, config)
    else:
        wanted = _TRAINED_WHOLE if config.stage == "instruct" else (f"model.{PROJECTOR}.",)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(wanted))
    for _, parameter in trained(model):
        parameter.data = parameter.data.float()
    return model


def trained(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and parameters that are trained."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def is_projector(name: str) -> bool:
    """Whether a parameter is the projector's."""
    return f"{PROJECTOR}." in name


def trained_state(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The trained weights by their names.

    Args:
        model: what is trained.
        state: all its weights, where they had to be gathered from several devices.
    """
    if state is None:
        return {name: parameter.detach() for name, parameter in trained(model)}
    return {name: state[name] for name, _ in trained(model)}


def load_trained(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put trained weights back.

    Raises:
        CheckpointError: they are not those of this model.
    """
    import torch

    mine = dict(trained(model))
    if set(mine) != set(state):
        differ = sorted(set(mine) ^ set(state))
        raise CheckpointError(
            f"The checkpoint was made with other settings: {differ[0]} is trained in only one "
            "of them; resume with the settings that it was made with."
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            if parameter.shape != state[name].shape:
                raise CheckpointError(
                    f"The checkpoint was made with other settings: {name} is of another shape; "
                    "resume with the settings that it was made with."
                )
            parameter.copy_(state[name])


def _adapted(model: Any, config: TrainConfig) -> Any:
    peft = peft_library()
    whole = PROJECTOR
    if config.stage == "retrieve":
        whole = PROJECTION
        setattr(model, PROJECTION, _projection(model, config))
    settings = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",
        target_modules=_targets(model),
        modules_to_save=[whole],
    )
    with warnings.catch_warnings():  # it asks transformers for a name that has changed
        warnings.simplefilter("ignore", FutureWarning)
        made = peft.get_peft_model(model, settings)
    named = Path(config.model)
    base = str(named.absolute()) if named.is_dir() else config.model
    made.peft_config["default"].base_model_name_or_path = base
    return made


def _projection(model: Any, config: TrainConfig) -> nn.Linear:
    """A new projection of hidden states to vectors."""
    from torch import nn

    made = nn.Linear(int(model.config.text_config.hidden_size), config.dimensions, bias=False)
    return made.to(model.device)


def _targets(model: Any) -> str:
    """A pattern of the language model's linear layers, without the head."""
    from torch import nn

    found: set[str] = set()
    for name, module in model.named_modules():
        if name.startswith(_LANGUAGE) and isinstance(module, nn.Linear):
            found.add(re.sub(r"^layers\.\d+\.", "", name.removeprefix(_LANGUAGE)))
    if not found:
        raise CheckpointError("The language model has no linear layers for adapters; use instruct.")
    ends = "|".join(re.escape(one) for one in sorted(found))
    return rf".*language_model\.layers\.\d+\.({ends})"


def peft_library() -> Any:
    """PEFT.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise MissingDependencyError(
            'Adapters need peft; install it with `pip install "llavakit[train]"`.'
        ) from error


def check_shareable(model: Any) -> None:
    """Raise where the model's attention takes no mask of its own for each token.

    Raises:
        ParameterError: it does not.
    """
    kind = getattr(model.config.text_config, "_attn_implementation", None)
    if kind != "sdpa":
        raise ParameterError(
            f"share_images needs the attention sdpa, and the model's is {kind}; leave it out."
        )


def precision(config: TrainConfig) -> tuple[bool, str]:
    """Whether computation is in bfloat16, and what frozen weights are kept in.

    Nothing but bfloat16 on a GPU that has it is faster than float32 and as stable.
    """
    import torch

    real = config.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    mixed = config.dtype == "bfloat16" or (config.dtype == "auto" and real)
    return mixed, "bfloat16" if mixed and _frozen_matters(config.stage) else "float32"


def _frozen_matters(stage: Stage) -> bool:
    # Where nearly all is trained, one type for all is what sharding over devices asks for.
    return stage != "instruct"
