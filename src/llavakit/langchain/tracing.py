"""The settings of a call in LangChain's traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.language_models.base import LangSmithParams

from llavakit.arguments import unaliased
from llavakit.langchain.chunks import PROVIDER
from llavakit.settings import ModelSettings


def traced_settings(
    model: ModelSettings,
    kind: Literal["chat", "llm"],
    stop: list[str] | None,
    arguments: Mapping[str, Any],
) -> LangSmithParams:
    """Return a model's settings with one call's arguments over them; None is "not set"."""
    given = {name: value for name, value in unaliased(arguments).items() if value is not None}
    settings = {**model.identity(), **given}
    params = LangSmithParams(
        ls_provider=PROVIDER,
        ls_model_name=settings["model"],
        ls_model_type=kind,
        ls_temperature=settings["temperature"],
        ls_max_tokens=settings["max_tokens"],
    )
    if stop := stop if stop is not None else model.stop:
        params["ls_stop"] = stop
    return params
