"""``llavakit models``: what has a short name, and what it needs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llavakit.model.catalog import CATALOG, PLANNED_TOKENS, CatalogEntry


def models(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of the table.")
    ] = False,
) -> None:
    """List the models that have a short name, with the memory that they need.

    Memory is that of the weights in 16, 8 or 4 bit and of one conversation of 4,096 tokens.
    Any other LLaVA checkpoint works by its directory or hub id.
    """
    if json_output:
        print(json.dumps([_as_dict(entry) for entry in CATALOG], indent=2))
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
            *(_scaled(entry.memory(bits), " ", "MB", "GB") for bits in (16, 8, 4)),
            f"{entry.context_length:,}",
            entry.original_id or "bundled",
        )
    # Piped, nobody knows a width: lines are better long than cut.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _as_dict(entry: CatalogEntry) -> dict[str, object]:
    memory = {f"{bits}bit": entry.memory(bits) for bits in (16, 8, 4)}
    return {**asdict(entry), "memory_bytes": memory}


def _scaled(value: float, space: str, million: str, billion: str) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.1f}{space}{billion}"
    return f"{value / 1e6:.1f}{space}{million}"
