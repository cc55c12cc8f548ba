"""What one client, or many, cannot make the server do."""

import asyncio
import io

import pytest
from PIL import Image

from llavakit.errors import ParameterError
from llavakit.images import isolated
from llavakit.serving import ServerSettings
from llavakit.testing import FakeBackend
from tests.serving.asgi import Call
from tests.serving.conftest import CHAT, data_uri, picture_block, saying


def with_pictures(*blocks):
    return saying() | {"messages": [{"role": "user", "content": list(blocks)}]}


async def refused(app, call, status, code):
    await call.end()
    assert (call.status, call.json["error"]["code"]) == (status, code)
    assert app.backend.requests == []
    assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)


async def test_a_body_that_tells_its_length_is_refused_before_it_is_read(client):
    app = client(max_body_bytes=1000)
    call = Call(app.app, CHAT, headers={"content-length": "1001"})
    call.send_body(b"x" * 10)
    call.send_body(b"", more=False)
    await refused(app, call, 413, "request_too_large")
    assert call.headers["connection"] == "close"


async def test_a_body_without_a_length_is_cut_off_while_it_is_read(client):
    app = client(max_body_bytes=1000)
    call = Call(app.app, CHAT)
    for _ in range(11):
        call.send_body(b"x" * 100)
    call.send_body(b"", more=False)
    await refused(app, call, 413, "request_too_large")


async def test_a_body_of_just_the_limit_is_taken(client):
    body = b'{"model":"fake","messages":[{"role":"user","content":"hi"}]}'
    app = client(max_body_bytes=len(body))
    assert (await Call(app.app, CHAT, body).end()).status == 200


async def test_a_body_that_comes_too_slowly_is_given_up(client):
    app = client(body_timeout=0.1)
    call = Call(app.app, CHAT, b'{"model"', more=True)
    await refused(app, call, 408, "body_timeout")
    assert call.headers["connection"] == "close"


async def test_too_many_pictures_are_refused_unopened(client):
    app = client(max_images=2)
    block = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    call = Call(app.app, CHAT, with_pictures(block, block, block))
    await refused(app, call, 413, "too_many_images")
    assert (await Call(app.app, CHAT, with_pictures(*[picture_block()] * 2)).end()).status == 200


async def test_pictures_of_too_many_bytes_or_pixels_are_refused(client):
    app = client(max_image_bytes=5000, max_image_pixels=90_000)
    noise = Image.effect_noise((200, 200), 90)
    bomb = Image.new("1", (400, 400))
    for image in (noise, bomb):
        block = {"type": "image_url", "image_url": {"url": data_uri(image)}}
        await refused(app, Call(app.app, CHAT, with_pictures(block)), 413, "image_too_large")


async def test_a_request_that_needs_more_memory_than_there_is_is_refused(client):
    app = client(max_memory_bytes=1_000_000)
    bomb = {"type": "image_url", "image_url": {"url": data_uri(Image.new("1", (600, 600)))}}
    await refused(app, Call(app.app, CHAT, with_pictures(bomb)), 413, "request_too_large")


async def test_memory_that_others_hold_is_not_there_and_comes_back(client):
    app = client(FakeBackend(["ok"], hang=True), max_memory_bytes=2_000_000)
    block = {"type": "image_url", "image_url": {"url": data_uri(Image.new("1", (600, 600)))}}
    first = Call(app.app, CHAT, with_pictures(block) | {"stream": True})
    await first.until(lambda: first.events)
    second = await Call(app.app, CHAT, with_pictures(block)).end()
    assert (second.status, second.json["error"]["code"]) == (429, "server_full")
    assert second.headers["retry-after"] == "1"
    first.leave()
    await first.end()
    third = Call(app.app, CHAT, with_pictures(block) | {"stream": True})
    await third.until(lambda: third.events)
    assert third.status == 200
    third.leave()
    await third.end()
    assert app.service.gate.bytes == 0


async def test_more_open_requests_than_allowed_are_told_to_come_again(client):
    app = client(FakeBackend(["ok"], hang=True), max_open_requests=2)
    held = [Call(app.app, CHAT, saying(stream=True)) for _ in range(2)]
    for call in held:
        await call.until(lambda call=call: call.events)
    third = await Call(app.app, CHAT, saying()).end()
    assert (third.status, third.headers["retry-after"]) == (429, "1")
    assert third.json["error"]["type"] == "rate_limit_error"
    assert (await Call(app.app, "/health", method="GET").end()).status == 200
    for call in held:
        call.leave()
        await call.end()
    again = Call(app.app, CHAT, saying(stream=True))
    await again.until(lambda: again.events)
    assert again.status == 200
    again.leave()
    await again.end()


async def test_answers_are_cut_to_the_servers_limit(client):
    app = client(max_answer_tokens=5)
    await app.post(CHAT, json=saying(max_tokens=100))
    await app.post(CHAT, json=saying(max_tokens=3))
    assert [asked.params.max_tokens for asked in app.backend.requests] == [5, 3]


async def test_a_refused_client_is_heard_out_before_the_connection_ends(client):
    app = client(max_body_bytes=100)
    call = Call(app.app, CHAT, headers={"content-length": "300"})
    await asyncio.sleep(0.05)
    assert call.status is None  # it would not read an answer while it sends
    for _ in range(3):
        call.send_body(b"x" * 100)
    call.send_body(b"", more=False)
    assert (await call.end()).status == 413


@pytest.mark.parametrize("name", ["max_body_bytes", "max_images", "request_timeout"])
def test_limits_of_nothing_are_refused(name):
    with pytest.raises(ParameterError, match=name):
        ServerSettings(**{name: 0})


async def test_an_animation_counts_as_its_first_frame(client):
    app = client()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    import base64

    uri = "data:image/gif;base64," + base64.b64encode(buffer.getvalue()).decode()
    block = {"type": "image_url", "image_url": {"url": uri}}
    assert (await Call(app.app, CHAT, with_pictures(block)).end()).status == 200
    (image,) = app.backend.requests[0].messages[0].images
    assert image.source.rgb.getpixel((5, 5))[0] > 200


async def test_a_text_that_no_tokenizer_can_make_fit_is_refused_at_once(client):
    app = client(FakeBackend(context_length=100))
    long = "x" * (100 * 256 + 1)
    tool = {"type": "function", "function": {"name": "t", "description": long}}
    for body in (saying(long), saying("x", tools=[tool])):
        answer = await app.post(CHAT, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert app.backend.requests == []
    assert (await app.post(CHAT, json=saying("x" * 25_000))).status_code == 200


async def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(client):
    body = b'{"messages":[' + b"1," * 1_000_001 + b"1]}"
    app = client()
    await refused(app, Call(app.app, CHAT, body), 413, "request_too_large")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "t"}}] * 129}, "tools"),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
        ({"structured_outputs": {"regex": "x" * 100_001}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["x"] * 1001}}, "structured_outputs.choice"),
    ],
)
async def test_lists_and_strings_have_an_end(client, change, param):
    answer = await client().post(CHAT, json=saying() | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_errors_do_not_repeat_megabytes(client):
    app = client()
    block = {"type": "x" * 2_000_000}
    for change in (
        {"messages": [{"role": "user", "content": [block]}]},
        {"k" * 2_000_000: 1},
        {"model": "m" * 2_000_000},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "i" * 2_000_000}]},
    ):
        answer = await app.post(CHAT, json=saying() | change)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 2000


async def test_a_compressed_body_is_refused(client):
    call = Call(client().app, CHAT, b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (await call.end()).status == 415


@pytest.mark.parametrize(
    ("form", "size", "elsewhere"),
    [("PNG", 300, False), ("JPEG", 2100, True), ("JPEG2000", 600, True), ("AVIF", 800, True)],
)
async def test_what_is_slow_to_decode_is_decoded_in_a_process(
    client, monkeypatch, form, size, elsewhere
):
    try:
        url = data_uri(Image.effect_noise((size, size), 50).convert("RGB"), form)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow writes no {form}")
    started, start = [], isolated.subprocess.Popen

    def popen(*args, **options):
        started.append(start(*args, **options))
        return started[-1]

    monkeypatch.setattr(isolated.subprocess, "Popen", popen)
    app = client()
    block = {"type": "image_url", "image_url": {"url": url}}
    assert (await Call(app.app, CHAT, with_pictures(block, block)).end()).status == 200
    assert len(started) == elsewhere  # one for both
    app.service.stop()
    assert all(process.poll() is not None for process in started)


async def test_an_image_that_takes_too_long_is_an_error_of_its_request_alone(client):
    app = client()
    app.service._decoders = isolated.Decoders(seconds=0.01)
    large = Image.effect_noise((2200, 2000), 50).convert("RGB")
    block = {"type": "image_url", "image_url": {"url": data_uri(large, "JPEG")}}
    await refused(app, Call(app.app, CHAT, with_pictures(block)), 413, "image_too_large")
    assert (await Call(app.app, CHAT, with_pictures(picture_block())).end()).status == 200
