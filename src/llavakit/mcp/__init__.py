"""A server of the Model Context Protocol: a model that looks, as tools for any agent.

:class:`MCPSettings` says which model looks and what may be named; :func:`create_server` makes the
official SDK's server of it, for any of its transports; ``llavakit mcp`` runs it over stdio or HTTP.
What may be named, asked and answered is :mod:`llavakit.questions`. Needs ``llavakit[mcp]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llavakit.errors import MissingDependencyError

if TYPE_CHECKING:
    from llavakit.mcp.http import HTTPSettings, create_http_app, serve_http
    from llavakit.mcp.sdk import create_server
    from llavakit.mcp.settings import MCPSettings
    from llavakit.mcp.stdio import serve_stdio

__all__ = [
    "HTTPSettings",
    "MCPSettings",
    "create_http_app",
    "create_server",
    "serve_http",
    "serve_stdio",
]

_PLACES = {
    "HTTPSettings": "http",
    "MCPSettings": "settings",
    "create_http_app": "http",
    "create_server": "sdk",
    "serve_http": "http",
    "serve_stdio": "stdio",
}
_EXTRA = ("anyio", "fastapi", "mcp", "mcp_types", "pydantic", "starlette", "uvicorn")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_PLACES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise MissingDependencyError(
            'The MCP server needs an extra: pip install "llavakit[mcp]".'
        ) from error
    return getattr(module, name)
