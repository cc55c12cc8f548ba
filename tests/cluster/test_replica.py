"""A replica with the bundled model, alone and behind the door; Ray only starts such replicas."""

import json

import httpx
import pytest

from llavakit.cluster.ingress import create_ingress
from llavakit.cluster.replica import Replica
from llavakit.cluster.wire import END, WireRequest
from llavakit.serving import ServerSettings
from tests.serving.conftest import CHAT

SETTINGS = ServerSettings(
    model_name="demo", api_keys=("secret",), allowed_hosts=("test",), warm_up=False
)
ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}


@pytest.fixture(scope="module")
def replica(demo_dir):
    if not (demo_dir / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not built")
    # A load of its own: stop() closes its backend, and the demo of other tests is another one.
    replica = Replica("demo", {"max_concurrency": 3}, SETTINGS, "first")
    yield replica
    replica.stop()
    assert replica.backend.closed


class Alone:
    """One replica, and what it was handed."""

    def __init__(self, replica):
        self.replica = replica
        self.calls = []

    async def ask(self, call, keys, avoid):
        self.calls.append(call)
        async for batch in self.replica.answer(call):
            yield batch


def door(replica):
    replicas = Alone(replica)
    app = create_ingress(replicas, SETTINGS)
    return replicas, httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test", timeout=60
    )


async def test_a_replica_asks_the_door_for_no_key_and_no_host_name(replica):
    await replica.start()
    body = json.dumps(ASKED).encode()
    call = WireRequest("POST", CHAT, headers=((b"content-type", b"application/json"),), body=body)
    pieces = [piece async for batch in replica.answer(call) for piece in batch]
    assert pieces[0] == ("from", "first") and pieces[-1] == END
    assert pieces[1][:2] == ("start", 200), pieces


async def test_with_the_same_settings_the_door_asks_for_the_key_and_keeps_it(replica):
    await replica.start()
    replicas, client = door(replica)
    without = await client.post(CHAT, json=ASKED)
    wrong = await client.post(CHAT, json=ASKED, headers={"Authorization": "Bearer guess"})
    assert (without.status_code, wrong.status_code) == (401, 401)
    assert replicas.calls == []

    known = await client.post(CHAT, json=ASKED, headers={"Authorization": "Bearer secret"})
    assert known.status_code == 200, known.text
    (call,) = replicas.calls
    assert "secret" not in repr(call)
