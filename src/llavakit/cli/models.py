"""``llavakit models``: what has a short name, and what it needs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llavakit.engine import memory
from llavakit.model.catalog import CATALOG, PLANNED_TOKENS, RUNTIME, Bits, CatalogEntry

TYPICAL_PICTURES = {"photograph": (1024, 768), "screenshot": (1920, 1080), "A4 page": (1240, 1754)}
"""Widths and heights in pixels for which the number of image tokens is listed."""

ALL_BITS: tuple[Bits, ...] = (16, 8, 4)


def models(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of the table.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the long table of docs/models.md.")
    ] = False,
) -> None:
    """List the models that have a short name, with the memory that they need.

    Memory is that of the weights in 16, 8 or 4 bit and of one conversation of 4,096 tokens on a
    GPU; in main memory it is somewhat more (see --json). "Fits here" is what this machine has
    room for now. Any other LLaVA checkpoint works by its directory or hub id.
    """
    if markdown and not json_output:
        print(markdown_table())
        return
    machine = Machine.this()
    if json_output:
        print(json.dumps([_as_dict(entry, machine) for entry in CATALOG], indent=2))
        return
    table = Table(caption=_caption(machine), caption_justify="left")
    table.add_column("name", no_wrap=True)
    for heading in ("parameters", "16 bit", "8 bit", "4 bit", "context"):
        table.add_column(heading, justify="right", no_wrap=True)
    if machine.gpu is not None:
        table.add_column("fits GPU", no_wrap=True)
    table.add_column("fits RAM" if machine.gpu is not None else "fits here", no_wrap=True)
    table.add_column("original", overflow="fold")
    for entry in CATALOG:
        table.add_row(
            entry.name,
            _scaled(entry.parameters, "", "M", "B"),
            *_memory(entry),
            f"{entry.context_length:,}",
            *(_words(fits) for fits in machine.fits(entry).values() if fits is not None),
            entry.original_id or entry.hf_id or "bundled",
        )
    # The width of a pipe is unknown: long lines are better than cut ones.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is free on this machine now, in bytes.

    Attributes:
        ram: of main memory, within the limit of a container.
        whole: main memory in all; None if the system does not say it.
        gpu: of the GPU that has most; None without one.
    """

    ram: int
    whole: int | None
    gpu: int | None

    @staticmethod
    def this() -> Machine:
        """As it is now."""
        return Machine(memory.available(), memory.total(), max(memory.gpus(), default=None))

    def fits(self, entry: CatalogEntry) -> dict[str, dict[Bits, bool] | None]:
        """For each kind of memory and each number of bits; None where there is no such memory."""
        gpu = self.gpu
        return {
            "gpu": None if gpu is None else {bits: entry.fits(bits, gpu=gpu) for bits in ALL_BITS},
            "ram": {bits: entry.fits(bits, ram=self.ram) for bits in ALL_BITS},
        }


def _words(fits: dict[Bits, bool]) -> str:
    good = [str(bits) for bits in ALL_BITS if fits[bits]]
    return f"{', '.join(good)} bit" if good else "too large"


def _caption(machine: Machine) -> str:
    whole = "" if machine.whole is None else f" of {_scaled(machine.whole, ' ', 'MB', 'GB')}"
    free = f"{_scaled(machine.ram, ' ', 'MB', 'GB')}{whole} of RAM"
    if machine.gpu is None:
        found = f"{free}, no GPU that nvidia-smi knows"
    else:
        found = f"{_scaled(machine.gpu, ' ', 'MB', 'GB')} on one GPU, {free}"
    return (
        f"Memory: weights and one conversation of {PLANNED_TOKENS:,} tokens.\n"
        f"Free here: {found}.\n"
        f"A model fits if {_scaled(RUNTIME, ' ', 'MB', 'GB')} is left for what runs beside it. "
        "On a processor, 16 bit is dtype bfloat16, and 8 and 4 bit keep\n"
        "embeddings, keys and values in 32 bit."
    )


def markdown_table() -> str:
    """All that is known of every model, as a table in Markdown."""
    sizes = [f"{name} {w}x{h}" for name, (w, h) in TYPICAL_PICTURES.items()]
    headings = ["name", "parameters", "template", "images", "context"]
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
    return [_scaled(entry.memory(bits), " ", "MB", "GB") for bits in ALL_BITS]


def _as_dict(entry: CatalogEntry, machine: Machine) -> dict[str, object]:
    known = {field.name: getattr(entry, field.name) for field in fields(entry)}
    del known["layout"]
    return {
        **known,
        "memory_bytes": {f"{bits}bit": entry.memory(bits) for bits in ALL_BITS},
        "memory_in_ram_bytes": {f"{bits}bit": entry.memory_in_ram(bits) for bits in ALL_BITS},
        "fits": {
            place: None if fits is None else {f"{bits}bit": fits[bits] for bits in ALL_BITS}
            for place, fits in machine.fits(entry).items()
        },
        "image_tokens": _image_tokens(entry),
    }


def _scaled(value: float, space: str, million: str, billion: str) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.1f}{space}{billion}"
    return f"{value / 1e6:.1f}{space}{million}"
