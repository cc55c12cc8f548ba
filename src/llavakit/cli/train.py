"""``llavakit train``: align a projector, or teach a model from conversations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llavakit.cli import options
from llavakit.cli.terminal import note, told_errors, usage_error


class TrainingStage(StrEnum):
    """What is trained."""

    align = "align"
    instruct = "instruct"
    lora = "lora"
    qlora = "qlora"
    retrieve = "retrieve"


_RUN = "Run"


def train(
    stage: Annotated[
        TrainingStage,
        typer.Argument(
            help="align: the projector alone; instruct: projector and language model; lora, "
            "qlora: projector and adapters; retrieve: an adapter that finds images by questions.",
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A YAML file of settings.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "--model-path", "-m", help="What is trained: a name, hub id or directory."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The training records.")] = None,
    images: Annotated[
        str | None,
        typer.Option("--images", help="Where paths of images begin; else beside the data."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The directory to make.")] = None,
    model_base: options.ModelBase = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(
            "--vision-tower", help="align: the CLIP that a plain language model shall get."
        ),
    ] = None,
    conv_mode: options.ConvMode = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="How often all data is seen.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="End earlier.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Its highest value.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Conversations of a step, on all devices.")
    ] = None,
    per_device_batch_size: Annotated[
        int | None,
        typer.Option("--per-device-batch-size", help="Conversations a device takes at once."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto or cpu.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, as NAME=VALUE; may be repeated."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Train a model; settings that are not given are those of the original LLaVA.

    llavakit train lora --model llava-1.5-7b --data train.json --images ./images --out ./mine

    Settings of --config are replaced by those of the command line. On several GPUs, start it by
    `accelerate launch -m llavakit.cli train ...`. docs/training.md lists all settings.
    """
    with told_errors(debug):
        from llavakit.training.config import TrainConfig, read_settings

        settings: dict[str, Any] = {} if config is None else read_settings(config)
        named = {
            "model": model,
            "data": data,
            "images": images,
            "out": out,
            "model_base": model_base,
            "vision_tower": vision_tower,
            "conv_mode": conv_mode,
            "epochs": epochs,
            "max_steps": max_steps,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "per_device_batch_size": per_device_batch_size,
            "device": device,
            "resume": True if resume else None,
        }
        settings |= {name: value for name, value in named.items() if value is not None}
        for one in set_ or ():
            name, equals, value = one.partition("=")
            if not equals:
                raise usage_error(f"--set {one} is not of the form NAME=VALUE.")
            settings[name.strip()] = value.strip()
        chosen = TrainConfig.of(stage.value, settings)
        from llavakit.training.run import train as run

        try:
            run(chosen, note)
        except KeyboardInterrupt:
            note(f"llavakit: interrupted; go on from the last checkpoint in {chosen.out}: --resume")
            raise
