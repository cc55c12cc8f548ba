"""What clients may not do: every hostile argument ends in one sentence, and nothing is asked."""

import base64
import io
import os
import re

import pytest
from mcp import McpError
from PIL import Image as PILImage

from llavakit.mcp import MCPSettings
from llavakit.mcp.tools import Tools
from llavakit.questions.listing import Attached
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from tests.documents import hostile
from tests.loopback import PNG, redirect
from tests.mcp.connections import DATA, in_memory, text_of
from tests.test_fetch_guard import resolver

pytestmark = [pytest.mark.enable_socket]

POLICY = SourcePolicy(timeout=5, max_bytes=200_000, max_pixels=1_000_000, max_side=4096)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def large_png() -> bytes:
    file = io.BytesIO()
    PILImage.new("L", (2000, 2000)).save(file, "PNG")
    return file.getvalue()


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


IMAGES = {
    "a path": "/etc/passwd",
    "a path upwards": "../secret.png",
    "a path through the folder": "sub/../../secret.png",
    "a link that leads out": "link.png",
    "a link to a folder outside": "out/secret.png",
    "another user's home": "~root/secret.png",
    "a device": "/dev/zero",
    "a file of the kernel": "/proc/self/environ",
    "a pipe": "pipe.png",
    "a folder": "sub",
    "a text file": "notes.txt",
    "a NUL": "a\0.png",
    "a name that is too long": "x" * 300,
    "a name that is far too long": "x" * 10_000_000,
    "no name": "",
    "white space": " \n ",
    "an unknown name": "nope",
    "an image of a conversation": "image_1",
    "a file address": "file:///etc/passwd",
    "a file address below the folder": "file://{root}/red.png",
    "loopback": "http://127.0.0.1:{port}/x.png",
    "loopback by name": "http://localhost:{port}/x.png",
    "loopback in IPv6": "http://[::1]:{port}/x.png",
    "loopback as a number": "http://2130706433:{port}/x.png",
    "loopback in hexadecimal": "http://0x7f.1:{port}/x.png",
    "the metadata service": "http://169.254.169.254/latest/meta-data/",
    "a private network": "http://10.0.0.1/x.png",
    "a name of a private address": "http://internal.example/x.png",
    "credentials": "http://user:password@127.0.0.1:{port}/x.png",
    "another scheme": "gopher://127.0.0.1:{port}/x",
    "a script": "javascript:alert(1)",
    "bare base64": base64.b64encode(PNG * 40).decode(),
    "data that is text": data_url(b"#!/bin/sh\nrm -rf /", "text/plain"),
    "data that is a vector image": data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "damaged base64": "data:image/png;base64,????",
    "data without a comma": "data:image/png;base64",
    "no data": "data:image/png;base64,",
    "half an image": data_url(PNG[:30]),
    "huge data": data_url(b"\x89PNG\r\n\x1a\n" + bytes(300_000)),
    "huge percent-encoded data": "data:image/png," + "%00" * 300_000,
    "too many pixels": data_url(large_png()),
    "a decompression bomb": data_url(hostile.png_bomb()),
    "a damaged PDF": data_url(b"%PDF-1.7\nnothing", "application/pdf"),
    "an encrypted PDF": data_url(hostile.encrypted(), "application/pdf"),
    "a page of an image": data_url(PNG) + "#page=3",
    "page 0": "scan#page=0",
    "a page too many": "scan#page=99",
    "a document without a page": "scan",
}

CALLS = {
    "no arguments": ("ask_image", {}),
    "no question": ("ask_image", {"image": "plan"}),
    "an empty question": ("ask_image", {"question": " ", "image": "plan"}),
    "a huge question": ("ask_image", {"question": "why " * 100_000, "image": "plan"}),
    "a number": ("ask_image", {"question": "What?", "image": 7}),
    "null": ("ask_image", {"question": "What?", "image": None}),
    "an object": ("ask_image", {"question": "What?", "image": {"path": "/etc/passwd"}}),
    "a list": ("ask_image", {"question": ["What?"], "image": "plan"}),
    "an argument too many": ("ask_image", {"question": "What?", "image": "plan", "roots": ["/"]}),
    "a setting": ("ask_image", {"question": "What?", "image": "plan", "allow_urls": True}),
    "one image": ("compare_images", {"question": "What?", "images": ["plan"]}),
    "no images": ("compare_images", {"question": "What?", "images": []}),
    "nine images": ("compare_images", {"question": "What?", "images": ["plan"] * 9}),
    "a text for a list": ("compare_images", {"question": "What?", "images": "plan"}),
    "a number among images": ("compare_images", {"question": "What?", "images": ["plan", 3]}),
    "a path among images": (
        "compare_images",
        {"question": "What?", "images": ["plan", "/etc/passwd"]},
    ),
    "a number of a page": ("read_page", {"image": "scan", "pages": 2}),
    "page zero": ("read_page", {"image": "scan", "pages": "0"}),
    "pages backwards": ("read_page", {"image": "scan", "pages": "3-1"}),
    "pages in words": ("read_page", {"image": "scan", "pages": "all"}),
    "far too many parts": ("read_page", {"image": "scan", "pages": "1," * 60_000}),
    "pages behind the end": ("read_page", {"image": "scan", "pages": "90-99"}),
    "pages twice": ("read_page", {"image": "scan#page=1", "pages": "2"}),
    "too many pages": ("read_page", {"image": "scan"}),
    "pages of an image": ("read_page", {"image": "plan", "pages": "7"}),
    "a path to read": ("read_page", {"image": "../secret.png"}),
    "no schema": ("extract", {"image": "plan"}),
    "an empty schema": ("extract", {"image": "plan", "json_schema": {}}),
    "a text for a schema": ("extract", {"image": "plan", "json_schema": '{"type": "object"}'}),
    "a list for a schema": ("extract", {"image": "plan", "json_schema": []}),
    "a huge schema": (
        "extract",
        {"image": "plan", "json_schema": {"enum": ["x" * 90] * 1000}},
    ),
    "an address for an image": (
        "extract",
        {"image": "http://169.254.169.254/", "json_schema": {"type": "object"}},
    ),
    "a prompt that is huge": (
        "extract",
        {"image": "plan", "json_schema": {"type": "object"}, "prompt": "x" * 200_000},
    ),
    "arguments of nothing": ("list_images", {"folder": "/"}),
    "an unknown tool": ("run_shell", {"command": "id"}),
    "a tool with a long name": ("x" * 100_000, {}),
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "red.png").write_bytes(PNG)
    (root / "notes.txt").write_text("secret")
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "pipe.png")
    return root


@pytest.fixture
def eyes() -> FakeBackend:
    return FakeBackend(["a secret"], policy=POLICY)


@pytest.fixture
def settings(eyes, root) -> MCPSettings:
    attachments = {"plan": PNG, "scan": DATA / "pages.pdf"}
    reach = {"roots": [root], "allow_urls": True, "max_pages": 3}
    return MCPSettings(backend=eyes, attachments=attachments, **reach)


def check_sentence(told: str, root) -> None:
    assert 10 < len(told) < 500 and "\n" not in told and told.endswith((".", "..."))
    assert not re.search(r"SourcePolicy|Traceback|max_|pydantic_|_pixels|pydantic", told)
    assert str(root) not in told and str(root.parent) not in told


@pytest.mark.parametrize("case", IMAGES)
async def test_a_hostile_image_is_refused_in_a_sentence(
    case, settings, eyes, root, server, monkeypatch
):
    if case == "a name of a private address":
        resolver(monkeypatch, ["10.0.0.7"])
    image = IMAGES[case].replace("{port}", str(server.port)).replace("{root}", str(root))
    async with in_memory(settings) as session:
        told = await session.call_tool("ask_image", {"question": "What?", "image": image})
    assert told.isError and told.structuredContent is None
    assert not eyes.requests and server.connections == 0
    sent = str(root) if "{root}" in IMAGES[case] else "nothing"
    check_sentence(text_of(told).replace(sent, "..."), root)


@pytest.mark.parametrize("case", CALLS)
async def test_a_hostile_call_is_refused_in_a_sentence(case, settings, eyes, root):
    async with in_memory(settings) as session:
        told = await session.call_tool(*CALLS[case])
    assert told.isError and not eyes.requests
    check_sentence(text_of(told), root)


async def test_an_address_that_leads_inside_by_a_redirect_is_refused(settings, eyes, server):
    server.answer = redirect("http://127.0.0.1:1/x.png")
    async with in_memory(settings) as session:
        told = await session.call_tool("ask_image", {"question": "What?", "image": server.url()})
    assert told.isError and not eyes.requests


async def test_files_addresses_and_where_wanted_data_are_closed_by_default(eyes, server):
    closed = MCPSettings(backend=eyes, attachments={"plan": PNG}, allow_data=False)
    async with in_memory(closed) as session:
        for image in (str(DATA / "shapes.png"), "shapes.png", server.url(), data_url(PNG)):
            told = await session.call_tool("ask_image", {"question": "What?", "image": image})
            assert told.isError and "plan" in text_of(told)
        listed = (await session.call_tool("list_images", {})).structuredContent
    assert not (listed["files"] or listed["urls"] or listed["data"])
    assert not eyes.requests and server.connections == 0


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1/x"}, {"type": "object", "not": 3}]
)
async def test_a_schema_that_makes_no_sense_is_refused_before_anything_is_read(
    demo_backend, schema, tmp_path
):
    settings = MCPSettings(backend=demo_backend, attachments={"scan": DATA / "pages.pdf"})
    before = demo_backend.stats().get("steps", 0)
    async with in_memory(settings) as session:
        told = await session.call_tool("extract", {"image": "scan", "json_schema": schema})
    assert told.isError and demo_backend.stats().get("steps", 0) == before
    check_sentence(text_of(told), tmp_path)


async def test_a_schema_that_is_nested_without_end_is_refused(eyes, settings, root):
    asked = {"image": "plan", "json_schema": nested(20_000)}
    told = await Tools(settings, Attached(settings)).call("extract", asked)
    assert told.is_error and not eyes.requests
    check_sentence(told.text, root)


@pytest.mark.parametrize(
    "uri",
    [
        "llavakit://images/nope",
        "llavakit://images/red.png",
        "llavakit://images/..%2Fsecret.png",
        "llavakit://images/scan/pages/0",
        "llavakit://images/scan/pages/99",
        "llavakit://images/plan/pages/2",
        "file:///etc/passwd",
        "http://127.0.0.1/x.png",
    ],
)
async def test_a_resource_that_is_not_there_is_refused(settings, uri, root):
    async with in_memory(settings) as session:
        with pytest.raises(McpError) as refused:
            await session.read_resource(uri)
    check_sentence(str(refused.value), root)


async def test_a_cursor_of_another_server_is_refused(settings):
    async with in_memory(settings) as session:
        for cursor in ("-1", "abc", "9" * 5000, "1e3"):
            with pytest.raises(McpError, match="cursor"):
                await session.list_resources(cursor=cursor)
