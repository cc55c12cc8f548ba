"""The OpenAPI document, with the bodies that the routes read for themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llavakit.serving.schema import ChatRequest, TokenizeRequest

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (ChatRequest, TokenizeRequest)
_OPEN = ("/health", "/version")


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a body of this kind."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(app: FastAPI, *, model: str, guarded: bool) -> dict[str, Any]:
    """The document of an app, made once.

    Args:
        app: whose routes are told.
        model: the name of the one model.
        guarded: whether it asks for a key.
    """
    if app.openapi_schema:
        return app.openapi_schema
    result = FastAPI.openapi(app)
    _, bodies = models_json_schema([(kind, "validation") for kind in _BODIES], ref_template=_REF)
    components = result.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(bodies["$defs"])
    for kind in _BODIES:
        field = schemas[kind.__name__]["properties"]["model"]
        field.clear()
        field.update({"type": "string", "enum": [model]})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in result["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # bad bodies are told with 400
            if guarded and path not in _OPEN:
                operation["security"] = [{"key": []}]
    if guarded:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = result
    return result
