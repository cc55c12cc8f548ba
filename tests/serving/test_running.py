"""Connections and the end of a server: answers are finished, and nobody waits for ever."""

import json
import signal
import socket
import threading
import time

import httpx
import pytest

from llavakit.serving import runner
from llavakit.testing import FakeBackend
from tests.serving.conftest import CHAT, LONG, Process, eventually, running, saying

pytestmark = pytest.mark.enable_socket


def lines_of(url, body, heard=None):
    """All lines of a stream; ``heard`` is set at the first that has words."""
    found = []
    with httpx.stream("POST", url + CHAT, json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line:
                found.append(line)
            if heard is not None and '"content":"' in line and '"role"' not in line:
                heard.set()
    return found


def test_running_answers_are_ended_with_an_error_when_their_time_is_up():
    with running(FakeBackend(["some words"], hang=True), grace=0.3) as server:
        heard = threading.Event()
        found = []
        listener = threading.Thread(
            target=lambda: found.extend(lines_of(server.url, saying(stream=True), heard))
        )
        listener.start()
        assert heard.wait(20)
        server.should_exit = True
        listener.join(20)
        server.thread.join(20)
    error = json.loads(found[-1].removeprefix("data: "))["error"]
    assert "going down" in error["message"] and error["type"] == "server_error"
    assert "data: [DONE]" not in found
    assert server.app.state.service.gate.open == 0


def test_a_whole_answer_in_work_is_told_that_the_server_goes_down():
    with running(FakeBackend(["words"], hang=True), grace=0.3) as server:
        found = []
        asker = threading.Thread(
            target=lambda: found.append(httpx.post(server.url + CHAT, json=saying(), timeout=30))
        )
        asker.start()
        eventually(lambda: server.app.state.service.gate.open, lambda count: count == 1)
        server.should_exit = True
        asker.join(20)
    assert (found[0].status_code, found[0].json()["error"]["code"]) == (503, "cancelled")


def test_connections_that_never_say_what_they_want_are_cut(monkeypatch):
    monkeypatch.setattr(runner, "HEAD_SECONDS", 0.2)
    with running(FakeBackend()) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for head in (b"", b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(head)
                assert connection.recv(100) == b""
        second = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(second)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(1000)
            connection.sendall(second[:10])
            assert connection.recv(100) == b""


def test_a_long_answer_outlives_the_time_for_heads(monkeypatch):
    monkeypatch.setattr(runner, "HEAD_SECONDS", 0.1)
    with (
        running(FakeBackend(["word"], hang=True), ping_seconds=0.2) as server,
        httpx.stream("POST", server.url + CHAT, json=saying(stream=True)) as answer,
    ):
        pings = (line for line in answer.iter_lines() if line.startswith(":"))
        assert next(pings) and next(pings)


def test_small_pieces_are_sent_at_once():
    with (
        running(FakeBackend(["word"], hang=True)) as server,
        httpx.stream("POST", server.url + CHAT, json=saying(stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines)
        (connection,) = server.server_state.connections
        own = connection.transport.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_told():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ValueError, match="cannot be listened on"),
    ):
        runner.listen("127.0.0.1", taken.getsockname()[1])


@pytest.fixture
def process(demo_dir):
    if not (demo_dir / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not built")
    server = Process()
    yield server.ready()
    server.close()


def test_after_sigterm_running_streams_finish_and_the_process_ends_well(process):
    body = saying("Go on", model="demo", stream=True, **LONG)
    heard, found = threading.Event(), []
    listener = threading.Thread(target=lambda: found.extend(lines_of(process.url, body, heard)))
    listener.start()
    assert heard.wait(30)
    process.process.send_signal(signal.SIGTERM)

    def refused():
        try:
            httpx.get(process.url + "/health")
        except httpx.ConnectError:
            return True
        return False

    eventually(refused, bool)
    listener.join(60)
    assert found[-1] == "data: [DONE]"
    assert json.loads(found[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert process.process.wait(30) == 0
    assert not any("Traceback" in line for line in process.lines)


@pytest.mark.slow
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(process, first):
    body = saying("Go on", model="demo", stream=True, **LONG)
    heard = threading.Event()

    def listen():
        with pytest.raises(httpx.HTTPError):
            lines_of(process.url, body, heard)

    listener = threading.Thread(target=listen)
    listener.start()
    assert heard.wait(30)
    process.process.send_signal(first)
    time.sleep(0.3)
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(10) == 128 + signal.SIGTERM
    listener.join(30)


@pytest.mark.slow
def test_a_signal_while_the_model_is_loaded_ends_well(demo_dir):
    server = Process()
    try:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    finally:
        server.close()
