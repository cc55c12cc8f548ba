"""The SDK's own client, over stdio and over streamable HTTP: all tools, keys, and one engine."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from llavakit.backend import Backend
from llavakit.mcp import HTTPSettings, MCPSettings
from llavakit.testing import FakeBackend
from tests.loopback import PNG
from tests.mcp.connections import DATA, command, in_memory, over_http, over_stdio, serving, text_of
from tests.mcp.test_tools import COLOUR, ENDLESS, SCHEMA, call_and_cancel
from tests.servers import llavakit_server

pytestmark = [pytest.mark.enable_socket]

CALLS = {
    "ask_image": {"question": COLOUR, "image": "plan"},
    "compare_images": {"question": COLOUR, "images": ["plan", "plan"]},
    "read_page": {"image": "scan", "pages": "1-2"},
    "extract": {"image": "scan", "pages": "2", "json_schema": SCHEMA},
    "list_images": {},
}
IMAGES = ("--image", f"plan={DATA / 'shapes.png'}", "--image", f"scan={DATA / 'pages.pdf'}")
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


async def check_all(session) -> None:
    """Calls every tool that is listed, and reads a resource."""
    tools = [tool.name for tool in (await session.list_tools()).tools]
    assert set(tools) == set(CALLS)
    done = []

    async def progress(at, total, name) -> None:
        done.append((at, total))

    told = {
        name: await session.call_tool(name, CALLS[name], progress_callback=progress)
        for name in tools
    }
    assert not any(one.isError for one in told.values())
    assert text_of(told["ask_image"]) == '"blue"'
    assert done[:2] == [(1, 2), (2, 2)]
    (page,) = told["extract"].structuredContent["pages"]
    assert page["data"]["title"] == "INVOICE" and page["citation"]["page"] == 2
    assert "scan (4 pages)" in text_of(told["list_images"])
    refused = await session.call_tool("ask_image", {"question": "What?", "image": "/etc/passwd"})
    assert refused.isError
    (content,) = (await session.read_resource(page["citation"]["uri"])).contents
    assert content.mimeType == "image/png"


@pytest.fixture
def settings(demo_backend: Backend) -> MCPSettings:
    return MCPSettings(
        backend=demo_backend,
        attachments={"plan": DATA / "shapes.png", "scan": DATA / "pages.pdf"},
    )


@pytest.fixture
def model_server() -> str:
    return llavakit_server().url + "/v1"


async def test_every_tool_is_called_over_stdio_with_the_model_on_a_server(model_server):
    async with over_stdio("demo", "--base-url", model_server, *IMAGES) as session:
        await check_all(session)


async def test_the_command_serves_http_with_keys_until_it_is_ended(model_server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    where = ("--http", "--port", "0", "--api-key-file", str(keys), "--base-url", model_server)
    started = command("demo", *where, *IMAGES)
    with subprocess.Popen(
        [started.command, *started.args], stderr=subprocess.PIPE, text=True, env=started.env
    ) as process:
        url = process.stderr.readline().split()[-1]
        for key in ("first", "second"):
            async with over_http(url, key) as session:
                told = await session.call_tool("ask_image", CALLS["ask_image"])
                assert text_of(told) == '"blue"'
        with pytest.raises(BaseExceptionGroup):
            async with over_http(url, "third"):
                pass
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said


async def test_a_server_that_is_away_is_logged_and_not_named(caplog):
    away = MCPSettings(
        model="demo", base_url="http://127.0.0.1:9/v1", max_retries=0, attachments={"plan": PNG}
    )
    async with in_memory(away) as session:
        told = await session.call_tool("ask_image", {"question": "What?", "image": "plan"})
    assert told.isError and "127.0.0.1" not in text_of(told) and "127.0.0.1" in caplog.text


async def test_every_tool_is_called_over_http(settings):
    with serving(settings) as url:
        async with over_http(url) as session:
            await check_all(session)


async def test_a_call_that_is_cancelled_over_http_frees_the_model(settings, demo_backend):
    with serving(settings) as url:
        async with over_http(url) as session:
            asked = {"image": "plan", "json_schema": ENDLESS}
            steps = await call_and_cancel(session, demo_backend, "extract", asked)
            while demo_backend.stats()["running"]:
                await asyncio.sleep(0.005)
            assert demo_backend.stats().get("steps", 0) <= steps + 2


async def test_two_clients_share_one_engine(settings, demo_backend):
    forty = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 40, "maxItems": 40}
    asked = {"image": "plan", "json_schema": forty}
    with serving(settings) as url:
        async with over_http(url) as first, over_http(url) as second:
            calls = [
                asyncio.ensure_future(session.call_tool("extract", asked))
                for session in (first, second)
            ]
            together = 0
            while not all(call.done() for call in calls):
                together = max(together, demo_backend.stats()["running"])
                await asyncio.sleep(0.002)
            answers = [call.result().structuredContent["pages"][0]["data"] for call in calls]
    assert together == 2 and answers[0] == answers[1]


async def test_a_client_without_the_key_is_not_let_in():
    settings = MCPSettings(backend=FakeBackend(["red"]), attachments={"plan": PNG})
    with serving(settings, HTTPSettings(api_keys=["secret"])) as url:
        async with over_http(url, "secret") as session:
            told = await session.call_tool("ask_image", {"question": "What?", "image": "plan"})
            assert text_of(told) == '"red"'
        async with httpx.AsyncClient(trust_env=False) as client:
            for key in ("", "Bearer wrong", "Bearer", "secret", "Basic secret"):
                headers = ACCEPT | ({"Authorization": key} if key else {})
                for method in ("POST", "GET", "DELETE"):
                    told = await client.request(method, url, json=HELLO, headers=headers)
                    assert told.status_code == 401 and "Bearer KEY" in told.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({}, 200),
    ],
)
async def test_pages_of_other_sites_do_not_reach_a_server_on_loopback(headers, status):
    settings = MCPSettings(backend=FakeBackend())
    with serving(settings, HTTPSettings(allowed_hosts=["127.0.0.1", "localhost"])) as url:
        async with httpx.AsyncClient(trust_env=False) as client:
            told = await client.post(url, json=HELLO, headers=ACCEPT | headers)
            assert told.status_code == status
            assert (await client.get(url.removesuffix("/mcp") + "/health")).status_code == 200


async def test_a_request_that_is_too_large_is_refused_unread():
    settings = MCPSettings(backend=FakeBackend())
    with serving(settings, HTTPSettings(max_body_bytes=10_000)) as url:
        async with httpx.AsyncClient(trust_env=False) as client:
            told = await client.post(url, content=b"x" * 20_000, headers=ACCEPT)
    assert told.status_code == 413


def dripping(url, head, drip, drips=100, pause=0.1):
    """Send a head, then a byte at a time; return what the server says and after how long."""
    address = httpx.URL(url)
    begun = time.monotonic()
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(head.encode())
        connection.settimeout(pause)
        answer = b""
        for _ in range(drips):
            with contextlib.suppress(TimeoutError):
                answer += connection.recv(4096)
                break
            with contextlib.suppress(OSError):
                connection.sendall(drip)
        return answer, time.monotonic() - begun


@pytest.mark.parametrize(
    ("length", "drip"),
    [("Content-Length: 5000", b" "), ("Transfer-Encoding: chunked", b"1\r\n \r\n")],
)
async def test_a_body_that_drips_is_given_up_in_time_and_others_are_served(length, drip):
    settings = MCPSettings(backend=FakeBackend(["red"]), attachments={"plan": PNG})
    with serving(settings, HTTPSettings(body_timeout=1.0)) as url:
        head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in ACCEPT.items()) + "\r\n"
        drips = [
            asyncio.create_task(asyncio.to_thread(dripping, url, head, drip)) for _ in range(8)
        ]
        async with over_http(url) as session:
            told = await session.call_tool("ask_image", {"question": "What?", "image": "plan"})
            assert text_of(told) == '"red"'
        for answer, seconds in [await drip for drip in drips]:
            assert answer.startswith(b"HTTP/1.1 408"), answer[:80]
            assert 0.9 < seconds < 8


async def test_a_head_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr("llavakit.serving.runner.HEAD_SECONDS", 0.5)
    with serving(MCPSettings(backend=FakeBackend())) as url:
        head = "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow:"
        answer, seconds = await asyncio.to_thread(dripping, url, head, b"x")
        assert answer == b"" and seconds < 8


NOISE = """
import os, sys, threading, time
def noise():
    while "mcp.server.stdio" not in sys.modules:
        time.sleep(0.01)
    for _ in range(100):
        print("printed", flush=True)
        os.write(1, b"written from C\\n")
        time.sleep(0.01)
    os.system("echo a child")
threading.Thread(target=noise, daemon=True).start()
"""


def test_stdout_carries_nothing_but_the_protocol(tmp_path):
    """Also when a library prints, from Python, from C, or from a child process."""
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    call = {"name": "list_images", "arguments": {}}
    asked = [
        HELLO,
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]
    # A server's model is not looked at before the first question, so this one starts at once.
    started = command("demo", "--base-url", "http://127.0.0.1:9", *IMAGES)
    path = f"{tmp_path}{os.pathsep}{started.env['PYTHONPATH']}"
    with subprocess.Popen(
        [started.command, *started.args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**started.env, "PYTHONPATH": path},
    ) as process:
        process.stdin.write("".join(json.dumps(one) + "\n" for one in asked).encode())
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        while b"a child" not in process.stderr.readline():
            pass
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == b""
    assert [one["id"] for one in answers] == [1, 2] and "scan" in str(answers[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "--image", "plan=gone.png"], "gone.png, which is not a file"),
        (["demo", "--root", "gone"], "not a folder"),
        (["demo", "--api-key-file", "keys"], "--api-key-file is for --http"),
        (["demo", "--port", "8001"], "--port is for --http"),
        (["demo", "--base-url", "http://a.example/v1", "--device", "cuda"], "device"),
        (["demo", "--http", "--api-key-file", "no-such-file"], "cannot be read"),
        (["nothing-of-this-name/at-all", "--http", "--port", "0"], "nothing-of-this-name"),
        (["demo", "--image", "image_1=examples/data/heart.png"], "cannot name an attachment"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_a_sentence(arguments, expected):
    from typer.testing import CliRunner

    from llavakit.cli.app import app

    told = CliRunner().invoke(app, ["mcp", *arguments])
    assert told.exit_code and not told.stdout
    assert (
        expected in told.stderr and told.stderr.count("\n") == 1 and "Traceback" not in told.stderr
    )


def test_a_missing_extra_is_one_sentence():
    for name in ("create_server", "create_http_app", "serve_stdio"):
        program = (
            "import sys\nsys.modules['mcp'] = None\n"
            f"try:\n    from llavakit.mcp import {name}\n"
            "except ImportError as error:\n    print(type(error).__name__, error)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        assert told.startswith("MissingDependencyError") and '"llavakit[mcp]"' in told
