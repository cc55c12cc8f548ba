"""A server of a model: OpenAI's chat completions over HTTP, for any client that speaks them.

:func:`create_app` makes the ASGI application of a backend; :class:`Server` runs it, and
``llavakit serve`` is both. Needs ``llavakit[serve]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llavakit.errors import MissingDependencyError
from llavakit.serving.settings import ServerSettings

if TYPE_CHECKING:
    from llavakit.serving.app import create_app
    from llavakit.serving.runner import Server

__all__ = ["Server", "ServerSettings", "create_app"]

_PLACES = {"Server": "runner", "create_app": "app"}
_EXTRA = ("fastapi", "prometheus_client", "uvicorn")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_PLACES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise MissingDependencyError(
            'The server needs an extra: pip install "llavakit[serve]".'
        ) from error
    return getattr(module, name)
