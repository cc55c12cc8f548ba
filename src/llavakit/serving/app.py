"""The ASGI application: which path answers what."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import llavakit
from llavakit._checks import checked
from llavakit.documents.reading import Model
from llavakit.serving.auth import Keys, check_host
from llavakit.serving.chat_schema import ChatRequest, TokenizeRequest
from llavakit.serving.completions import CompletionRequest
from llavakit.serving.edges import Edges
from llavakit.serving.errors import Refusal, refusal
from llavakit.serving.limits import linger
from llavakit.serving.replies import (
    ChatReply,
    CompletionReply,
    HealthReply,
    ModelReply,
    ModelsReply,
    ResponseReply,
    TokenizeReply,
    VersionReply,
    document,
    errors,
    json_body,
)
from llavakit.serving.responses import ResponsesRequest
from llavakit.serving.service import Service
from llavakit.serving.settings import ServerSettings

_READING = (400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504)


@checked
def create_app(
    backend: Model,
    settings: ServerSettings | None = None,
    *,
    loaded: Callable[[BaseException | None], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> FastAPI:
    """The server of a backend, to be run by any ASGI server.

    Nothing is started or opened here, and at most the model's configuration is read (for its
    name, if ``settings`` give none). Loading begins when the application starts (its lifespan),
    or with the first request where no lifespan is run. The backend is not closed at the end: it
    may be shared.

    Args:
        backend: who answers.
        settings: names, keys and limits.
        loaded: called when the model is ready (with None) or could not be loaded (with the
            error); on another thread.
        progress: called during the warm-up before that, with how many pieces of work are done, of
            how many, and the last one's name; on another thread.
    """
    settings = settings or ServerSettings()
    service = Service(backend, settings, loaded, progress)
    keys = Keys(settings.api_keys)

    def known_host(request: Request) -> None:
        check_host(request, settings.allowed_hosts)

    def known_client(request: Request) -> None:
        check_host(request, settings.allowed_hosts)
        keys.check(request)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.readiness.begin()
        try:
            yield
        finally:
            service.stop()

    app = FastAPI(
        title="llavakit",
        version=llavakit.__version__,
        summary="A LLaVA model, as OpenAI's clients ask for it.",
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(Edges)
    app.include_router(_open_routes(service), dependencies=[Depends(known_host)])
    app.include_router(_guarded_routes(service), dependencies=[Depends(known_client)])
    app.add_exception_handler(Refusal, _report_refusal(service))
    app.add_exception_handler(HTTPException, _report_http_error)
    app.add_exception_handler(Exception, _report_bug)
    app.openapi = functools.partial(  # type: ignore[method-assign]
        document, app, model=service.name, guarded=bool(settings.api_keys)
    )
    return app


def _open_routes(service: Service) -> APIRouter:
    """What a load balancer asks, without a key."""
    router = APIRouter()

    @router.get(
        "/health",
        response_model=HealthReply,
        responses={
            503: {"model": HealthReply, "description": "The model is not loaded"},
            **errors(403),
        },
    )
    async def health() -> Any:
        """Whether requests are answered: 200 only when the model is loaded."""
        state = service.state()
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @router.get("/version", response_model=VersionReply, responses=errors(403))
    async def version() -> Any:
        """The version of llavakit."""
        return {"version": llavakit.__version__}

    return router


def _guarded_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        response_model=ChatReply,
        responses={
            200: {
                "description": "The answer, or with stream=true its pieces as events",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **errors(*_READING),
        },
        openapi_extra=json_body(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation, whole or in pieces."""
        return await service.chat(request)

    @router.post(
        "/v1/responses",
        response_model=ResponseReply,
        responses={
            200: {
                "description": "The response, or with stream=true the events by which it grows",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **errors(*_READING),
        },
        openapi_extra=json_body(ResponsesRequest),
    )
    async def responses(request: Request) -> Response:
        """Answers a conversation in the notation of the Responses API; nothing is stored."""
        return await service.responses(request)

    @router.post(
        "/v1/completions",
        response_model=CompletionReply,
        responses={
            200: {
                "description": "The answers, or with stream=true their pieces as events",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **errors(*_READING),
        },
        openapi_extra=json_body(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Answers prompts, each of which stands for a user's message."""
        return await service.completions(request)

    @router.post(
        "/tokenize",
        response_model=TokenizeReply,
        responses=errors(*_READING),
        openapi_extra=json_body(TokenizeRequest),
    )
    async def tokenize(request: Request) -> Response:
        """Counts the tokens of a prompt, images included; nothing is run."""
        return await service.tokenize(request)

    @router.get("/v1/models", response_model=ModelsReply, responses=errors(401, 403, 503))
    async def models() -> Any:
        """The model that is served."""
        return {"object": "list", "data": [service.model()]}

    @router.get(
        "/v1/models/{model:path}", response_model=ModelReply, responses=errors(401, 403, 404, 503)
    )
    async def model(model: str) -> Any:
        """The model that is served, by its name."""
        service.check_name(model)
        return service.model()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **errors(401, 403),
        },
    )
    def metrics() -> Response:  # on a thread: a backend may take its time for its figures
        """Figures for Prometheus."""
        return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _report_refusal(service: Service) -> Callable[[Request, Exception], Any]:
    async def tell(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        service.metrics.refused(error.code)
        if error.unread:
            await linger(request)
        return error.response()

    return tell


async def _report_bug(request: Request, error: Exception) -> Response:
    return refusal(error).response()


async def _report_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    messages = {
        404: f"There is no {request.url.path}; chat completions are at /v1/chat/completions.",
        405: f"{request.url.path} does not take {request.method}.",
    }
    return Refusal(
        error.status_code,
        messages.get(error.status_code, str(error.detail)),
        code=codes.get(error.status_code, "http_error"),
        headers=error.headers,
    ).response()
