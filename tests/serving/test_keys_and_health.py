"""Who may come in, when the server is ready, and what it counts."""

import asyncio
import logging
import re
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import llavakit
from llavakit.errors import CheckpointError, EngineClosedError, ParameterError
from llavakit.serving import ServerSettings, create_app
from llavakit.serving.settings import read_keys
from llavakit.testing import FakeBackend
from llavakit.values import Chunk, Completion, Usage
from tests.serving.asgi import Call
from tests.serving.conftest import CHAT, OPEN, Scripted, begun, eventually, figures, routes, saying

_NAME = re.compile(r"`([a-z0-9_]+[a-z])(?:\{[a-z_]+\})?`")
KEYS = ("first-key", "second-key")
GUARDED = [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/tokenize")]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer ", "Bearer first", "Bearer first-key2", "Basic first-key",
              "first-key", "Bearer first-key second-key"]
)  # fmt: skip
async def test_without_a_key_nothing_is_told(client, method, path, shown):
    app = client(api_keys=KEYS)
    headers = {} if shown is None else {"Authorization": shown}
    answer = await app.request(method, path, headers=headers, json=saying())
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["type"] == "authentication_error"
    assert app.backend.requests == []


async def test_every_route_asks_for_a_key_but_those_that_are_open(client):
    app = client(api_keys=KEYS)
    shown = {"Authorization": f"Bearer {KEYS[0]}"}
    found = routes(app.app)
    assert {path for _, path in found} >= {path for _, path in GUARDED} | OPEN
    for method, path in found:
        without = await app.request(method, path, json=saying())
        assert without.status_code == (200 if path in OPEN else 401), (method, path)
        known = await app.request(method, path, json=saying(), headers=shown)
        assert known.status_code not in (401, 403, 405), (method, path)


@pytest.mark.parametrize("key", KEYS)
async def test_every_key_of_the_file_lets_in(client, key):
    app = client(api_keys=KEYS)
    headers = {"Authorization": f"Bearer {key}"}
    assert (await app.post(CHAT, json=saying(), headers=headers)).status_code == 200


async def test_health_and_version_need_no_key(client):
    app = client(api_keys=KEYS)
    assert (await app.get("/health")).json() == {"status": "ready"}
    assert (await app.get("/version")).json() == {"version": llavakit.__version__}


async def test_keys_are_never_told(client, caplog):
    caplog.set_level(logging.DEBUG)
    app = client(api_keys=KEYS)
    headers = {"Authorization": "Bearer first-key"}
    texts = [
        (await app.post(CHAT, json=saying(), headers=headers)).text,
        (await app.get("/metrics", headers=headers)).text,
        (await app.get("/openapi.json")).text,
        repr(ServerSettings(api_keys=KEYS)),
        caplog.text,
    ]
    assert not any(key in text for key in KEYS for text in texts)


async def test_a_key_that_is_given_alone_is_not_its_letters(client):
    app = client(api_keys="first-key")
    for shown, status in (("first-key", 200), ("f", 401), ("first", 401)):
        headers = {"Authorization": f"Bearer {shown}"}
        assert (await app.get("/v1/models", headers=headers)).status_code == status
    assert ServerSettings(allowed_hosts="gpu-box").allowed_hosts == ("gpu-box",)


@pytest.mark.parametrize("keys", [["first-key", 5], ["first-key", ""], b"first-key", 5])
def test_keys_that_are_none_are_refused_and_not_told(keys):
    with pytest.raises(ParameterError, match=r"^api_keys must be") as refused:
        ServerSettings(api_keys=keys)
    assert "first-key" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "switch"), [("allow_urls", "True or False"), ("warm_up", 'True, False or "load"')]
)
def test_a_switch_that_is_neither_on_nor_off_is_refused(name, switch):
    with pytest.raises(ParameterError, match=f"{name} is 'no'; it must be {switch}"):
        ServerSettings(**{name: "no"})


def test_a_file_of_keys_has_one_a_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n  second  \nfirst\n")
    assert read_keys(file) == ("first", "second")


@pytest.mark.parametrize("content", ["", "# only this\n", "two words\n", "schlüssel\n"])
def test_files_without_usable_keys_are_refused_and_not_quoted(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ParameterError) as caught:
        read_keys(file)
    assert content.strip() not in str(caught.value) or not content.strip()
    with pytest.raises(ParameterError, match="cannot be read"):
        read_keys(tmp_path / "none")


async def test_a_server_on_loopback_answers_to_its_own_names_only(client):
    app = client(allowed_hosts=("localhost", "127.0.0.1", "::1"))
    for host, status in [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ]:
        answer = await app.get("/health", headers={"Host": host})
        assert answer.status_code == status, host


class Slow(FakeBackend):
    """Loads when it is told to."""

    def __init__(self, error=None):
        super().__init__()
        self.go = threading.Event()
        self.error = error

    def submit(self, request):
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return super().submit(request)


async def test_it_is_ready_only_when_the_model_is_loaded(client):
    backend = Slow()
    told = []
    app = create_app(backend, ServerSettings(), loaded=told.append)
    assert backend.requests == [] and told == []
    service = app.state.service
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        health = await http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        refused = await http.post(CHAT, json=saying())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        assert refused.headers["retry-after"]
        backend.go.set()
        eventually(lambda: service.readiness.state, lambda state: state == "ready")
        assert (await http.get("/health")).status_code == 200
        assert (await http.post(CHAT, json=saying())).status_code == 200
    assert told == [None]
    assert service.readiness.state == "stopping"


class Warming(FakeBackend):
    """Warms up, in two pieces, when it is told to."""

    def __init__(self, error=None):
        super().__init__()
        self.go = threading.Event()
        self.loaded = threading.Event()
        self.error = error

    def warm_up(self, progress=None):
        progress(1, 2, "a question")
        self.loaded.set()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        progress(2, 2, "a batch")


async def test_it_is_ready_only_when_the_model_is_warm(client):
    backend = Warming()
    told, pieces = [], []
    app = create_app(
        backend, ServerSettings(), loaded=told.append, progress=lambda *a: pieces.append(a)
    )
    service = app.state.service
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        assert await asyncio.to_thread(backend.loaded.wait, 30)
        assert len(backend.requests) == 1, "first of all it has to answer"
        assert (await http.get("/health")).status_code == 503
        assert (await http.post(CHAT, json=saying())).status_code == 503
        assert (told, pieces) == ([], [(1, 2, "a question")])
        backend.go.set()
        eventually(lambda: service.readiness.state, lambda state: state == "ready")
        assert (await http.post(CHAT, json=saying())).status_code == 200
    assert told == [None]
    assert pieces[1:] == [(2, 2, "a batch")]


@pytest.mark.parametrize(("how", "asked"), [("load", 1), (False, 0)])
async def test_warming_up_can_be_left_out(how, asked):
    backend = Warming(AssertionError("nobody asked for it"))
    service = create_app(backend, ServerSettings(warm_up=how)).state.service
    service.readiness.begin()
    eventually(lambda: service.readiness.state, lambda state: state != "loading")
    assert (service.readiness.state, len(backend.requests)) == ("ready", asked)
    assert not backend.loaded.is_set()


def test_a_server_that_is_stopped_while_it_warms_up_tells_of_no_error():
    backend = Warming(EngineClosedError("The engine was closed."))
    told = []
    service = create_app(
        backend, ServerSettings(), loaded=told.append, progress=lambda *a: None
    ).state.service
    service.readiness.begin()
    assert backend.loaded.wait(30)
    service.stop()
    backend.go.set()
    service.readiness._thread.join(30)
    assert (told, service.readiness.state) == ([], "stopping")


async def test_a_model_that_cannot_be_loaded_is_told_without_its_path(client):
    backend = Slow(CheckpointError("/secret/path is broken."))
    told = []
    app = create_app(backend, ServerSettings(), loaded=told.append)
    backend.go.set()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as http:
        await http.get("/health")  # without a lifespan, the first who asks begins it
        eventually(lambda: app.state.service.readiness.state, lambda state: state == "failed")
        health = await http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        refused = await http.post(CHAT, json=saying())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")
        assert "secret" not in refused.text
    assert told == [backend.error]


async def test_metrics_have_the_names_of_vllm_with_our_prefix(client):
    app = client([Completion("one two three", usage=Usage(10, 4))])
    await app.post(CHAT, json=saying())
    await app.post(CHAT, json=saying(stream=True))
    await app.post(CHAT, json=saying(beams=1))
    answer = await app.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
    ):
        assert f"llavakit:{name}" in families, name
    told = figures(answer.text)
    assert told["prompt_tokens_total"] == 20 and told["generation_tokens_total"] == 8
    assert told["time_to_first_token_seconds_count"] == 2
    assert told["inter_token_latency_seconds_count"] == 4
    samples = families["llavakit:request_success"].samples
    ends = {one.labels["finished_reason"]: one.value for one in samples if "_total" in one.name}
    assert ends == {"stop": 2, "length": 0, "tool_calls": 0, "abort": 0, "error": 0}
    assert {one.labels["model_name"] for one in samples} == {"fake"}
    assert told["request_errors_total"] == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_of_all_choices_are_counted_and_their_one_prompt_once(client, stream):
    app = client([Completion("one", usage=Usage(10, 4)), Completion("two", usage=Usage(10, 7))])
    await app.post(CHAT, json=saying(stream=stream, n=2))
    told = figures((await app.get("/metrics")).text)
    assert told["prompt_tokens_total"] == 10 and told["generation_tokens_total"] == 11
    assert told["request_success_total"] == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_every_answer_is_timed_from_the_request_to_its_own_word_and_end(client, stream):
    backend = Scripted()
    app = client(backend, model_name="llava")
    asked = time.monotonic()
    call = Call(app.app, CHAT, saying(stream=stream, n=2) | {"model": "llava"})
    first, second = await begun(backend, 2)
    begins = time.monotonic()
    least = 0.0
    for channel in (first, second):  # the second one ends later
        await asyncio.sleep(0.1)
        least += time.monotonic() - begins
        channel.put(Chunk("word"))
        channel.put(Chunk(finish_reason="stop"))
    await call.end()
    most = 2 * (time.monotonic() - asked)

    told = app.service.metrics.render().decode()
    found = figures(told)
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert found[f"{name}_count"] == 2
        assert least <= found[f"{name}_sum"] <= most, name
    samples = [one for family in text_string_to_metric_families(told) for one in family.samples]
    assert {one.labels["model_name"] for one in samples} == {"llava"}


@pytest.mark.enable_socket
def test_the_engines_figures_are_among_them(served):
    told = served.metrics()
    assert told["prefix_cache_queries_total"] >= told["prefix_cache_hits_total"]
    for name in ("eager", "static", "captured", "static_mixed", "captured_mixed"):
        assert f"engine_{name}_steps_total" in told
    assert told["kv_cache_tokens"] > 0 and 0 <= told["kv_cache_usage_perc"] <= 1
    assert {"images_encoded_total", "engine_steps_total"} <= set(told)


@pytest.mark.enable_socket
def test_every_figure_of_the_documentation_exists(served):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    rows = text.partition("## Metrics")[2].partition("## In your")[0].splitlines()
    named = {
        name for row in rows if row.startswith("| `") for name in _NAME.findall(row.split("|")[1])
    }
    assert len(named) > 10
    httpx.get(f"{served.url}/v1/models/none")  # errors are counted from the first of each code on
    told = served.metrics()
    for name in named:
        assert name in told or f"{name}_count" in told, name


async def test_two_apps_count_for_themselves(client):
    one, other = client(), client()
    await one.post(CHAT, json=saying())
    assert figures((await one.get("/metrics")).text)["prompt_tokens_total"] == 1
    assert figures((await other.get("/metrics")).text)["prompt_tokens_total"] == 0
