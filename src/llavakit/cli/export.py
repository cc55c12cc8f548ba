"""``llavakit export``: a checkpoint of the original's in HF format, or any one packed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llavakit.cli import options
from llavakit.cli.terminal import Waiting, note, told_errors
from llavakit.model.quantization import Quantization


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A directory or hub id in the original format, or of an adapter; with "
            "--quantize any model."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The directory to make.")],
    model_base: options.ModelBase = None,
    conv_mode: options.ConvMode = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (as in the files), float32, float16 or bfloat16.")
    ] = "auto",
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            "--quantize", help="4bit or 8bit: packed for a processor; llavakit alone reads it."
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint of the original LLaVA in HF format, for transformers and vLLM.

    llavakit export ./llava-v1.5-7b ./llava-hf

    A LoRA or a projector is merged into its --model-base. llavakit itself needs no export: it
    runs such checkpoints as they are.

    llavakit export llava-1.5-7b ./llava-4bit --quantize 4bit

    With --quantize, any model that llavakit loads is written with its layers packed in 4 or 8
    bits, so that it loads in seconds on a processor.
    """
    with told_errors(debug):
        from llavakit.model.export import export as write

        waiting = Waiting(f"Writing {out}")
        try:
            written = write(
                model,
                out,
                model_base=model_base,
                conv_mode=conv_mode,
                dtype=dtype,
                quantize=quantize,
            )
        finally:
            waiting.over()
        note(f"Wrote {written}.")
