"""The door of a cluster: one app that takes all requests and gives each to a replica.

It holds no model. A request that a replica did not answer, because it died or broke off, is given
to another one as long as the client has seen nothing of an answer; after that the client receives
an error event. A stream ends with ``[DONE]`` only if the replica said that it is complete.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import ExitStack

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

import llavakit
from llavakit.cluster.affinity import beginnings
from llavakit.cluster.failover import Failover, Replicas, going_down
from llavakit.cluster.wire import WireRequest
from llavakit.serving.auth import Keys, check_host
from llavakit.serving.edges import Edges
from llavakit.serving.errors import Refusal, refusal
from llavakit.serving.limits import Gate, linger, read_body
from llavakit.serving.settings import ServerSettings

_CONVERSATIONS = ("/v1/chat/completions", "/v1/responses")
_OPEN = ("/health", "/version", "/openapi.json")
_PASSED = (b"content-type", b"accept", b"traceparent", b"tracestate", b"user-agent")
_METHODS = ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]
_LARGE = 64 << 10  # bytes of JSON that are not parsed on the event loop


def create_ingress(replicas: Replicas, settings: ServerSettings) -> FastAPI:
    """The app that hands requests on; keys, host names and sizes are checked here.

    Args:
        replicas: whom they are given to.
        settings: ``max_open_requests`` and ``max_memory_bytes`` are those of the whole cluster.
    """
    door = Ingress(replicas, settings)
    app = FastAPI(title="llavakit", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = door
    app.add_middleware(Edges)
    app.add_api_route("/health", door.health, methods=["GET"])
    app.add_api_route("/version", door.version, methods=["GET"])
    app.add_api_route("/metrics", door.metrics, methods=["GET"])
    app.add_api_route("/{path:path}", door.hand_on, methods=_METHODS)
    app.add_exception_handler(Refusal, _error_response)
    app.add_exception_handler(Exception, _error_response)
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    reason = refusal(error)
    if reason.unread:
        await linger(request)
    return reason.response()


class Ingress:
    """What the routes do.

    Attributes:
        stopping: no more requests are taken.
    """

    def __init__(self, replicas: Replicas, settings: ServerSettings) -> None:
        self._replicas = replicas
        self._settings = settings
        self._keys = Keys(settings.api_keys)
        self._gate = Gate(settings)
        self._open: weakref.WeakSet[Failover] = weakref.WeakSet()
        self.stopping = False

    # What llavakit.serving.Server asks of the service of an app.
    @property
    def readiness(self) -> Ingress:
        """The object whose ``stop`` ends the taking of requests."""
        return self

    @property
    def answers(self) -> Ingress:
        """The object whose ``close_all`` ends all answers."""
        return self

    def stop(self) -> None:
        """No more requests."""
        self.stopping = True

    def close_all(self) -> None:
        """Ends all answers that are open with an error."""
        for one in list(self._open):
            one.close()

    async def health(self, request: Request) -> Response:
        """Whether any replica answers; 200 only then."""
        check_host(request, self._settings.allowed_hosts)
        states = await self._replicas.states()
        running = states.get("RUNNING", 0)
        state = "stopping" if self.stopping else "ready" if running else "loading"
        report = {"status": state, "replicas": states}
        return JSONResponse(report, 200 if state == "ready" else 503)

    async def version(self, request: Request) -> Response:
        """The version of llavakit."""
        check_host(request, self._settings.allowed_hosts)
        return JSONResponse({"version": llavakit.__version__})

    async def metrics(self, request: Request) -> Response:
        """The figures of all replicas."""
        self._check(request)
        figures = await self._replicas.metrics()
        return Response(figures, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def hand_on(self, request: Request) -> Response:
        """Gives the request to a replica."""
        self._check(request)
        if self.stopping:
            raise going_down(self._settings, unread=True)
        with ExitStack() as held:
            share = held.enter_context(self._gate.enter())
            body = b""
            if request.method == "POST":
                try:
                    body = await read_body(request, self._settings, share)
                except ClientDisconnect:
                    return Response(status_code=499)
            keys: tuple[str, ...] = ()
            if request.scope["path"] in _CONVERSATIONS:
                large = len(body) > _LARGE
                keys = await asyncio.to_thread(beginnings, body) if large else beginnings(body)
            answer = Failover(
                self._replicas, _call(request, body), keys, self._settings, held.pop_all()
            )
            self._open.add(answer)
            return answer

    def _check(self, request: Request) -> None:
        check_host(request, self._settings.allowed_hosts)
        # Not request.url, which the Host header is a part of: this is the path that is handed on.
        if request.scope["path"] not in _OPEN:
            self._keys.check(request)


def _call(request: Request, body: bytes) -> WireRequest:
    scope = request.scope
    return WireRequest(
        method=request.method,
        path=scope["path"],
        query=scope["query_string"],
        headers=tuple((name, value) for name, value in scope["headers"] if name in _PASSED),
        body=body,
    )
