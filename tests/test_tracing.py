"""Spans of requests: what they tell, when they end, and whose they are."""

import asyncio
import gc
import subprocess
import sys
import threading

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import llavakit
from llavakit import Image, Message, SamplingParams, Text, tracing
from llavakit.errors import ImageDecodeError, OutOfMemoryError
from llavakit.serving import ServerSettings, create_app
from llavakit.streams import gather
from llavakit.testing import FakeBackend
from llavakit.values import Completion, Usage

SECRET = "xyzzy-secret"
SAID = "plugh-said"


@pytest.fixture
def provider():
    return TracerProvider()


@pytest.fixture
def spans(provider):
    """The spans that have ended."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.enable(provider)
    yield exporter.get_finished_spans
    tracing.disable()


def test_a_span_tells_settings_and_figures(spans):
    usage = Usage(prompt_tokens=70, completion_tokens=3, cached_tokens=64, image_tokens=64)
    backend = FakeBackend([Completion("ok", usage=usage)], name="demo")

    backend.generate("Hi", SamplingParams(9, temperature=0.5, top_p=0.9, top_k=4, seed=7))

    (span,) = spans()
    assert span.name == "chat demo"
    told = dict(span.attributes)
    assert told.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llavakit",
        "gen_ai.request.model": "demo",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 4.0,
        "gen_ai.request.seed": 7,
        "gen_ai.output.type": "text",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 70,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "llavakit.usage.image_tokens": 64,
        "llavakit.request.images": 0,
        "llavakit.request.videos": 0,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_nothing_that_was_said_or_shown_is_in_a_span(spans, tmp_path):
    backend = FakeBackend([SAID, OutOfMemoryError(SECRET)])
    message = Message("user", [Image(SECRET.encode()), Text(SECRET)])

    backend.generate(message, SamplingParams(stop=(SECRET,)))
    with pytest.raises(OutOfMemoryError):
        backend.generate(message)

    told = "".join(span.to_json() for span in spans())
    assert len(spans()) == 2
    assert SECRET not in told and SAID not in told


def test_an_error_is_told_by_its_class(spans):
    backend = FakeBackend([OutOfMemoryError("no room")])

    with pytest.raises(OutOfMemoryError):
        backend.generate("Hi")

    (span,) = spans()
    assert span.attributes["error.type"] == "OutOfMemoryError"
    assert span.status.status_code is StatusCode.ERROR


def test_a_request_that_is_refused_has_a_span_too(spans, demo_backend):
    with pytest.raises(ImageDecodeError):
        demo_backend.ask(b"no image", "What is this?")

    (span,) = spans()
    assert span.attributes["error.type"] == "ImageDecodeError"
    assert span.attributes["llavakit.request.images"] == 1


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_request_that_is_left_ends_its_span_without_an_error(spans, leave):
    stream = FakeBackend(hang=True).stream("Hi")
    next(stream)
    assert spans() == ()

    if leave == "close":
        stream.close()
    del stream
    gc.collect()

    (span,) = spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert span.status.status_code is StatusCode.UNSET


def test_the_real_engine_ends_spans_with_the_answer_and_not_when_it_is_read(spans, demo_backend):
    stream = demo_backend.stream("What is a circle?", SamplingParams(8, temperature=0))
    deadline = threading.Event()
    for _ in range(600):
        if spans():
            break
        deadline.wait(0.05)

    (span,) = spans()
    answer = gather(stream)
    assert span.attributes["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens
    assert span.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens


def test_each_of_many_requests_at_once_has_one_span(spans):
    backend = FakeBackend()
    threads = [threading.Thread(target=backend.generate, args=("Hi",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(spans()) == 20


async def test_spans_belong_to_the_callers_span_also_in_async_calls(spans, provider):
    backend = FakeBackend()
    tracer = provider.get_tracer("test")

    with tracer.start_as_current_span("chain") as outer:
        backend.generate("Hi")
        await backend.agenerate("Hi")

    inner = [span for span in spans() if span.name == "chat fake"]
    assert len(inner) == 2
    assert {span.parent.span_id for span in inner} == {outer.get_span_context().span_id}


async def test_a_servers_spans_belong_to_the_clients_trace(spans):
    app = create_app(FakeBackend(), ServerSettings(warm_up=False))
    app.state.service.readiness.begin()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.01)
        for stream in (False, True):
            await client.post(
                "/v1/chat/completions",
                json=body | {"stream": stream},
                headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
            )
        await client.post("/v1/chat/completions", json=body)
        bad = await client.post(
            "/v1/chat/completions", json=body, headers={"traceparent": "nonsense"}
        )

    assert bad.status_code == 200
    ids = [f"{span.context.trace_id:032x}" for span in spans()]
    assert ids[:2] == [trace, trace]
    assert trace not in ids[2:] and len(set(ids[2:])) == 2


def test_nothing_is_traced_unless_it_is_switched_on(provider):
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.enable(provider)
    tracing.disable()

    FakeBackend().generate("Hi")

    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(("value", "loaded"), [("0", "False"), ("1", "True")])
def test_the_variable_switches_it_on_and_nothing_is_imported_before(value, loaded):
    program = (
        "import sys; from llavakit.testing import FakeBackend; FakeBackend().generate('Hi'); "
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"LLAVAKIT_TRACING": value, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.returncode) == (loaded, 0), done.stderr


def test_a_missing_extra_is_told_in_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with pytest.raises(llavakit.errors.MissingDependencyError, match=r"llavakit\[tracing\]"):
        tracing.enable()
