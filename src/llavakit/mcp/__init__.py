"""A server of the Model Context Protocol: a model that looks, as tools for any agent.

:class:`MCPSettings` says which model looks and what may be named; :func:`create_server` makes the
official SDK's server of it, for any of its transports; ``llavakit mcp`` runs it over stdio or HTTP.
What may be named, asked and answered is :mod:`llavakit.questions`. Needs ``llavakit[mcp]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llavakit._lazy import lazy_names

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
_PACKAGES = ("anyio", "fastapi", "mcp", "mcp_types", "pydantic", "starlette", "uvicorn")

__getattr__ = lazy_names(__name__, _PLACES, _PACKAGES, what="The MCP server", extra="mcp")
