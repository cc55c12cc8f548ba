"""``llavakit mcp``: a model that looks, as tools of the Model Context Protocol."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.serve import is_loopback
from llavakit.cli.terminal import FAILED, note, sentence, told_errors, usage_error
from llavakit.errors import LlavaKitError, ParameterError
from llavakit.mcp.stdout import claimed_stdout
from llavakit.serving.settings import read_keys

if TYPE_CHECKING:
    from llavakit.mcp import MCPSettings

_IMAGES = "Images"
_SERVER = "Server"
_OF_HTTP = ("host", "port", "api_key_file", "access_log")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@takes_model("model")
def mcp(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A name from `llavakit models`, a hub id or a directory.")
    ],
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="[NAME=]PATH",
            help="An image or document that clients may ask about; may be repeated.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            help="A folder below which clients may name files; may be repeated.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    allow_urls: Annotated[
        bool,
        typer.Option(
            "--allow-urls",
            help="Let clients name http(s) URLs, of public addresses only.",
            rich_help_panel=_IMAGES,
        ),
    ] = False,
    allow_data: Annotated[
        bool,
        typer.Option(
            "--data/--no-data",
            help="Let clients send images themselves.",
            rich_help_panel=_IMAGES,
        ),
    ] = True,
    max_pages: Annotated[
        int,
        typer.Option("--max-pages", min=1, help="Pages of one call.", rich_help_panel=_IMAGES),
    ] = 16,
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help="Serve streamable HTTP at /mcp, instead of stdin and stdout.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8001,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="Keys of which clients must show one, one a line, with --http.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    access_log: Annotated[
        bool,
        typer.Option("--access-log", help="Log each request on stderr.", rich_help_panel=_SERVER),
    ] = False,
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout",
            min=0.001,
            help="Seconds for an answer, queueing included.",
            rich_help_panel=_SERVER,
        ),
    ] = 600.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "--max-tokens",
            min=1,
            help="The longest answer, in tokens.",
            rich_help_panel="Answer",
        ),
    ] = None,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    keep_alive: options.KeepAlive = None,
    debug: options.Debug = False,
) -> None:
    """Give any agent of the Model Context Protocol tools that look at images.

    llavakit mcp demo --image plan=plan.png --root ~/scans

    The tools are ask_image, compare_images, read_page, extract and list_images. The model is
    loaded with the first question. Without --http, stdout carries the protocol alone.
    """
    given = [one for one in _OF_HTTP if _is_given(context, one)]
    if given and not http:
        raise usage_error(f"--{given[0].replace('_', '-')} is for --http.")
    with told_errors(debug), nullcontext() if http else claimed_stdout() as out:
        from llavakit.mcp import MCPSettings  # reports a missing extra

        keys = () if api_key_file is None else read_keys(api_key_file)
        settings: dict[str, Any] = {
            "model": model,
            "attachments": dict(_attachment(one) for one in image or ()),
            "roots": root or (),
            "allow_urls": allow_urls,
            "allow_data": allow_data,
            "max_pages": max_pages,
            "timeout": request_timeout,
            "max_tokens": max_tokens,
            **chosen.of_checkpoint,
            "base_url": chosen.base_url,
            "keep_alive": keep_alive,
            # A model that does not exist is reported before a port is taken.
            "validate_model_on_init": http and chosen.base_url is None,
        }
        if chosen.base_url is None or chosen.device != "auto":
            settings["device"] = chosen.device
        made = _made(MCPSettings, settings)
        if out is None:
            _serve_http(made, host, port, keys, access_log, debug)
        else:
            from llavakit.mcp import create_server, serve_stdio

            if chosen.base_url is None:
                threading.Thread(target=_check_model, args=(made,), daemon=True).start()
            serve_stdio(create_server(made), out, made.backend_for().close)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _check_model(settings: MCPSettings) -> None:
    """End the process if there is no such model.

    Reading a model's configuration imports torch, which takes longer than some clients wait for
    a server's first answer; so it is done meanwhile.
    """
    try:
        _ = settings.backend_for().info
    except LlavaKitError as error:
        note(f"llavakit: {sentence(error)}")
        os._exit(FAILED)


def _serve_http(
    settings: MCPSettings,
    host: str,
    port: int,
    keys: tuple[str, ...],
    access_log: bool,
    debug: bool,
) -> None:
    from llavakit.mcp import HTTPSettings, create_http_app, create_server, serve_http
    from llavakit.serving.runner import listen, log_to_stderr

    log_to_stderr(logging.DEBUG if debug else logging.INFO if access_log else logging.WARNING)
    if not keys and not is_loopback(host):
        note(
            f"llavakit: warning: anybody who reaches {host} can use this server; give it "
            "--api-key-file, or keep it behind something that asks for a key."
        )
    allowed = _LOOPBACK if not keys and is_loopback(host) else ()
    app = create_http_app(
        create_server(settings), HTTPSettings(api_keys=keys, allowed_hosts=allowed)
    )
    listener = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    note(f"llavakit: MCP at {address}/mcp")
    try:
        serve_http(app, listener, access_log=access_log)
    finally:
        settings.backend_for().close()


def _attachment(text: str) -> tuple[str, Path]:
    """Split ``NAME=PATH``; a path alone is named by its last part.

    Raises:
        ParameterError: there is no such file.
    """
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = Path(text).name, text
    place = Path(path).expanduser().absolute()
    if not place.is_file():
        raise ParameterError(f"--image names {path}, which is not a file.")
    return name, place


def _made(settings: type[MCPSettings], values: dict[str, Any]) -> MCPSettings:
    """Construct the settings; an error of pydantic becomes one sentence.

    Raises:
        ParameterError: a setting that makes no sense.
    """
    from pydantic import ValidationError

    try:
        return settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise ParameterError(reason) from None
