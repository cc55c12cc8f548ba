"""A server whose model leaves the memory between requests."""

import time

import httpx
import pytest
from typer.testing import CliRunner

import llavakit
from llavakit.cli import serve as command
from llavakit.cli.app import app as program
from llavakit.serving import ServerSettings, create_app
from tests.serving.conftest import CHAT, figures


@pytest.mark.parametrize("given", ["5m", "0", "-1", None])
def test_the_option_reaches_the_model(monkeypatch, given):
    loads = []
    monkeypatch.setattr(command, "_run", lambda model, load, *rest: loads.append(load))
    option = [] if given is None else ["--keep-alive", given]
    result = CliRunner().invoke(program, ["serve", "demo", *option])
    assert result.exit_code == 0, result.output
    assert loads[0]["keep_alive"] == given


def test_what_is_no_duration_is_told_in_a_sentence():
    result = CliRunner().invoke(program, ["serve", "demo", "--port", "0", "--keep-alive", "soon"])
    assert result.exit_code == 2
    assert "keep_alive is 'soon'" in result.stderr and "Traceback" not in result.stderr


async def test_server_stays_ready_while_its_model_is_away_and_answers_when_asked(tiny):
    backend = llavakit.load(tiny.path, keep_alive=0)
    app = create_app(backend, ServerSettings(model_name="tiny"))
    app.state.service.readiness.begin()
    app.state.service.readiness._thread.join(60)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def told():
            return figures((await client.get("/metrics")).text)

        def away():
            end = time.monotonic() + 20
            while backend.stats()["loaded"]:
                assert time.monotonic() < end
                time.sleep(0.01)

        for number in range(1, 3):
            away()
            assert (await client.get("/health")).json() == {"status": "ready"}
            before = await told()
            assert before["engine_loaded"] == 0 and not backend.stats()["loaded"]
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            answer = await client.post(CHAT, json=body | {"max_tokens": 2})
            assert answer.status_code == 200, answer.text
            after = await told()
            assert after["engine_requests_total"] == before["engine_requests_total"] + 1 > number
    backend.close()
