"""What llama.cpp's server and vLLM answered once, read again; and the servers themselves."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import pytest

from llavakit.errors import RemoteError
from tests.remote.conversations import BY_SERVER, hold
from tests.remote.exchanges import replaying
from tests.remote.peers import running, variables
from tests.remote.record import path_of

pytestmark = pytest.mark.enable_socket

RECORDED = [server for server in BY_SERVER if path_of(server).exists()]
HELD = [(server, name) for server in RECORDED for name in BY_SERVER[server]]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVAKIT_API_KEY", raising=False)


@cache
def recorded(server: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path_of(server).read_text())
    return held


@pytest.mark.parametrize(("server", "name"), HELD)
def test_the_same_is_asked_and_the_same_is_read_as_when_it_was_recorded(server, name):
    held = recorded(server)[name]
    with replaying(held["exchanges"]) as url:
        outcome = hold(url, BY_SERVER[server][name])
    assert json.loads(json.dumps(outcome)) == held["outcome"]


@pytest.mark.parametrize("server", RECORDED)
def test_nothing_is_recorded_that_no_conversation_asks(server):
    assert set(recorded(server)) == set(BY_SERVER[server])


def test_a_request_that_was_not_recorded_is_shown_beside_the_nearest():
    held = recorded("llamacpp")["a_stop_string_ends_the_answer"]["exchanges"]
    changed = json.loads(json.dumps(held))
    changed[-1]["body"]["max_tokens"] = 7
    with (
        pytest.raises(AssertionError) as caught,
        replaying(changed) as url,
        pytest.raises(RemoteError, match="was not recorded"),
    ):
        hold(url, BY_SERVER["llamacpp"]["a_stop_string_ends_the_answer"])
    assert '- "max_tokens": 7,' in str(caught.value) and '+ "max_tokens": 6,' in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("server", list(BY_SERVER))
def test_the_real_server_holds_every_conversation(server):
    if missing := [name for name in variables(server) if not os.environ.get(name)]:
        pytest.skip(f"needs {', '.join(missing)} (see tests/remote/peers.py)")
    with running(server) as url:
        for conversation in BY_SERVER[server].values():
            hold(url, conversation)
