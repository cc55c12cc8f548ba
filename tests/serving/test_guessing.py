"""Guessing at API keys is slow, and disturbs no client whose key is right."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from llavakit._guesses import FREE
from tests.serving.conftest import CHAT, saying

KEY = "right-key"


def coming_from(app: Any, address: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def status(client: httpx.AsyncClient, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return (await client.get("/v1/models", headers=headers)).status_code


@pytest.fixture
def app(client: Any) -> Any:
    return client(api_keys=(KEY, "another-key")).app


async def test_after_some_wrong_keys_the_next_one_has_to_wait(app: Any) -> None:
    attacker = coming_from(app, "10.0.0.1")
    said = [await status(attacker, f"wrong-{number}") for number in range(FREE + 3)]
    assert said == [401] * (FREE + 1) + [429] * 2
    headers = {"Authorization": "Bearer wrong"}
    refused = await attacker.post(CHAT, json=saying(), headers=headers)
    assert refused.headers["retry-after"] == "1"
    error = refused.json()["error"]
    assert error["code"] == "too_many_wrong_keys" and "1 s" in error["message"]


async def test_a_right_key_that_is_guessed_while_waiting_looks_like_a_wrong_one(app: Any) -> None:
    attacker = coming_from(app, "10.0.0.1")
    for number in range(FREE + 1):
        await status(attacker, f"wrong-{number}")
    right, wrong = [
        await attacker.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        for key in (KEY, "wrong")
    ]
    assert right.status_code == wrong.status_code == 429
    assert right.json() == wrong.json()


async def test_clients_with_a_right_key_are_not_locked_out(app: Any) -> None:
    same, other = coming_from(app, "10.0.0.1"), coming_from(app, "10.0.0.2")
    assert await status(same, KEY) == 200
    for number in range(FREE + 3):
        await status(same, f"wrong-{number}")
    assert await status(same, KEY) == 200
    assert await status(other, KEY) == 200
    assert await status(same, "another-key") == 429  # right, but not shown from here before


async def test_an_old_key_is_refused_as_wrong_however_often_it_is_shown(app: Any) -> None:
    client = coming_from(app, "10.0.0.1")
    assert {await status(client, "old") for _ in range(FREE + 5)} == {401}
    assert await status(client, KEY) == 200


async def test_requests_without_a_key_are_no_guesses(app: Any) -> None:
    client = coming_from(app, "10.0.0.1")
    for _ in range(FREE + 5):
        assert (await client.get("/v1/models")).status_code == 401
    assert await status(client, KEY) == 200
