"""What the server answers, and the OpenAPI document of it and of the bodies that routes read."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llavakit.serving.chat_schema import ChatRequest, TokenizeRequest
from llavakit.serving.completions import CompletionRequest
from llavakit.serving.responses import ResponsesRequest

Finish = Literal["stop", "length", "tool_calls"]


class ErrorDetail(BaseModel):
    """What was wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error."""

    error: ErrorDetail


class CalledFunctionReply(BaseModel):
    """The function and the JSON of its arguments."""

    name: str
    arguments: str


class CallReply(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunctionReply


class CutCallReply(BaseModel):
    """A call that the end of the answer cut, as far as it came; it must not be run."""

    name: str
    arguments: str


class MessageReply(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[CallReply] | None = None
    cut_tool_calls: list[CutCallReply] | None = None


class Alternative(BaseModel):
    """A token that could have come; ``bytes`` is null where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenReply(Alternative):
    """A token of the answer, with the likeliest alternatives."""

    top_logprobs: list[Alternative]


class LogprobsReply(BaseModel):
    """Log probabilities of the model, before any sampling setting."""

    content: list[TokenReply]
    refusal: None = None


class ChoiceReply(BaseModel):
    """One of ``n`` answers."""

    index: int
    message: MessageReply
    logprobs: LogprobsReply | None
    finish_reason: Finish


class PromptDetails(BaseModel):
    """Of the prompt's tokens: reused ones, and those of images."""

    cached_tokens: int
    image_tokens: int


class UsageReply(BaseModel):
    """Tokens; the prompt counts once for all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatReply(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceReply]
    usage: UsageReply
    system_fingerprint: str | None
    service_tier: None = None


class OlderLogprobs(BaseModel):
    """Log probabilities in the form of the older completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One answer to one prompt."""

    index: int
    text: str
    logprobs: OlderLogprobs | None
    finish_reason: Finish


class CompletionReply(BaseModel):
    """Answers to prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReply
    system_fingerprint: str | None


class ResponseUsage(BaseModel):
    """Tokens of the input and of the output."""

    input_tokens: int
    input_tokens_details: PromptDetails
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseReply(BaseModel):
    """An answer of the Responses API; it also repeats the settings of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    incomplete_details: dict[str, str] | None
    error: None = None
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage
    store: Literal[False]
    previous_response_id: None = None


class ModelReply(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["llavakit"]
    root: str
    max_model_len: int


class ModelsReply(BaseModel):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[ModelReply]


class HealthReply(BaseModel):
    """Whether requests are answered."""

    status: Literal["ready", "loading", "failed", "stopping"]


class VersionReply(BaseModel):
    """Of llavakit."""

    version: str


class TokenizeReply(BaseModel):
    """Tokens of the prompt, images included."""

    count: int
    max_model_len: int


Documented = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Documented:
    """The documentation of error responses."""
    return {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "The request cannot be honoured as it stands",
    401: "The API key is missing or wrong",
    403: "The server is not called by this name",
    404: "No such model or path",
    405: "The path takes another method",
    408: "The body came too slowly",
    413: "The body or an image is too large",
    415: "The body is no JSON",
    429: "The server is full; try again after Retry-After seconds",
    500: "The server failed; its log says more",
    502: "The server behind this one answered badly",
    503: "The model is not loaded yet, or the server is going down",
    504: "The answer took too long",
}


_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    ResponsesRequest,
    CompletionRequest,
    TokenizeRequest,
)
_OPEN = ("/health", "/version")


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a body of this kind."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(app: FastAPI, *, model: str, guarded: bool) -> dict[str, Any]:
    """The document of an app, made once.

    Args:
        app: whose routes are documented.
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
            operation["responses"].pop("422", None)  # bad bodies are answered with 400
            if guarded and path not in _OPEN:
                operation["security"] = [{"key": []}]
    if guarded:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = result
    return result
