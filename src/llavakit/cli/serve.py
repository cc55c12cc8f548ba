"""``llavakit serve``: a model behind OpenAI's chat completions."""

from __future__ import annotations

import ipaddress
import logging
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

import llavakit
from llavakit.cli import options
from llavakit.cli.cluster import cluster_of, run_cluster
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.terminal import FAILED, note, sentence, told_errors
from llavakit.errors import ParameterError
from llavakit.serving.settings import MIB, ServerSettings, read_keys

_SERVER = "Server"
_LIMITS = "Limits"
_CLUSTER = "Cluster"
_QUIET_SECONDS = 10.0
"""Between two lines about the warm-up in a log."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@takes_model("model", "base_url")
def serve(
    model: Annotated[
        str, typer.Argument(help="A name from `llavakit models`, a hub id or a directory.")
    ],
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="Keys of which clients must show one, one a line.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            "--served-model-name", help="What clients call the model.", rich_help_panel=_SERVER
        ),
    ] = None,
    allow_urls: Annotated[
        bool,
        typer.Option(
            "--allow-urls",
            help="Fetch http(s) URLs of images, from public addresses only.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            "--shutdown-seconds",
            min=0,
            help="Time for running answers after SIGTERM.",
            rich_help_panel=_SERVER,
        ),
    ] = 30.0,
    access_log: Annotated[
        bool,
        typer.Option("--access-log", help="Log each request on stderr.", rich_help_panel=_SERVER),
    ] = False,
    max_body_mib: Annotated[
        int,
        typer.Option("--max-body-mib", min=1, help="Of a request.", rich_help_panel=_LIMITS),
    ] = 64,
    max_images: Annotated[
        int,
        typer.Option("--max-images", min=1, help="Of a request.", rich_help_panel=_LIMITS),
    ] = 16,
    max_picture_mib: Annotated[
        int,
        typer.Option(
            "--max-image-mib", min=1, help="Of an image or a PDF.", rich_help_panel=_LIMITS
        ),
    ] = 20,
    max_image_pixels: Annotated[
        int,
        typer.Option(
            "--max-image-pixels",
            min=1,
            help="Of an image, or a page of a file.",
            rich_help_panel=_LIMITS,
        ),
    ] = 40_000_000,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-answer-tokens", min=1, help="Cuts longer wishes.", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_open: Annotated[
        int,
        typer.Option(
            "--max-open-requests",
            min=1,
            help="Read, waiting or answered at once; more get 429.",
            rich_help_panel=_LIMITS,
        ),
    ] = 512,
    max_waiting: Annotated[
        int,
        typer.Option(
            "--max-waiting",
            min=1,
            help="Answers that wait for the model; more get 429.",
            rich_help_panel=_LIMITS,
        ),
    ] = 1024,
    max_concurrency: Annotated[
        str,
        typer.Option(
            "--max-concurrency",
            metavar="INTEGER",
            help="Answers computed at once; auto: 32, and on CUDA what the memory holds.",
            rich_help_panel=_LIMITS,
        ),
    ] = "auto",
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout",
            min=0.001,
            help="Seconds for an answer, queueing included.",
            rich_help_panel=_LIMITS,
        ),
    ] = 600.0,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Run replicas on Ray Serve.", rich_help_panel=_CLUSTER),
    ] = False,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", min=1, help="So many, with --ray.", rich_help_panel=_CLUSTER),
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(
            "--autoscale",
            help="As many as there is work for, such as 1-4, with --ray.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="A Ray cluster that runs; without it, this machine is one.",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    keep_alive: options.KeepAlive = None,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up/--no-warm-up",
            help="Compile and capture what steps need before it is ready.",
            rich_help_panel="Model",
        ),
    ] = True,
    debug: options.Debug = False,
) -> None:
    """Serve a model to any client of OpenAI's API.

    llavakit serve demo --port 8000

    Requests are answered once the model is loaded and warm; /health says when. The first SIGTERM
    or Ctrl-C lets running answers finish, the second ends at once.
    """
    cluster = cluster_of(ray, replicas, autoscale, ray_address)
    with told_errors(debug):
        settings = ServerSettings(
            model_name=served_model_name or _name(model),
            warm_up=warm_up or "load",
            api_keys=() if api_key_file is None else read_keys(api_key_file),
            allow_urls=allow_urls,
            allowed_hosts=_LOOPBACK if api_key_file is None and is_loopback(host) else (),
            max_body_bytes=max_body_mib * MIB,
            max_images=max_images,
            max_image_bytes=max_picture_mib * MIB,
            max_image_pixels=max_image_pixels,
            max_answer_tokens=max_tokens,
            max_open_requests=max_open,
            request_timeout=request_timeout,
        )
        load = {
            **chosen.of_checkpoint,
            "device": chosen.device,
            "keep_alive": keep_alive,
            "max_waiting": max_waiting,
            "max_concurrency": _whole_or_auto("--max-concurrency", max_concurrency),
            "source_policy": settings.policy(),
        }
        if api_key_file is None and not is_loopback(host):
            note(
                f"llavakit: warning: anybody who reaches {host} can use this server; give it "
                "--api-key-file, or keep it behind something that asks for a key."
            )
        if cluster is None:
            _run(model, load, settings, host, port, grace, access_log, debug)
        else:
            run_cluster(model, load, settings, cluster, host, port, grace, access_log, debug)


def _run(
    model: str,
    load: dict[str, Any],
    settings: ServerSettings,
    host: str,
    port: int,
    grace: float,
    access_log: bool,
    debug: bool,
) -> None:
    """One process with one model."""
    from llavakit.serving import Server, create_app  # reports a missing extra
    from llavakit.serving.runner import listen, log_to_stderr

    log_to_stderr(logging.DEBUG if debug else logging.INFO if access_log else logging.WARNING)
    failure: list[BaseException] = []

    warming = WarmingUp()

    def loaded(error: BaseException | None) -> None:
        warming.over()
        if error is None:
            note(f"llavakit: {settings.model_name} is ready")
        else:
            failure.append(error)
            server.should_exit = True

    backend = llavakit.load(model, **load)  # first: settings are wrong before a port is taken
    listener = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    server = Server(
        create_app(backend, settings, loaded=loaded, progress=warming),
        grace,
        access_log,
        lambda: note(f"llavakit: listening on {address}, loading {model}"),
    )
    try:
        server.run(sockets=[listener])
    finally:
        warming.over()
        backend.close()
    if failure:
        reason = failure[0]
        note(f"llavakit: {sentence(reason) if isinstance(reason, Exception) else reason}")
        raise typer.Exit(FAILED)


class WarmingUp:
    """Reports the warm-up on stderr: a line that changes on a terminal, a few lines elsewhere."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._reported = -math.inf

    def __call__(self, done: int, total: int, what: str) -> None:
        """A piece of work is done; on any thread."""
        text = f"llavakit: warming up, {done} of {total} ({what})"
        if sys.stderr.isatty():
            if self._status is None:
                self._status = Console(stderr=True).status("")
                self._status.start()
            self._status.update(escape(text))
        elif time.monotonic() - self._reported > _QUIET_SECONDS:
            self._reported = time.monotonic()
            note(text)

    def over(self) -> None:
        """Take the line away; safe to call twice."""
        if self._status is not None:
            self._status.stop()


def _whole_or_auto(option: str, text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) > 0):
        raise ParameterError(f"{option} is {text!r}; it must be a whole number from 1 on, or auto.")
    return int(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(model: str) -> str:
    """What clients call the model: a path's last part, or the name as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
