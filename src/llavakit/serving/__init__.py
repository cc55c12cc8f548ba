"""A server of a model: OpenAI's chat completions over HTTP, for any client that speaks them.

:func:`create_app` makes the ASGI application of a backend; :class:`Server` runs it, and
``llavakit serve`` is both. Needs ``llavakit[serve]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llavakit._lazy import lazy_names
from llavakit.serving.settings import ServerSettings

if TYPE_CHECKING:
    from llavakit.serving.app import create_app
    from llavakit.serving.runner import Server

__all__ = ["Server", "ServerSettings", "create_app"]

_PLACES = {"Server": "runner", "create_app": "app"}
_PACKAGES = ("fastapi", "prometheus_client", "uvicorn")

__getattr__ = lazy_names(__name__, _PLACES, _PACKAGES, what="The server", extra="serve")
