from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from llavakit.errors import EngineError, RequestCancelledError
from llavakit.streams import AnswerStream, Channel, gather
from llavakit.values import Chunk, CutCall, ToolCall, Usage

END = Chunk(finish_reason="stop", usage=Usage(1, 2))


def stream_of(*chunks: Chunk) -> tuple[AnswerStream, list[int]]:
    channel, cancels = Channel(), []
    for chunk in chunks:
        channel.put(chunk)
    return AnswerStream(channel, lambda: cancels.append(1)), cancels


def test_chunks_come_in_order_and_end():
    stream, cancels = stream_of(Chunk("a"), Chunk("b"), END)
    assert [chunk.text for chunk in stream] == ["a", "b", ""]
    assert list(stream) == []
    assert cancels == []


def test_error_comes_after_what_was_told_before():
    stream, _ = stream_of(Chunk("a"))
    stream._channel.fail(EngineError("broken"))
    assert next(stream).text == "a"
    with pytest.raises(EngineError, match="broken"):
        next(stream)


def test_closing_cancels_once():
    stream, cancels = stream_of(Chunk("a"))
    stream.close()
    stream.close()
    assert cancels == [1]


def test_closing_after_the_end_cancels_nothing():
    stream, cancels = stream_of(END)
    stream.close()
    assert cancels == []


def test_dropping_the_stream_cancels():
    stream, cancels = stream_of(Chunk("a"))
    del stream
    gc.collect()
    assert cancels == [1]


def test_what_comes_after_the_end_is_ignored():
    channel = Channel()
    channel.put(END)
    channel.put(Chunk("late"))
    channel.fail(EngineError("late"))
    assert list(AnswerStream(channel, lambda: None)) == [END]


def test_closing_from_another_thread_wakes_the_reader():
    stream, _ = stream_of()
    threading.Timer(0.05, stream.close).start()
    with pytest.raises(RequestCancelledError):
        next(stream)


async def test_async_reader_is_woken_by_another_thread():
    channel = Channel()
    threading.Timer(0.02, lambda: (channel.put(Chunk("a")), channel.put(END))).start()
    assert [c.text async for c in AnswerStream(channel, lambda: None)] == ["a", ""]


async def test_cancelled_async_reader_cancels_the_request():
    stream, cancels = stream_of()
    task = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancels == [1]


def test_reader_in_a_closed_event_loop_does_no_harm():
    channel = Channel()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.take_async(), 0.01)

    asyncio.run(give_up())
    channel.put(END)
    assert channel.take() == END


def test_calls_are_gathered_in_their_order():
    one, two = ToolCall("c1", "add", {"a": 1}), ToolCall("c2", "add", {"a": 2})
    completion = gather(
        [
            Chunk(tool_calls=(one,)),
            Chunk(tool_calls=(two,)),
            Chunk(finish_reason="tool_calls", usage=Usage()),
        ]
    )
    assert completion.tool_calls == (one, two)


def test_a_cut_call_is_no_call_no_text_and_not_lost():
    cut = CutCall("pay", '{"amount": 345')
    completion = gather([Chunk(cut_calls=(cut,)), Chunk(finish_reason="length", usage=Usage())])
    assert completion.tool_calls == () and completion.text == ""
    assert completion.cut_calls == (cut,)
    assert "'pay'" in cut.reason and "max_tokens" in cut.reason
