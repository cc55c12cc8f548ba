"""The tools and resources bound to the official SDK's server; the one place that knows the SDK.

Versions 1 and 2 of the SDK (https://github.com/modelcontextprotocol/python-sdk) have different
low-level servers and the same protocol. What is sent is written here as the protocol writes it,
and read by the types of whichever version is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from mcp.server.lowlevel import Server

import llavakit
from llavakit._checks import checked
from llavakit.errors import InputError
from llavakit.mcp.resources import TEMPLATES, Resources
from llavakit.mcp.settings import MCPSettings
from llavakit.mcp.tools import INSTRUCTIONS, Tools
from llavakit.questions.listing import Attached
from llavakit.questions.reading import Progress

NAME = "llavakit"
_INVALID_PARAMS = -32602
_RESOURCE_NOT_FOUND = -32002
_VERSION_1 = hasattr(Server, "list_tools")


@checked
def create_server(settings: MCPSettings) -> Server[Any]:
    """Make the SDK's server of a model, to be run by any of the SDK's transports.

    All clients of the server share the model, which is loaded with the first question.

    Args:
        settings: which model looks, and what clients may name.
    """
    attached = Attached(settings)
    faces = _Handlers(Tools(settings, attached), Resources(settings, attached))
    return _version_1(faces) if _VERSION_1 else _version_2(faces)


class _Handlers:
    """What is answered to each request of the protocol, in the protocol's own notation."""

    def __init__(self, tools: Tools, resources: Resources) -> None:
        self._tools = tools
        self._resources = resources

    async def list_tools(self) -> dict[str, Any]:
        return {"tools": self._tools.written()}

    async def call_tool(
        self, name: str, arguments: Mapping[str, Any] | None, progress: Progress | None
    ) -> dict[str, Any]:
        return (await self._tools.call(name, arguments or {}, progress)).written()

    async def list_resources(self, cursor: str | None) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(self._resources.page, cursor)
        except InputError as error:
            raise _refusal(_INVALID_PARAMS, str(error)) from error

    async def list_templates(self) -> dict[str, Any]:
        return {"resourceTemplates": list(TEMPLATES)}

    async def read_resource(self, uri: str) -> dict[str, Any]:
        try:
            found = await asyncio.to_thread(self._resources.read, uri)
        except InputError as error:
            raise _refusal(_RESOURCE_NOT_FOUND, str(error)) from error
        return {"contents": [found.contents(uri)]}


def _version_1(handlers: _Handlers) -> Server[Any]:
    from mcp import types

    server: Server[Any] = Server(NAME, version=llavakit.__version__, instructions=INSTRUCTIONS)

    async def list_tools(request: Any) -> Any:
        return _result(types.ListToolsResult, await handlers.list_tools())

    async def call_tool(request: types.CallToolRequest) -> Any:
        context = server.request_context
        token = None if context.meta is None else context.meta.progressToken
        progress = None if token is None else _progress(context, token)
        params = request.params
        written = await handlers.call_tool(params.name, params.arguments, progress)
        return _result(types.CallToolResult, written)

    async def list_resources(request: Any) -> Any:
        params = getattr(request, "params", None)
        written = await handlers.list_resources(None if params is None else params.cursor)
        return _result(types.ListResourcesResult, written)

    async def list_templates(request: Any) -> Any:
        return _result(types.ListResourceTemplatesResult, await handlers.list_templates())

    async def read_resource(request: types.ReadResourceRequest) -> Any:
        written = await handlers.read_resource(str(request.params.uri))
        return _result(types.ReadResourceResult, written)

    def _result(model: Any, written: dict[str, Any]) -> types.ServerResult:
        return types.ServerResult(model.model_validate(written))

    server.request_handlers |= {
        types.ListToolsRequest: list_tools,
        types.CallToolRequest: call_tool,
        types.ListResourcesRequest: list_resources,
        types.ListResourceTemplatesRequest: list_templates,
        types.ReadResourceRequest: read_resource,
    }
    return server


def _version_2(handlers: _Handlers) -> Server[Any]:
    types = import_module("mcp_types")

    async def list_tools(context: Any, params: Any) -> Any:
        return types.ListToolsResult.model_validate(await handlers.list_tools())

    async def call_tool(context: Any, params: Any) -> Any:
        async def progress(done: int, total: int, name: str) -> None:
            await context.session.report_progress(done, total, name)

        written = await handlers.call_tool(params.name, params.arguments, progress)
        return types.CallToolResult.model_validate(written)

    async def list_resources(context: Any, params: Any) -> Any:
        written = await handlers.list_resources(None if params is None else params.cursor)
        return types.ListResourcesResult.model_validate(written)

    async def list_templates(context: Any, params: Any) -> Any:
        written = await handlers.list_templates()
        return types.ListResourceTemplatesResult.model_validate(written)

    async def read_resource(context: Any, params: Any) -> Any:
        written = await handlers.read_resource(str(params.uri))
        return types.ReadResourceResult.model_validate(written)

    make: Callable[..., Server[Any]] = Server
    return make(
        NAME,
        version=llavakit.__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


def _progress(context: Any, token: str | int) -> Progress:
    async def progress(done: int, total: int, name: str) -> None:
        await context.session.send_progress_notification(
            token, done, total, name, related_request_id=str(context.request_id)
        )

    return progress


def _refusal(code: int, message: str) -> Exception:
    """Return the SDK's error for a request that is refused."""
    from mcp.shared import exceptions

    if _VERSION_1:
        from mcp.types import ErrorData

        return exceptions.McpError(ErrorData(code=code, message=message))
    error: Exception = vars(exceptions)["MCPError"](code, message)
    return error
