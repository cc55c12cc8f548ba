"""The commands put together; one module each."""

from __future__ import annotations

from typing import Annotated

import typer

import llavakit
from llavakit.cli.ask import ask
from llavakit.cli.chat import chat
from llavakit.cli.command import Command
from llavakit.cli.data import data
from llavakit.cli.eval import run_benchmark
from llavakit.cli.export import export
from llavakit.cli.index import index
from llavakit.cli.mcp import mcp
from llavakit.cli.models import models
from llavakit.cli.read import read
from llavakit.cli.search import search
from llavakit.cli.serve import serve
from llavakit.cli.train import train
from llavakit.cli.web import web

app = typer.Typer(
    name="llavakit",
    help="LLaVA on the command line: ask, chat, read and find pages, serve, train and measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(ask)
app.command(cls=Command)(chat)
app.command(cls=Command)(read)
app.command(cls=Command)(index)
app.command(cls=Command)(search)
app.command(cls=Command)(serve)
app.command(cls=Command)(mcp)
app.command(cls=Command)(web)
app.command("eval", cls=Command)(run_benchmark)
app.command(cls=Command)(models)
app.command(cls=Command)(export)
app.add_typer(data, name="data")
app.command(cls=Command)(train)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llavakit {llavakit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
