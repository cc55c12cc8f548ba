"""A server of a model: OpenAI's chat completions over HTTP, for any client that speaks them.

:func:`create_app` makes the ASGI application of a backend; ``llavakit serve`` runs it. Needs
``llavakit[serve]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llavakit.serving.settings import ServerSettings

if TYPE_CHECKING:
    from llavakit.serving.app import create_app

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from llavakit.serving.app import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "prometheus_client"):
            raise
        from llavakit.errors import MissingDependencyError

        raise MissingDependencyError(
            'The server needs an extra: pip install "llavakit[serve]".'
        ) from error
    return create_app
