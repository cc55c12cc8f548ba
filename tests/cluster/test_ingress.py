"""The door of a cluster, with whole apps as replicas; they are lost where a test says so."""

import asyncio
import json

import httpx
import pytest

from llavakit.cluster.affinity import Affinity
from llavakit.cluster.failover import ReplicaLost
from llavakit.cluster.handles import merged_figures
from llavakit.cluster.ingress import create_ingress
from llavakit.cluster.wire import END, response
from llavakit.serving import ServerSettings, create_app
from llavakit.testing import FakeBackend
from tests.serving.asgi import Call
from tests.serving.conftest import OPEN, eventually, routes

ANSWER = "one two three four five"
ASKED = {"model": "fake", "messages": [{"role": "user", "content": "Count."}]}
STREAM = ASKED | {"stream": True}


class Apps:
    """Replicas in this process.

    Attributes:
        asked: the names of the replicas that were asked, in order.
        handed: the paths that they were asked for.
        lost_after: for the replica of that name: how many bodies it gives, and how it is lost.
    """

    def __init__(self, backends, settings):
        self.backends = backends
        self.apps = {name: create_app(one, settings) for name, one in backends.items()}
        for app in self.apps.values():
            app.state.service.readiness.begin()
        eventually(
            lambda: {app.state.service.readiness.state for app in self.apps.values()},
            lambda states: "loading" not in states,
        )
        self.affinity = Affinity()
        self.asked = []
        self.handed = []
        self.lost_after = {}
        self.gone = set()

    async def ask(self, call, keys, avoid):
        living = [name for name in self.apps if name not in self.gone]
        while not living:
            await asyncio.sleep(0.01)
            living = [name for name in self.apps if name not in self.gone]
        name = self.affinity.ranked(living, keys, avoid)[0]
        self.asked.append(name)
        self.handed.append(call.path)
        self.affinity.took(name, keys)
        bodies, how = self.lost_after.get(name, (None, None))
        try:
            yield [("from", name)]
            async for batch in response(self.apps[name], call):
                for piece in batch:
                    if bodies is not None and piece != END and piece[0] == "body":
                        bodies -= 1
                        if bodies < 0:
                            raise ReplicaLost
                    if bodies is not None and piece == END:
                        return
                    yield [piece]
        except ReplicaLost:
            if how == "raises":
                raise
        finally:
            self.affinity.finished(name)

    async def states(self):
        return {"RUNNING": len(self.apps) - len(self.gone)}

    async def metrics(self):
        return merged_figures(
            {name: app.state.service.metrics.render() for name, app in self.apps.items()}
        )


@pytest.fixture
def cluster():
    """Makes a door before replicas: cluster(names, **settings)."""

    def make(names="ab", hang=False, **settings):
        inner = ServerSettings(model_name="fake", warm_up=False)
        apps = Apps({name: FakeBackend([ANSWER], hang=hang) for name in names}, inner)
        app = create_ingress(apps, ServerSettings(**({"request_timeout": 10} | settings)))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        client.apps, client.app = apps, app
        return client

    return make


async def ask(client, body=ASKED, **more):
    return await client.post("/v1/chat/completions", json=body, **more)


def events(text):
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def said(found):
    return "".join(
        event["choices"][0]["delta"].get("content", "")
        for event in found
        if event != "[DONE]" and event.get("choices")
    )


async def test_answers_are_those_of_the_replicas_whole_and_streamed(cluster):
    client = cluster()

    whole, streamed = await ask(client), await ask(client, STREAM)

    assert whole.json()["choices"][0]["message"]["content"] == ANSWER
    assert streamed.headers["content-type"].startswith("text/event-stream")
    found = events(streamed.text)
    assert said(found) == ANSWER
    assert found[-1] == "[DONE]"


async def test_errors_are_those_of_the_replicas_too(cluster):
    client = cluster()

    wrong = await ask(client, ASKED | {"model": "other"})
    nowhere = await client.get("/nowhere")
    method = await client.put("/v1/models")

    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    assert (nowhere.status_code, method.status_code) == (404, 405)


@pytest.mark.parametrize("how", ["raises", "ends without an end"])
@pytest.mark.parametrize("body", [ASKED, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("bodies", [0, 1])
async def test_a_request_of_which_nothing_was_answered_goes_to_another_replica(
    cluster, how, body, bodies
):
    client = cluster()
    client.apps.lost_after["a"] = (bodies, how)

    answer = await ask(client, body)

    assert client.apps.asked == ["a", "b"]
    assert answer.status_code == 200
    if body is STREAM:
        assert said(events(answer.text)) == ANSWER
        assert events(answer.text)[-1] == "[DONE]"
        assert answer.text.count('"role":"assistant"') == 1
    else:
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("bodies", [0, 1, 4])
async def test_a_response_of_which_nothing_was_said_goes_to_another_replica(cluster, bodies):
    client = cluster()
    client.apps.lost_after["a"] = (bodies, "raises")  # 4: all events before the first word
    body = {"model": "fake", "input": "Count.", "stream": True}
    answer = await client.post("/v1/responses", json=body)
    assert client.apps.asked == ["a", "b"]
    assert answer.text.count("event: response.created") == 1
    assert answer.text.count("event: response.completed") == 1


@pytest.mark.parametrize("how", ["raises", "ends without an end"])
async def test_a_stream_that_is_cut_ends_with_an_error_event_and_no_done(cluster, how):
    client = cluster()
    client.apps.lost_after["a"] = (3, how)  # the opening and two words

    answer = await ask(client, STREAM)

    found = events(answer.text)
    assert client.apps.asked == ["a"]
    assert said(found) == "one two"
    assert found[-1]["error"]["code"] == "replica_lost"
    assert "[DONE]" not in found


async def test_a_stream_that_lacks_only_its_end_mark_is_no_whole_one(cluster):
    client = cluster()
    client.apps.lost_after["a"] = (100, "ends without an end")

    found = events((await ask(client, STREAM)).text)

    assert found[-1]["error"]["code"] == "replica_lost"


async def test_a_request_that_ends_every_replica_ends_few_of_them(cluster):
    client = cluster("abcdef")
    client.apps.lost_after = dict.fromkeys("abcdef", (0, "raises"))

    answer = await ask(client)

    assert len(client.apps.asked) == 3
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "replica_lost"
    assert answer.headers["retry-after"]


async def test_a_replica_that_goes_down_is_left_for_another(cluster):
    client = cluster()
    client.apps.apps["a"].state.service.stop()

    answer = await ask(client)

    assert client.apps.asked == ["a", "b"]
    assert answer.status_code == 200


async def test_requests_wait_for_a_replica_while_there_is_none(cluster):
    client = cluster()
    client.apps.gone = {"a", "b"}
    waiting = asyncio.create_task(ask(client))
    await asyncio.sleep(0.05)
    health = await client.get("/health")

    client.apps.gone = {"a"}
    answer = await waiting

    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert answer.status_code == 200


async def test_requests_do_not_wait_for_ever(cluster):
    client = cluster(request_timeout=0.05, ping_seconds=0.05)
    client.apps.gone = {"a", "b"}

    answer = await ask(client)

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


async def test_a_conversation_stays_where_it_began(cluster):
    client = cluster("abc")
    first = {"role": "user", "content": "Count."}
    turns = [first]
    for _ in range(4):
        await ask(client, {"model": "fake", "messages": turns})
        turns = [*turns, {"role": "assistant", "content": ANSWER}, first]

    assert len(set(client.apps.asked)) == 1


async def test_a_client_that_leaves_ends_its_request(cluster):
    client = cluster("a", hang=True)
    call = Call(client.app, "/v1/chat/completions", STREAM)
    await call.until(lambda: b"five" in call.sent)

    call.leave()
    await call.end()

    assert client.apps.backends["a"].cancelled == 1
    assert client.apps.affinity.load("a") == 0


async def test_signs_of_life_go_out_and_do_not_keep_a_request_from_another_replica(cluster):
    inner = ServerSettings(model_name="fake", warm_up=False, ping_seconds=0.02)
    client = cluster()
    apps = client.apps
    apps.apps["a"] = create_app(FakeBackend([""], hang=True), inner)
    apps.apps["a"].state.service.readiness.begin()
    eventually(lambda: apps.apps["a"].state.service.readiness.state, lambda one: one == "ready")
    apps.lost_after["a"] = (3, "raises")  # the opening and two signs of life

    answer = await ask(client, STREAM)

    assert apps.asked == ["a", "b"]
    assert ": still working" in answer.text
    pieces = [one for one in answer.text.split("\n\n") if one.startswith("data: ")]
    found = events("\n\n".join(pieces))
    assert said(found) == ANSWER
    assert found[-1] == "[DONE]"


async def test_keys_and_host_names_are_checked_at_the_door(cluster):
    client = cluster(api_keys=("secret",), allowed_hosts=("test",))

    without = await ask(client)
    known = await ask(client, headers={"Authorization": "Bearer secret"})
    elsewhere = await ask(client, headers={"Authorization": "Bearer secret", "Host": "evil"})
    figures = await client.get("/metrics")

    assert (without.status_code, known.status_code, elsewhere.status_code) == (401, 200, 403)
    assert figures.status_code == 401
    assert client.apps.asked == ["a"]
    assert (await client.get("/health")).status_code == 200


async def test_the_door_asks_for_a_key_wherever_the_app_behind_it_would(cluster):
    client = cluster(api_keys=("secret",))
    behind = routes(client.apps.apps["a"])
    assert {path for _, path in behind} > OPEN
    for method, path in [*routes(client.app), *behind]:
        answer = await client.request(method, path, json=ASKED)
        assert (answer.status_code == 401) == (path not in OPEN), (method, path)
    assert set(client.apps.handed) == {"/openapi.json"}


@pytest.mark.parametrize(
    ("path", "host"), [("/heal\tth", "test"), ("/v1/models", "test/health?"), ("//health", "test")]
)
async def test_the_path_that_is_checked_is_the_one_that_is_handed_on(cluster, path, host):
    client = cluster(api_keys=("secret",))
    call = await Call(client.app, path, b"", method="GET", headers={"host": host}).end()
    assert call.status == 401
    assert client.apps.asked == []


async def test_bodies_that_are_too_long_never_reach_a_replica(cluster):
    client = cluster(max_body_bytes=100)

    answer = await ask(client, ASKED | {"user": "x" * 200})

    assert answer.status_code == 413
    assert client.apps.asked == []


async def test_figures_are_told_apart_by_their_replica(cluster):
    client = cluster()
    await ask(client)

    lines = (await client.get("/metrics")).text.splitlines()

    counts = {
        line.split('replica="')[1][0]: float(line.split()[-1])
        for line in lines
        if line.startswith("llavakit:request_success_total") and '"stop"' in line
    }
    assert counts == {"a": 1.0, "b": 0.0}


async def test_a_door_that_closes_ends_open_streams_with_an_error(cluster):
    client = cluster("a", hang=True)
    call = Call(client.app, "/v1/chat/completions", STREAM)
    await call.until(lambda: b"five" in call.sent)

    client.app.state.service.stop()
    client.app.state.service.close_all()
    await call.end()
    late = await ask(client)

    assert call.events[-1]["error"]["code"] == "stopping"
    assert late.status_code == 503
    assert client.apps.backends["a"].cancelled == 1


async def test_the_door_refuses_what_has_no_clear_end_and_answers_head(cluster):
    client = cluster()
    framing = {"Transfer-Encoding": "chunked", "Content-Length": "4"}
    refused = await client.post("/v1/chat/completions", content=b"null", headers=framing)
    assert refused.status_code == 400 and client.apps.asked == []
    assert (await client.head("/health")).status_code == 200
