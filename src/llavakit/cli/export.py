"""``llavakit export``: a checkpoint of the original's for programs that read HF format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llavakit.cli import options
from llavakit.cli.terminal import Waiting, note, told_errors


def export(
    model: Annotated[
        str, typer.Argument(help="A directory or hub id in the original format, or of an adapter.")
    ],
    out: Annotated[Path, typer.Argument(help="The directory to make.")],
    model_base: options.ModelBase = None,
    conv_mode: options.ConvMode = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (as in the files), float32, float16 or bfloat16.")
    ] = "auto",
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint of the original LLaVA in HF format, for transformers and vLLM.

    llavakit export ./llava-v1.5-7b ./llava-hf

    A LoRA or a projector is merged into its --model-base. llavakit itself needs no export: it
    runs such checkpoints as they are.
    """
    with told_errors(debug):
        from llavakit.model.export import export as write

        waiting = Waiting(f"Writing {out}")
        try:
            written = write(model, out, model_base=model_base, conv_mode=conv_mode, dtype=dtype)
        finally:
            waiting.over()
        note(f"Wrote {written}.")
