"""The options that say what embeds pages and questions, for the commands that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from llavakit.cli.model import ModelArguments

if TYPE_CHECKING:
    from llavakit.embeddings import Embedder

Adapter: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="A retrieval adapter for the model (llavakit train retrieve).",
        show_default="the one that came with the model",
        rich_help_panel="Model",
    ),
]


def open_embedder(chosen: ModelArguments, adapter: str | None) -> Embedder:
    """Return what embeds; its weights are those of every backend of the same model."""
    from llavakit.retrieval.embedder import load_embedder

    settings: dict[str, Any] = {
        name: value for name, value in chosen.of_checkpoint.items() if value
    }
    return load_embedder(chosen.model, adapter=adapter, device=chosen.device, **settings)
