"""The page as a server: where files go, which routes are open, and how it ends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# Read when gradio is imported: it reports to its makers that it runs, unless this is set.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware

from llavakit.backend import Backend
from llavakit.errors import ParameterError
from llavakit.values import SamplingParams
from llavakit.web import style
from llavakit.web.accounts import checking
from llavakit.web.catalog import ListedModel
from llavakit.web.controller import Controller
from llavakit.web.examples import copy_examples
from llavakit.web.folders import FOLDERS
from llavakit.web.guard import Guard
from llavakit.web.log import ConversationLog
from llavakit.web.model_cache import ModelCache
from llavakit.web.moderation import Moderation
from llavakit.web.page import build
from llavakit.web.pictures import Uploads
from llavakit.web.settings import LOOPBACK, WebSettings, is_loopback


class RunningPage:
    """A page that is up.

    Attributes:
        url: its address.
        share_url: its address on the internet, if it is shared.
        controller: what happens behind it.
    """

    def __init__(
        self,
        controller: Controller,
        blocks: gr.Blocks,
        folder: Path,
        url: str,
        share_url: str | None,
    ) -> None:
        self.controller = controller
        self.url = url
        self.share_url = share_url
        self._blocks = blocks
        self._folder = folder
        self._closed = threading.Event()

    def wait(self) -> None:
        """Return when the page has been closed."""
        self._closed.wait()

    def close(self) -> None:
        """End everything, and remove what was uploaded; safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._blocks.close(verbose=False)
        self.controller.model_cache.close()
        FOLDERS.remove(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(
    offers: Sequence[ListedModel],
    load: Callable[[str], Backend],
    *,
    kept: int = 1,
    settings: WebSettings | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    accounts: Sequence[tuple[str, str]] = (),
    log_dir: Path | None = None,
    moderation: Moderation | None = None,
    failed: Callable[[BaseException], None] | None = None,
) -> RunningPage:
    """Start the page, and return while it runs.

    The first model is loaded in the background at once.

    Args:
        offers: the models of the list (:func:`llavakit.web.catalog.listed_models`).
        load: gives the backend of an offer's name.
        kept: how many offers, from the first, stay in memory; of the others one at a time.
        settings: defaults and limits.
        host: the address to listen on.
        port: 0 takes a free one.
        share: let the whole internet in, through servers of gradio's makers.
        accounts: names and passwords; without any, every visitor that reaches the page may use it.
        log_dir: where the conversation log goes; None keeps none.
        moderation: the hook that may refuse a question.
        failed: is called with the error if the first model could not be loaded.

    Raises:
        ParameterError: the port is taken, or the log cannot be written.
    """
    settings = settings or WebSettings()
    log = None if log_dir is None else ConversationLog(log_dir)
    port = _free(host, port)
    with FOLDERS.making() as folder:
        uploads = folder / "uploads"
        controller = Controller(
            settings,
            ModelCache(offers, kept, load),
            Uploads(uploads, settings),
            examples=copy_examples(folder / "examples"),
            log=log,
            moderation=moderation,
        )
        # A name that leads to loopback is not ours (DNS rebinding); elsewhere all names pass.
        hosts = LOOPBACK if is_loopback(host) and not share else ()
        blocks = build(controller)
        blocks.queue(default_concurrency_limit=None, max_size=None)
        _, url, share_url = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=checking(accounts) if accounts else None,
            auth_message=style.LOGIN if accounts else None,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            allowed_paths=[],
            max_file_size=settings.max_file_bytes,
            app_kwargs={"middleware": [Middleware(Guard, controller, uploads, hosts)]},
            theme=_theme(),
            css=style.STYLE,
            head=style.SCRIPT,
            inbrowser=False,
        )
    _close_to_other_sites(blocks.app)
    page = RunningPage(controller, blocks, folder, url.rstrip("/"), share_url)
    threading.Thread(
        target=_warm_up,
        args=(controller.model_cache, failed),
        name="llavakit-web-load",
        daemon=True,
    ).start()
    return page


def _close_to_other_sites(app: Any) -> None:
    """Remove the framework's permission for pages of other ports of this machine (CORS)."""
    from gradio.route_utils import CustomCORSMiddleware

    left = [one for one in app.user_middleware if one.cls is not CustomCORSMiddleware]
    app.user_middleware = left
    app.middleware_stack = app.build_middleware_stack()


def _warm_up(model_cache: ModelCache, failed: Callable[[BaseException], None] | None) -> None:
    try:
        with model_cache.using(model_cache.default) as backend:
            backend.generate("Hello", SamplingParams(max_tokens=1))
            model_cache.loaded(model_cache.default)
    except Exception as error:
        if failed is not None:
            failed(error)


def _free(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ParameterError(
                f"Port {port} of {host} cannot be used ({error.strerror}); choose another."
            ) from error
        return int(probe.getsockname()[1])


def _theme() -> Any:
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=list(style.FONT),
        font_mono=list(style.MONO),
    ).set(
        # Text has a contrast of at least 4.5 to 1 on every background of the page.
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        input_placeholder_color_dark="*neutral_400",
    )
