"""OpenTelemetry spans of requests, named after its conventions for generative AI (``gen_ai.*``).

Off unless :func:`enable` was called or ``LLAVAKIT_TRACING=1`` is set; then every request to any
backend, in this process or on a server, is a span from its submission to its end. Spans hold
figures and settings: never a prompt, an answer, an image, a tool, or the text of an error. Needs
``llavakit[tracing]``, and an exporter that the program sets up.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llavakit.errors import MissingDependencyError, RequestCancelledError
from llavakit.streams import AnswerStream
from llavakit.values import Chunk, Request

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

VARIABLE = "LLAVAKIT_TRACING"
_SYSTEM = "llavakit"
_tracer: Tracer | None = None
_asked = False  # whether the variable was read


def enable(provider: TracerProvider | None = None) -> None:
    """Make spans of all requests from now on.

    Args:
        provider: takes the spans; None uses the program's own.

    Raises:
        MissingDependencyError: ``llavakit[tracing]`` is not installed.
    """
    global _tracer, _asked
    try:
        from opentelemetry import trace
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise MissingDependencyError(
            'Tracing needs an extra: pip install "llavakit[tracing]".'
        ) from error
    _tracer, _asked = trace.get_tracer("llavakit", tracer_provider=provider), True


def disable() -> None:
    """Make no more spans; those of running requests still end."""
    global _tracer, _asked
    _tracer, _asked = None, True


def enabled() -> bool:
    """Return whether requests have spans; reads the variable if neither function was called."""
    global _asked
    if not _asked:
        _asked = True
        if os.environ.get(VARIABLE, "").strip().lower() in ("1", "true", "yes", "on"):
            enable()
    return _tracer is not None


@contextlib.contextmanager
def received(headers: Mapping[str, str]) -> Iterator[None]:
    """Make requests part of the trace that ``traceparent`` names, within the context.

    A current span, such as that of an instrumented server, takes precedence.

    Args:
        headers: HTTP headers, with names in lower case.
    """
    if not enabled() or "traceparent" not in headers:
        yield
        return
    from opentelemetry import context, trace
    from opentelemetry.propagate import extract

    if trace.get_current_span().get_span_context().is_valid:
        yield
        return
    context_headers = {
        name: headers[name] for name in ("traceparent", "tracestate") if name in headers
    }
    token = context.attach(extract(context_headers))
    try:
        yield
    finally:
        context.detach(token)


def traced(
    submit: Callable[[Request], AnswerStream], request: Request, model: Callable[[], str]
) -> AnswerStream:
    """Submit a request within a span that ends with its answer.

    Args:
        submit: takes the request.
        request: what is asked.
        model: returns the model's name.
    """
    if _tracer is None:
        return submit(request)
    from opentelemetry.trace import SpanKind, use_span

    name = model()
    span = _tracer.start_span(
        f"chat {name}", kind=SpanKind.CLIENT, attributes=_attributes(request, name)
    )
    ending = _Ending(span)
    try:
        with use_span(span, record_exception=False, set_status_on_exception=False):
            stream = submit(request)
    except BaseException as error:
        ending(error)
        raise
    stream.watch(ending)
    return stream


class _Ending:
    """Watches an answer, and ends its span with it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began = time.monotonic()
        self._first = True

    def __call__(self, event: Chunk | BaseException) -> None:
        if isinstance(event, BaseException):
            self._failed(event)
            return
        if self._first:
            self._first = False
            waited = time.monotonic() - self._began
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", waited)
        if event.finish_reason is not None:
            self._over(event)

    def _over(self, last: Chunk) -> None:
        self._span.set_attribute("gen_ai.response.finish_reasons", [str(last.finish_reason)])
        if last.usage is not None:
            self._span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": last.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": last.usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": last.usage.cached_tokens,
                    "llavakit.usage.image_tokens": last.usage.image_tokens,
                }
            )
        self._span.end()

    def _failed(self, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        if isinstance(error, RequestCancelledError):  # cancelled by its caller; not an error
            self._span.set_attribute("gen_ai.response.finish_reasons", ["cancelled"])
        else:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _attributes(request: Request, model: str) -> dict[str, Any]:
    params = request.params
    structured = params.json_schema is not None
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _SYSTEM,
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
        "gen_ai.output.type": "json" if structured else "text",
        "llavakit.request.images": sum(len(message.images) for message in request.messages),
        "llavakit.request.videos": sum(len(message.videos) for message in request.messages),
    }
    if params.top_k:
        attributes["gen_ai.request.top_k"] = float(params.top_k)
    if params.seed is not None:
        attributes["gen_ai.request.seed"] = params.seed
    return attributes
