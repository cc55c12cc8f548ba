"""``llavakit models``: what has a short name, and what it needs."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llavakit.model.catalog import CATALOG, PLANNED_TOKENS, CatalogEntry

TYPICAL_PICTURES = {"photograph": (1024, 768), "screenshot": (1920, 1080), "A4 page": (1240, 1754)}
"""Widths and heights for which image tokens are told."""


def models(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of the table.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the long table of docs/models.md.")
    ] = False,
) -> None:
    """List the models that have a short name, with the memory that they need.

    Memory is that of the weights in 16, 8 or 4 bit and of one conversation of 4,096 tokens.
    Any other LLaVA checkpoint works by its directory or hub id.
    """
    if json_output:
        print(json.dumps([_as_dict(entry) for entry in CATALOG], indent=2))
        return
    if markdown:
        print(markdown_table())
        return
    table = Table(caption=f"Memory: weights and one conversation of {PLANNED_TOKENS:,} tokens.")
    table.add_column("name", no_wrap=True)
    for heading in ("parameters", "16 bit", "8 bit", "4 bit", "context"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("original", no_wrap=True)
    for entry in CATALOG:
        table.add_row(
            entry.name,
            _scaled(entry.parameters, "", "M", "B"),
            *_memory(entry),
            f"{entry.context_length:,}",
            entry.original_id or "bundled",
        )
    # Piped, nobody knows a width: lines are better long than cut.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def markdown_table() -> str:
    """All that is known of every model, as a table in Markdown."""
    sizes = [f"{name} {w}x{h}" for name, (w, h) in TYPICAL_PICTURES.items()]
    headings = ["name", "parameters", "template", "pictures", "context"]
    headings += ["16 bit", "8 bit", "4 bit", *sizes]
    rows = [headings, ["---"] * 3 + ["---"] + ["---:"] * (len(headings) - 4)]
    for entry in CATALOG:
        rows.append(
            [
                f"`{entry.name}`",
                _scaled(entry.parameters, "", "M", "B"),
                f"`{entry.template}`",
                entry.preprocessing,
                f"{entry.context_length:,}",
                *_memory(entry),
                *(f"{count:,}" for count in _image_tokens(entry).values()),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _image_tokens(entry: CatalogEntry) -> dict[str, int]:
    return {name: entry.layout.tokens(size) for name, size in TYPICAL_PICTURES.items()}


def _memory(entry: CatalogEntry) -> list[str]:
    return [_scaled(entry.memory(bits), " ", "MB", "GB") for bits in (16, 8, 4)]


def _as_dict(entry: CatalogEntry) -> dict[str, object]:
    known = {field.name: getattr(entry, field.name) for field in fields(entry)}
    del known["layout"]
    memory = {f"{bits}bit": entry.memory(bits) for bits in (16, 8, 4)}
    return {**known, "memory_bytes": memory, "image_tokens": _image_tokens(entry)}


def _scaled(value: float, space: str, million: str, billion: str) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.1f}{space}{billion}"
    return f"{value / 1e6:.1f}{space}{million}"
