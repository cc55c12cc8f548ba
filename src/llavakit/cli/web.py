"""``llavakit web``: a page in the browser."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import llavakit
from llavakit.backend import Backend
from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.terminal import FAILED, note, sentence, told_errors
from llavakit.errors import ParameterError
from llavakit.web.accounts import read_accounts
from llavakit.web.catalog import listed_models
from llavakit.web.moderation import load_hook
from llavakit.web.settings import WebSettings, is_loopback

_SERVER = "Server"


@takes_model("model")
def web(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "--model-path",
            "-m",
            help="A name from `llavakit models`, a hub id or a directory; several stay in memory.",
            rich_help_panel="Model",
        ),
    ] = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--models-dir",
            help="Offer the checkpoints in the directories of this one.",
            rich_help_panel="Model",
        ),
    ] = None,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    host: options.Host = "127.0.0.1",
    port: options.Port = 7860,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Open the page to the internet, through gradio's servers.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    auth_file: Annotated[
        Path | None,
        typer.Option(
            "--auth-file", help="Lines of name:password; one is asked for.", rich_help_panel=_SERVER
        ),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            "--log-dir",
            help="Keep conversations, votes and images here.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    moderation: Annotated[
        str | None,
        typer.Option(
            "--moderation",
            help="package.module:function that may refuse a question.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    seats: Annotated[
        int,
        typer.Option(
            "--max-concurrency", min=1, help="Answers computed at once.", rich_help_panel=_SERVER
        ),
    ] = 32,
    places: Annotated[
        int,
        typer.Option(
            "--max-waiting",
            min=0,
            help="Visitors in line; more are refused.",
            rich_help_panel=_SERVER,
        ),
    ] = 64,
    temperature: options.Temperature = 0.2,
    top_p: options.TopP = 0.7,
    max_tokens: options.MaxTokens = 512,
    debug: options.Debug = False,
) -> None:
    """Talk to images in the browser.

    llavakit web --model demo

    On this machine alone (the default), visitors may choose every model of `llavakit models`;
    with --host, --share or --auth-file only those of --model and --models-dir. Ctrl-C ends it.
    """
    with told_errors(debug):
        named = model or ["demo"]
        accounts = () if auth_file is None else read_accounts(auth_file)
        private = is_loopback(host) and not share and not accounts
        base_url = chosen.base_url
        if base_url is not None and models_dir:
            raise ParameterError("--models-dir is for models in this process, not for --base-url.")
        if not debug:
            logging.basicConfig(level=logging.WARNING, format="llavakit: %(message)s")
        settings = WebSettings(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            most_tokens=max(4096, max_tokens),
            seats=seats,
            places=places,
        )
        _warn(host, share, bool(accounts), is_loopback(host))
        if base_url is not None:
            _refuse_local_options(chosen)
        of_named = {"model_base": chosen.model_base, "conv_mode": chosen.conv_mode}
        here = {
            "device": chosen.device,
            "load_in_4bit": chosen.load_4bit,
            "load_in_8bit": chosen.load_8bit,
            "max_concurrency": seats,
        }
        load = _loading(named, base_url, of_named, here)
        listed = listed_models(
            named,
            models_dir or (),
            catalog=private and base_url is None,
            bits=4 if chosen.load_4bit else 8 if chosen.load_8bit else 16,
            remote=base_url is not None,
        )
        hook = None if moderation is None else load_hook(moderation)
        from llavakit.web import serve  # takes seconds to import, and reports a missing extra

        failure: list[BaseException] = []

        def failed(error: BaseException) -> None:
            failure.append(error)
            page.close()

        page = serve(
            listed,
            load,
            kept=len(named),
            settings=settings,
            host=host,
            port=port,
            share=share,
            accounts=accounts,
            log_dir=log_dir,
            moderation=hook,
            failed=failed,
        )
        note(f"llavakit: open {page.share_url or page.url} in a browser; Ctrl-C ends it")
        try:
            page.wait()
        finally:
            page.close()
        if failure:
            reason = failure[0]
            note(f"llavakit: {sentence(reason) if isinstance(reason, Exception) else reason}")
            raise typer.Exit(FAILED)


def _refuse_local_options(chosen: ModelArguments) -> None:
    """Refuse what concerns models of this process, where a server has the model.

    Raises:
        ParameterError: an option that was given.
    """
    for name in chosen.given("model_base", "conv_mode", "load_4bit", "load_8bit", "device"):
        option = name.replace("_", "-")
        raise ParameterError(f"--{option} is for models in this process, not for --base-url.")


def _loading(
    named: list[str], base_url: str | None, of_named: dict[str, Any], here: dict[str, Any]
) -> Callable[[str], Backend]:
    """How models of the list are loaded; a base and a template belong to those that were named."""

    def load(name: str) -> Backend:
        if base_url is not None:
            return llavakit.load(name, base_url=base_url)
        return llavakit.load(name, **here, **(of_named if name in named else {}))

    return load


def _warn(host: str, share: bool, locked: bool, loopback: bool) -> None:
    if locked:
        return
    if share:
        note("llavakit: warning: the whole internet can use this page; give it --auth-file.")
    elif not loopback:
        note(
            f"llavakit: warning: anybody who reaches {host} can use this page, and passwords and "
            "images cross the network unencrypted; give it --auth-file, and put it behind a "
            "proxy with TLS."
        )
