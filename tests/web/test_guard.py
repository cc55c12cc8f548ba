"""What the guard lets through, asked over ASGI; the page behind it is gradio's real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llavakit._guesses import FREE
from llavakit.testing import FakeBackend
from llavakit.web.accounts import checking
from llavakit.web.catalog import ListedModel
from llavakit.web.controller import Controller
from llavakit.web.guard import COOKIE, MAX_EVENT, Guard
from llavakit.web.model_cache import ModelCache
from llavakit.web.pictures import Uploads
from llavakit.web.settings import WebSettings
from tests.web.conftest import quietly


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    settings = WebSettings(max_file_bytes=10_000, max_images=2, max_upload_bytes=25_000)
    model_cache = ModelCache([ListedModel("fake", "fake")], 1, lambda name: FakeBackend())
    return Controller(settings, model_cache, Uploads(tmp_path, settings))


class Behind:
    """Notes what came through."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.reply = b"[]"
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        self.bodies.append(event.get("body", b""))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.reply})


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
async def client(
    controller: Controller, behind: Behind, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    guard: Any = Guard(behind, controller, tmp_path, ("localhost", "127.0.0.1", "::1"))
    transport = httpx.ASGITransport(app=guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
        yield client


async def test_a_page_comes_with_its_policy_and_a_name_for_the_visitor(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(COOKIE) and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    again = await client.get("/")
    assert "set-cookie" not in again.headers


@pytest.mark.parametrize("host", ["evil.invalid", "localhost.evil.invalid", "", "[::2]"])
async def test_other_names_of_this_machine_are_not_answered(
    client: httpx.AsyncClient, behind: Behind, host: str
) -> None:
    answer = await client.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert behind.bodies == []
    assert (await client.get("/", headers={"host": "[::1]:7860"})).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/run/predict", "/gradio_api/call/x", "/gradio_api/api/x", "/other"],
)
async def test_doors_that_the_page_does_not_use_are_closed(
    client: httpx.AsyncClient, behind: Behind, path: str
) -> None:
    assert (await client.post(path, json={})).status_code == 404
    assert (await client.get("/gradio_api/proxy=http://host.invalid/")).status_code == 404
    assert behind.bodies == []


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:1/x.png",
        "https://host.invalid/x.png",
        "/etc/passwd",
        "../x",
        "{folder}/../x",
        "",
        None,
        3,
        ["a"],
    ],
)
async def test_an_event_that_names_other_files_or_addresses_is_refused(
    client: httpx.AsyncClient, behind: Behind, tmp_path: Path, path: Any
) -> None:
    if isinstance(path, str):
        path = path.format(folder=tmp_path)
    event = {"data": [{"text": "x", "files": [{"path": path, "meta": {}}]}]}
    assert (await client.post("/gradio_api/queue/join", json=event)).status_code == 400
    assert behind.bodies == []


async def test_an_event_about_an_upload_passes_unchanged(
    client: httpx.AsyncClient, behind: Behind, tmp_path: Path
) -> None:
    event = {"data": [{"text": "path", "files": [{"path": str(tmp_path / "a" / "b.png")}]}]}
    answer = await client.post("/gradio_api/queue/join?x", json=event)
    assert answer.status_code == 200
    assert b"b.png" in behind.bodies[0]
    too_long = b'"' + b"x" * MAX_EVENT + b'"'
    assert (await client.post("/gradio_api/queue/join", content=too_long)).status_code == 413
    deep = b"[" * 100_000
    assert (await client.post("/gradio_api/queue/join", content=deep)).status_code == 400


async def test_uploads_are_capped_and_noted_for_their_owner(
    client: httpx.AsyncClient, controller: Controller, behind: Behind, tmp_path: Path
) -> None:
    large = await client.post("/gradio_api/upload", content=bytes(40_000))
    assert large.status_code == 413
    unknown = await client.post("/gradio_api/upload", content=_pieces())
    assert unknown.status_code == 411
    file = tmp_path / "a.png"
    file.write_bytes(bytes(26_000))
    behind.reply = f'["{file}"]'.encode()
    headers = {"cookie": f"{COOKIE}=anna"}
    assert (await client.post("/gradio_api/upload", content=b"x", headers=headers)).is_success
    controller.uploads.claim("anna", [str(file)])
    full = await client.post("/gradio_api/upload", content=b"x")
    assert full.status_code == 507


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/login"])
async def test_a_body_that_drips_is_a_client_that_left(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("llavakit.web.guard.BODY_SECONDS", 0.3)
    got: list[str] = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        while True:
            event = await receive()
            got.append(event["type"])
            if event["type"] == "http.disconnect" or not event.get("more_body"):
                return

    async def dripping() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def ignored(event: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"host", b"localhost"), (b"content-length", b"5000")],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "query_string": b"",
        "server": ("localhost", 80),
    }
    guard: Any = Guard(reading, controller, tmp_path, ("localhost",))
    async with asyncio.timeout(5):
        await guard(scope, dripping, ignored)
    assert got in ([], [*["http.request"] * (len(got) - 1), "http.disconnect"])


async def _pieces() -> AsyncIterator[bytes]:
    yield b"piece"


async def test_a_closed_heartbeat_is_a_visitor_who_left(
    controller: Controller, tmp_path: Path
) -> None:
    present: list[bool] = []
    left = False

    async def page(scope: Any, receive: Any, send: Any) -> None:
        nonlocal left
        present.append(controller.visitors.of("tab").present)
        left = True
        while (await receive())["type"] != "http.disconnect":
            pass

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect" if left else "http.request"}

    async def send(event: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/gradio_api/heartbeat/tab",
        "headers": [(b"cookie", f"{COOKIE}=anna".encode())],
    }
    await Guard(page, controller, tmp_path)(scope, receive, send)
    assert present == [True]
    assert not controller.visitors.of("tab").present
    assert not controller.visitors.has("anna")


OWN = {"Origin": "http://localhost:7860", "Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form
        {"Origin": "http://localhost:7860", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:9000", "Sec-Fetch-Site": "same-site"},  # another port
        {"Origin": "http://evil.test"},  # a browser without Sec-Fetch-Site
        {"Origin": "http://localhost:9000"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/login"])
async def test_what_another_site_sends_is_refused(
    client: httpx.AsyncClient, behind: Behind, headers: dict[str, str], path: str
) -> None:
    answer = await client.post(path, content=b"{}", headers=headers)
    assert answer.status_code == 403
    assert behind.bodies == []


@pytest.mark.parametrize(
    "headers", [OWN, {}, {"Sec-Fetch-Site": "none"}, {"Origin": OWN["Origin"]}]
)
async def test_what_the_page_itself_and_programs_send_passes(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await client.post("/gradio_api/upload", content=b"x", headers=headers)
    assert answer.status_code == 200


async def test_another_site_may_link_to_the_page_and_nothing_more(
    client: httpx.AsyncClient,
) -> None:
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await client.get("/", headers=linked)).status_code == 200
    script = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert (await client.get("/gradio_api/heartbeat/x", headers=script)).status_code == 403


async def test_an_unclear_end_of_a_request_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "1"}
    answer = await client.post("/gradio_api/upload", content=b"x", headers=headers)
    assert (answer.status_code, answer.headers["connection"]) == (400, "close")


async def test_wrong_passwords_make_the_next_try_wait(
    client: httpx.AsyncClient, behind: Behind
) -> None:
    for _ in range(FREE + 5):
        assert (await client.post("/login", content=b"right")).status_code == 200
    behind.status = 400
    for _ in range(FREE + 1):
        assert (await client.post("/login", content=b"wrong")).status_code == 400
    tried = len(behind.bodies)
    behind.status = 200
    for path in ("/login", "/login/"):  # whatever is tried now, it is not even looked at
        refused = await client.post(path, content=b"right")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert "try again in 1 s" in refused.text
    assert len(behind.bodies) == tried
    assert (await client.get("/")).status_code == 200


async def test_many_passwords_at_once_are_many_guesses(
    client: httpx.AsyncClient, behind: Behind
) -> None:
    behind.status = 400
    tries = [client.post("/login", content=b"wrong") for _ in range(30)]
    said = [answer.status_code for answer in await asyncio.gather(*tries)]
    assert said.count(400) == FREE + 1
    assert said.count(429) == 30 - FREE - 1


@pytest.mark.parametrize(
    ("name", "password", "right"),
    [
        ("anna", "a:b", True),
        ("bert", "x", True),
        ("anna", "x", False),
        ("anna:a", "b", False),
        ("", "", False),
        ("nobody", "x", False),
        ("anna", "a:b ", False),
        ("\ud800", "\ud800", False),
    ],
)
def test_accounts_are_checked(name: str, password: str, right: bool) -> None:
    check = checking([("anna", "a:b"), ("bert", "x")])
    assert check(name, password) is right


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("default")
def test_the_real_page_reads_no_file_and_fetches_nothing_for_strangers() -> None:
    pytest.importorskip("gradio")
    with quietly():
        _ask_the_real_page()


def _ask_the_real_page() -> None:
    from llavakit.web import serve

    offered = [ListedModel("fake", "fake")]
    with (
        serve(offered, lambda name: FakeBackend(), port=0, accounts=[("anna", "right")]) as page,
        httpx.Client(base_url=page.url, trust_env=False) as client,
    ):
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert client.get("/gradio_api/file=/etc/passwd").status_code in (401, 403)
        assert "the next try has to wait" in client.get("/").text
        assert client.get("/llavakit/chat").status_code == 404
        wrong = client.post("/login", data={"username": "anna", "password": "wrong"})
        assert wrong.status_code == 400
        assert client.post("/login", data={"username": "anna", "password": "right"}).is_success
        page_of_visitor = client.get("/").text
        assert '<meta property="og:title" content="llavakit"' in page_of_visitor
        assert client.get("/gradio_api/file=/etc/passwd").status_code == 403
        assert client.get(f"/gradio_api/file={Path(__file__)}").status_code == 403
        event = {
            "data": [{"text": "x", "files": [{"path": "http://127.0.0.1:9/x", "meta": {}}]}],
            "fn_index": 0,
            "session_hash": "tab",
        }
        assert client.post("/gradio_api/queue/join", json=event).status_code == 400
        other = {"Origin": "http://localhost:9000"}
        for answer in (
            client.get("/", headers=other),
            client.options("/", headers=other | {"Access-Control-Request-Method": "POST"}),
        ):
            assert not any(name.startswith("access-control-") for name in answer.headers)
        folder = page.controller.uploads.folder
        assert folder.is_dir()
    assert not folder.exists()
