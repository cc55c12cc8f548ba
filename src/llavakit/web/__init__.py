"""The web page: talk to an image in the browser.

:func:`serve` starts it, and ``llavakit web`` is that on the command line. What the page does
(conversations, images, tasks, the queue, the log) lives in modules that know
no browser; :mod:`llavakit.web.page` and :mod:`llavakit.web.running` put it behind gradio. Needs
``llavakit[web]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llavakit._lazy import lazy_names
from llavakit.web.moderation import Moderation
from llavakit.web.settings import WebSettings

if TYPE_CHECKING:
    from llavakit.web.running import RunningPage, serve

__all__ = ["Moderation", "RunningPage", "WebSettings", "serve"]

_PLACES = {"RunningPage": "running", "serve": "running"}
_PACKAGES = ("gradio",)

__getattr__ = lazy_names(__name__, _PLACES, _PACKAGES, what="The web page", extra="web")
