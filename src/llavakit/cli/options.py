"""Options that several commands share; the names of LLaVA's own command line are among them."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer

_MODEL = "Model"
_ANSWER = "Answer"

Model: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model",
        "--model-path",
        "-m",
        help="A name from `llavakit models`, a hub id or a directory.",
        rich_help_panel=_MODEL,
    ),
]
ModelBase: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model-base",
        help="The base model of a LoRA or projector-only checkpoint.",
        rich_help_panel=_MODEL,
    ),
]
ConvMode: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--conv-mode",
        help="A conversation template by name (chat_template: the checkpoint's own).",
        rich_help_panel=_MODEL,
    ),
]
Load4Bit: TypeAlias = Annotated[
    bool,
    typer.Option("--load-4bit", help="Quantise the weights to 4 bit.", rich_help_panel=_MODEL),
]
Load8Bit: TypeAlias = Annotated[
    bool,
    typer.Option("--load-8bit", help="Quantise the weights to 8 bit.", rich_help_panel=_MODEL),
]
Device: TypeAlias = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=_MODEL),
]
BaseUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        help="A server that runs the model (llavakit serve, vLLM, ...); its key is read from "
        "LLAVAKIT_API_KEY.",
        rich_help_panel=_MODEL,
    ),
]
Window: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--window",
        help="Requests under way at once. Default: twice what the model runs in one batch, and at "
        "least 64.",
    ),
]
KeepAlive: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--keep-alive",
        metavar="DURATION",
        help="How long an idle model stays in memory: 5m, 1h30m, seconds, or -1 (for ever).",
        show_default="for ever",
        rich_help_panel=_MODEL,
    ),
]
Host: TypeAlias = Annotated[
    str, typer.Option("--host", help="The address to listen on.", rich_help_panel="Server")
]
Port: TypeAlias = Annotated[
    int,
    typer.Option("--port", min=0, max=65535, help="0 takes a free one.", rich_help_panel="Server"),
]
Temperature: TypeAlias = Annotated[
    float,
    typer.Option(
        "--temperature", help="0 always takes the likeliest word.", rich_help_panel=_ANSWER
    ),
]
TopP: TypeAlias = Annotated[
    float,
    typer.Option(
        "--top-p",
        "--top_p",
        help="Draw from the likeliest words of this share only.",
        rich_help_panel=_ANSWER,
    ),
]
MaxTokens: TypeAlias = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        "--max_new_tokens",
        "--max-tokens",
        help="The longest answer, in tokens.",
        rich_help_panel=_ANSWER,
    ),
]
Seed: TypeAlias = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed gives the same answer.", rich_help_panel=_ANSWER),
]
System: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--system", help="A system message, said before all else.", rich_help_panel=_ANSWER
    ),
]
Page: TypeAlias = Annotated[
    list[int] | None,
    typer.Option("--page", min=1, help="Pages of the PDFs and TIFFs; may be repeated."),
]
Debug: TypeAlias = Annotated[
    bool, typer.Option("--debug", help="Log more, and show tracebacks of errors.")
]


def renderers(panel: str) -> Any:
    """Return the option of how many processes render pages, for a command's panel of its help."""
    return typer.Option(
        "--renderers",
        min=1,
        help="Processes that render pages ahead; by default as many as cores, 2 to 4.",
        show_default=False,
        rich_help_panel=panel,
    )
