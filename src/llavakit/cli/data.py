"""``llavakit data check``: training data looked through before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llavakit.cli import options
from llavakit.cli.command import Command
from llavakit.cli.terminal import FAILED, Waiting, told_errors, usage_error

data = typer.Typer(
    help="Look through training data.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@data.callback()
def _commands() -> None:
    """Look through training data."""


@data.command(cls=Command)
def check(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON list, JSON Lines, Parquet, or a directory that datasets has saved."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Where paths of images begin; else beside the file."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model to be trained; lengths are checked with it."),
    ] = None,
    model_base: options.ModelBase = None,
    conv_mode: options.ConvMode = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=1, help="The most tokens of a record; 2048 unless set."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept", help="A fault to live with: assistant-first, duplicate-id, over-length."
        ),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode/--no-decode", help="Decode images as a whole, or read their heads only."
        ),
    ] = True,
    shown: Annotated[int, typer.Option("--shown", min=0, help="How many faults to list.")] = 20,
    debug: options.Debug = False,
) -> None:
    """Count records, and name the faulty ones by their lines.

    llavakit data check llava_v1_5_mix665k.json --images ./images --model llava-1.5-7b

    Ends with 1 if there is any fault.
    """
    with told_errors(debug):
        from llavakit.training.data_check import check as look
        from llavakit.training.data_check import check_accepted
        from llavakit.training.data_files import open_records
        from llavakit.training.examples import Encoder

        wanted = tuple(accept or ())
        check_accepted(wanted)
        of_model = {
            "--model-base": model_base,
            "--conv-mode": conv_mode,
            "--max-length": max_length,
        }
        for name, value in of_model.items():
            if model is None and value is not None:
                raise usage_error(f"{name} goes with --model, whose tokens are counted.")
        waiting = Waiting(f"Looking through {file}")
        try:
            encoder = None
            if model is not None:
                from llavakit.model.loader import load_reader
                from llavakit.model.locate import locate

                base = None if model_base is None else locate(model_base, original=True)
                reader = load_reader(
                    locate(model), conv_mode=conv_mode, name=model, model_base=base
                )
                encoder = Encoder(reader, max_length or 2048)
            records = open_records(file)
            report = look(records, images=images, encoder=encoder, accept=wanted, decode=decode)
        finally:
            waiting.over()
        for line in report.lines(shown):
            print(line)
        if report.faults:
            raise typer.Exit(FAILED)
