"""The arguments that say which model answers, declared once for all commands that take them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_type_hints

import llavakit
from llavakit.backend import Backend
from llavakit.cli import options


@dataclass(frozen=True, slots=True)
class ModelArguments:
    """A model as the command line names it; a command takes it by :func:`takes_model`.

    Attributes:
        model: a name, a hub id or a directory.
        model_base: the base of a LoRA or of a projector.
        conv_mode: a conversation template by its name.
        load_4bit, load_8bit: whether weights are quantised.
        device: where they are computed with.
        base_url: a server that runs the model.
    """

    model: options.Model = "demo"
    model_base: options.ModelBase = None
    conv_mode: options.ConvMode = None
    load_4bit: options.Load4Bit = False
    load_8bit: options.Load8Bit = False
    device: options.Device = "auto"
    base_url: options.BaseUrl = None

    @property
    def of_checkpoint(self) -> dict[str, Any]:
        """Keywords of :func:`llavakit.load` that say how a checkpoint is read."""
        return {
            "model_base": self.model_base,
            "conv_mode": self.conv_mode,
            "load_in_4bit": self.load_4bit,
            "load_in_8bit": self.load_8bit,
        }

    @property
    def keywords(self) -> dict[str, Any]:
        """All keywords of :func:`llavakit.load`; the model's name is its first argument."""
        return {**self.of_checkpoint, "device": self.device, "base_url": self.base_url}

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of the named arguments that are not as they are by default."""
        defaults = ModelArguments()
        return {
            name: value
            for name, value in asdict(self).items()
            if name in names and value != getattr(defaults, name)
        }

    def load(self, **more: Any) -> Backend:
        """Return the backend; ``more`` are further keywords of :func:`llavakit.load`."""
        return llavakit.load(self.model, **self.keywords, **more)


def takes_model(
    *without: str, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator for a command with a parameter of type :class:`ModelArguments`.

    Typer sees the options one by one, in the parameter's place; the command gets the object.

    Args:
        without: fields that the command has no option for.
        defaults: other defaults than the fields' own; ``...`` makes an option required.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        (place,) = (name for name, hint in hints.items() if hint is ModelArguments)
        shown = _parameters(without, defaults)

        @functools.wraps(command)
        def expanded(*args: Any, **kwargs: Any) -> None:
            taken = {one.name: kwargs.pop(one.name) for one in shown if one.name in kwargs}
            command(*args, **kwargs, **{place: ModelArguments(**taken)})

        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for one in signature.parameters.values():
            own = one.replace(annotation=hints[one.name])
            parameters += shown if one.name == place else [own]
        expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        expanded.__annotations__ = {one.name: one.annotation for one in parameters}
        return expanded

    return decorate


def _parameters(without: tuple[str, ...], defaults: dict[str, Any]) -> list[inspect.Parameter]:
    """The fields as parameters that Typer understands."""
    hints = get_type_hints(ModelArguments, include_extras=True)
    shown = []
    for field in fields(ModelArguments):
        if field.name in without:
            continue
        default = defaults.get(field.name, field.default)
        assert default is not MISSING
        shown.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default,
                annotation=hints[field.name],
            )
        )
    return shown
