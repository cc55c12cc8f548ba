"""The web page: talk to an image in the browser.

:func:`serve` starts it, and ``llavakit web`` is that on the command line. What the page does
(conversations, images, tasks, the line of those who wait, the log) lives in modules that know
no browser; :mod:`llavakit.web.page` and :mod:`llavakit.web.running` put it behind gradio. Needs
``llavakit[web]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llavakit.errors import MissingDependencyError
from llavakit.web.moderation import Moderation
from llavakit.web.settings import WebSettings

if TYPE_CHECKING:
    from llavakit.web.running import RunningPage, serve

__all__ = ["Moderation", "RunningPage", "WebSettings", "serve"]

_PLACES = ("RunningPage", "serve")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.running")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise MissingDependencyError(
            'The web page needs an extra: pip install "llavakit[web]".'
        ) from error
    return getattr(module, name)
