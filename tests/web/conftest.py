"""A page of the bundled model and of an endless talker, and a browser to visit it with."""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.web.visitor import Visitor

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DATA = Path(__file__).parents[2] / "examples" / "data"


@contextmanager
def quietly() -> Iterator[None]:
    """gradio warns of itself when it is imported, and leaves an event loop behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        left = asyncio.get_event_loop()
        if not left.is_running():
            left.close()
            asyncio.set_event_loop(None)
        gc.collect()


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")  # playwright's event loop keeps all others from running
def browser() -> Iterator[Any]:
    missing = [name for name in ("playwright", "gradio") if find_spec(name) is None]
    if chromium() is None:
        missing.append("Debian's chromium")
    if missing:
        pytest.skip(f"The page cannot be visited without {missing[0]}; `make test-web` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says one letter until it is stopped: its layers add nothing to what they get."""
    import torch

    from tests.tiny import tiny_llava

    tiny = tiny_llava(tmp_path_factory.mktemp("talker") / "endless-talker", context=60_000)
    [letter] = tiny.processor.tokenizer.encode("a", add_special_tokens=False)[-1:]
    text = tiny.model.model.language_model
    with torch.no_grad():
        for layer in text.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        text.embed_tokens.weight.fill_(1)
        tiny.model.lm_head.weight.zero_()
        tiny.model.lm_head.weight[letter] = 1
    tiny.model.save_pretrained(tiny.path)
    return tiny.path


@pytest.fixture(scope="module")
def site(browser: Any, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page with two seats and one place in line; it keeps a log."""
    import llavakit

    with quietly():
        from llavakit.web import WebSettings, serve
    from llavakit.web.catalog import listed_models

    settings = WebSettings(
        temperature=0, top_p=1, seats=2, places=1, most_tokens=50_000, max_file_bytes=1 << 20
    )
    page = serve(
        listed_models(["demo", str(talker)]),
        llavakit.load,
        kept=2,
        settings=settings,
        port=0,
        log_dir=tmp_path_factory.mktemp("log") / "conversations",
    )
    yield page
    with quietly():
        page.close()


@pytest.fixture
def visit(browser: Any, site: Any) -> Iterator[Callable[..., Visitor]]:
    """Opens the page as another visitor. What his browser did is judged when the test ends."""
    visitors: list[Visitor] = []

    def arrive(**options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        visitors.append(Visitor(context, site.url))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.leave()
    for visitor in visitors:
        assert visitor.foreign_requests == []
        assert visitor.complaints == []
    until(lambda: idle(site))


def idle(site: Any) -> bool:
    """Whether no model computes anything, by the engines' own figures."""
    return all(
        figures["running"] == figures["waiting"] == 0
        for figures in site.controller.model_cache.stats().values()
    )


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for something; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "It did not come true."
        time.sleep(0.02)
