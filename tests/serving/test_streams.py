"""Streams: how they begin, go on, end and break off, and what happens when nobody listens."""

import asyncio
import threading

import pytest

from llavakit.errors import EngineError, RequestCancelledError
from llavakit.serving.answering import Listener
from llavakit.values import Chunk, Completion, CutCall
from tests.loopback import PNG, reply
from tests.serving.asgi import Call
from tests.serving.conftest import CHAT, Neighbourly, Scripted, begun, figures, saying


@pytest.fixture
def scripted(client):
    def make(**settings):
        backend = Scripted()
        return backend, client(backend, **settings)

    return make


async def test_the_role_comes_first_and_done_last(client):
    call = await Call(client(["one two"]).app, CHAT, saying(stream=True)).end()
    *chunks, last = call.events
    assert call.headers["content-type"].startswith("text/event-stream")
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert last == "[DONE]"


async def test_the_role_is_told_before_the_model_says_anything(scripted):
    backend, app = scripted()
    call = Call(app.app, CHAT, saying(stream=True))
    await call.until(lambda: call.events)
    assert call.status == 200 and call.events[0]["choices"][0]["delta"]["role"] == "assistant"
    (channel,) = await begun(backend)
    channel.put(Chunk(finish_reason="stop"))
    await call.end()
    assert call.events[-1] == "[DONE]"


async def test_an_error_in_mid_stream_is_an_event_and_no_done(scripted):
    backend, app = scripted()
    call = Call(app.app, CHAT, saying(stream=True))
    (channel,) = await begun(backend)
    channel.put(Chunk("half an"))
    channel.fail(EngineError("The device is gone."))
    await call.end()
    assert call.events[-1]["error"]["message"] == "The device is gone."
    assert call.events[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in call.events and call.over
    told = figures(app.service.metrics.render().decode())
    assert told["request_errors_total"] == 1


async def test_an_error_of_one_choice_ends_all_of_them(scripted):
    backend, app = scripted()
    call = Call(app.app, CHAT, saying(stream=True, n=2))
    first, second = await begun(backend, 2)
    first.put(Chunk("fine"))
    second.fail(EngineError("No."))
    await call.end()
    assert call.events[-1]["error"]["message"] == "No."
    assert first.ended and "[DONE]" not in call.events


async def test_an_answer_without_an_end_is_an_error(scripted):
    backend, app = scripted()
    call = Call(app.app, CHAT, saying(stream=True))
    await begun(backend)
    await call.until(lambda: call.events)
    app.service.answers.close_all()
    await call.end()
    assert "error" in call.events[-1] and "[DONE]" not in call.events


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_cancels_its_request(scripted, stream, n):
    backend, app = scripted()
    call = Call(app.app, CHAT, saying(stream=stream, n=n))
    channels = await begun(backend, n)
    channels[0].put(Chunk("a word"))
    call.leave()
    await call.end()
    assert backend.cancelled == n and all(channel.ended for channel in channels)
    assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)
    assert "[DONE]" not in call.events
    told = app.service.metrics.render().decode()
    assert f'finished_reason="abort",model_name="fake"}} {n}.0' in told


@pytest.mark.enable_socket
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_while_its_pictures_are_opened_frees_its_place(
    client, server, stream
):
    asked, go = threading.Event(), threading.Event()

    def answer(connection):
        asked.set()
        assert go.wait(20)
        reply(PNG)(connection)

    server.answer = answer
    app = client(kind=Neighbourly, allow_urls=True, max_open_requests=1)
    block = {"type": "image_url", "image_url": {"url": server.url()}}
    body = saying(stream=stream) | {"messages": [{"role": "user", "content": [block]}]}
    call = Call(app.app, CHAT, body)
    try:
        assert await asyncio.to_thread(asked.wait, 20)
        assert app.service.gate.open == 1
        call.leave()
        await call.end()
        assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)
        assert (await app.post(CHAT, json=saying("another"))).status_code == 200
    finally:
        go.set()
    app.service._lanes.close(wait=True)
    assert [request.messages[0].text for request in app.backend.requests] == ["another"]
    assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)
    told = figures(app.service.metrics.render().decode())
    assert told["request_errors_total"] == 1  # client_left


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_submitted_after_its_client_left_is_cancelled(client, stream):
    class Late(Scripted):
        """Takes requests when it is told to."""

        def __init__(self):
            super().__init__()
            self.asked, self.go = threading.Event(), threading.Event()

        def submit(self, request):
            self.asked.set()
            assert self.go.wait(20)
            return super().submit(request)

    backend = Late()
    app = client(backend)
    call = Call(app.app, CHAT, saying(stream=stream, n=2))
    try:
        assert await asyncio.to_thread(backend.asked.wait, 20)
        call.leave()
        await call.end()
        assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)
    finally:
        backend.go.set()
    app.service._lanes.close(wait=True)
    assert backend.cancelled == len(backend.requests) == 2
    assert all(channel.ended for channel in backend.channels)
    told = figures(app.service.metrics.render().decode())
    assert told["request_errors_total"] == 1 and told["request_success_total"] == 0


async def test_who_left_has_left_for_good():
    said = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive():
        return said.pop(0)

    listener = Listener(receive)
    heard = [(await listener())["type"] for _ in range(4)]
    assert heard == ["http.request", *["http.disconnect"] * 3]


async def test_pictures_of_a_request_that_is_over_are_not_counted(client):
    gate = client().service.gate
    with gate.enter() as share:
        share.take(10)
    with pytest.raises(RequestCancelledError):
        share.take(10)
    assert (gate.open, gate.bytes) == (0, 0)


async def test_a_client_that_leaves_while_sending_costs_nothing(client):
    app = client()
    call = Call(app.app, CHAT, b'{"model":', more=True)
    call.leave()
    await call.end()
    assert app.backend.requests == [] and app.service.gate.open == 0


async def test_a_client_that_does_not_read_is_let_go(scripted):
    backend, app = scripted(send_timeout=0.1)
    call = Call(app.app, CHAT, saying(stream=True))

    async def stuck(message):
        if b"word" in message.get("body", b""):
            await asyncio.Event().wait()

    call.listening = stuck
    (channel,) = await begun(backend)
    channel.put(Chunk("word"))
    await call.end()
    assert backend.cancelled == 1 and app.service.gate.open == 0


async def test_a_silent_stream_says_that_it_lives(scripted):
    backend, app = scripted(ping_seconds=0.05)
    call = Call(app.app, CHAT, saying(stream=True))
    (channel,) = await begun(backend)
    await call.until(lambda: call.sent.count(b": still working\n\n") >= 2)
    channel.put(Chunk("at last"))
    channel.put(Chunk(finish_reason="stop"))
    await call.end()
    assert call.events[-1] == "[DONE]" and "at last" in call.sent.decode()


async def test_choices_stream_side_by_side(scripted):
    backend, app = scripted()
    call = Call(app.app, CHAT, saying(stream=True, n=2))
    first, second = await begun(backend, 2)
    second.put(Chunk("B"))
    await call.until(lambda: b'"B"' in call.sent)
    first.put(Chunk("A"))
    for channel in (second, first):
        channel.put(Chunk(finish_reason="stop"))
    await call.end()
    told = [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in call.events[:-1]]
    assert (0, {"content": "A"}) in told and (1, {"content": "B"}) in told
    assert call.events[-1] == "[DONE]"


async def test_a_refused_choice_takes_its_sisters_along(client):
    class OneOnly(Scripted):
        def submit(self, request):
            if self.channels:
                raise EngineError("Only one.")
            return super().submit(request)

    backend = OneOnly()
    app = client(backend)
    answer = await app.post(CHAT, json=saying(n=2))
    assert answer.json()["error"]["message"] == "Only one."
    assert backend.cancelled == 1


CUT = Completion("So", finish_reason="length", cut_calls=(CutCall("pay", '{"amount": 345'),))


async def test_of_a_call_that_was_cut_no_client_gets_a_part_that_it_would_complete(client):
    app = client([CUT])
    call = await Call(app.app, CHAT, saying(stream=True)).end()
    deltas = [choice["delta"] for event in call.events[:-1] for choice in event["choices"]]
    assert call.events[-2]["choices"][0]["finish_reason"] == "length"
    assert not any("tool_calls" in delta for delta in deltas)
    assert "345" not in "".join(delta.get("content") or "" for delta in deltas)
    told = [delta["cut_tool_calls"] for delta in deltas if "cut_tool_calls" in delta]
    assert told == [[{"name": "pay", "arguments": '{"amount": 345'}]]


async def test_a_whole_answer_with_a_cut_call_tells_it_apart(client):
    (choice,) = (await client([CUT]).post(CHAT, json=saying())).json()["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == "So"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["cut_tool_calls"][0]["name"] == "pay"
