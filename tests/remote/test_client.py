"""The remote backend against servers that behave, and that misbehave in every way known."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

import llavakit
from llavakit import Image, Message, SamplingParams, Tool
from llavakit.errors import (
    ContextLengthError,
    EngineClosedError,
    LlavaKitError,
    ModelNotFoundError,
    ParameterError,
    QueueFullError,
    RemoteError,
    RequestTimeoutError,
    SourceNotAllowedError,
)
from llavakit.sources import SourcePolicy
from llavakit.values import CutCall, Usage
from tests.loopback import PNG
from tests.remote.scripted import (
    USAGE,
    called,
    endless,
    events,
    models,
    piece,
    refuses,
    says_ollama,
    words,
)

pytestmark = pytest.mark.enable_socket

ADD = Tool(
    "add",
    "Add two numbers.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def open_ended(handler):
    """Begins an answer, and goes on with it only when the test says so."""
    handler.begin()
    handler.event(piece("and "))
    handler.server.release.wait(20)
    for _ in range(200):  # until the client's leaving is felt
        handler.event(piece("on "))
        time.sleep(0.01)


def silent(handler):
    handler.server.release.wait(20)
    handler.cut()


# Answers


def test_an_answer_has_its_text_finish_and_usage(peer, remote):
    peer.says(words("a red", " circle", finish="length"))
    answer = remote().generate("What is it?")
    assert (answer.text, answer.finish_reason) == ("a red circle", "length")
    assert answer.usage == Usage(7, 3)


def test_pieces_come_one_by_one_and_the_last_has_nothing_but_the_end(peer, remote):
    def told(handler):
        handler.begin()
        handler.event(piece("first"))
        handler.server.release.wait(10)
        handler.event(piece(" second", finish="stop"))
        handler.event({"choices": [], "usage": USAGE})
        handler.event("[DONE]")
        handler.end()

    stream = remote().stream("q") if peer.says(told) else None
    assert next(stream).text == "first"  # while the rest has not been said
    peer.release.set()
    second, last = list(stream)
    assert (second.text, last.text, last.finish_reason) == (" second", "", "stop")


async def test_sync_and_async_answers_are_the_same(peer, remote):
    peer.says(words("yes", ", it is"))
    backend = remote()
    whole = await asyncio.to_thread(backend.generate, "q")
    assert await backend.agenerate("q") == whole
    assert "".join([chunk.text async for chunk in backend.astream("q")]) == whole.text


@pytest.mark.parametrize("usage_on_finish", [True, False])
def test_usage_counts_on_the_last_piece_or_on_one_of_its_own(peer, remote, usage_on_finish):
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 5, "image_tokens": 2}}
    if usage_on_finish:
        peer.says(events(piece("hi"), piece(finish="stop", usage=usage), "[DONE]"))
    else:
        peer.says(words("hi", usage=usage))
    assert remote().generate("q").usage == Usage(7, 3, 5, 2)


def test_several_choices_are_several_requests_with_seeds_of_their_own(peer, remote):
    peer.says(words("one"))
    answers = remote().choices("q", SamplingParams(seed=5), n=3)
    assert len(answers) == 3
    assert sorted(body["seed"] for body in peer.asked) == [5, 6, 7]


def test_a_server_that_does_not_stream_although_asked_to_is_understood(peer, remote):
    message = {"role": "assistant", "content": "all at once"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    peer.says(lambda handler: handler.json({"choices": [choice], "usage": USAGE}))
    answer = remote().generate("q")
    assert (answer.text, answer.usage) == ("all at once", Usage(7, 3))


def test_logprobs_are_read_and_missed(peer, remote):
    told = piece("hi")
    top = [{"token": "hi", "logprob": -0.5}, {"token": "ho", "logprob": -1.5}]
    told["choices"][0]["logprobs"] = {
        "content": [{"token": "hi", "logprob": -0.5, "top_logprobs": top}]
    }
    peer.says(events(told, piece(finish="stop"), "[DONE]"), words("hi"))
    (only,) = remote().generate("q", SamplingParams(logprobs=2)).logprobs
    assert (only.token, only.logprob, only.top) == ("hi", -0.5, (("hi", -0.5), ("ho", -1.5)))
    assert peer.asked[0]["top_logprobs"] == 2
    with pytest.raises(RemoteError, match="asked for logprobs and sent none"):
        remote().generate("q", SamplingParams(logprobs=2))


# Streams that break


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "llavakit", "transformers", "generic"])
def test_a_stream_that_ends_without_a_finish_is_an_error(peer, remote, dialect):
    peer.says(events(piece("half of")))
    with pytest.raises(RemoteError, match="without a finish_reason"):
        remote(dialect=dialect).generate("q")


@pytest.mark.parametrize(
    ("dialect", "whole"),
    [("vllm", False), ("sglang", False), ("transformers", True), ("generic", True)],
)
def test_done_is_missed_where_the_dialect_sends_it(peer, remote, dialect, whole):
    peer.says(words("hi", done=False))
    if whole:
        assert remote(dialect=dialect).generate("q").text == "hi"
    else:
        with pytest.raises(RemoteError, match=r"without \[DONE\]"):
            remote(dialect=dialect).generate("q")


def test_a_broken_connection_is_an_error_behind_what_was_told(peer, remote):
    def told(handler):
        handler.begin()
        handler.event(piece("half of"))
        handler.cut()

    stream = remote().stream("q") if peer.says(told) else None
    assert next(stream).text == "half of"
    with pytest.raises(RemoteError, match="broke in the middle"):
        next(stream)
    assert len(peer.asked) == 1  # nothing is asked again once something was received


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "the replica died", "code": 500}},
        {"object": "error", "message": "the replica died"},
        {"error": "the replica died"},
        '{"error": "the replica died: "quoted" badly"}',
    ],
)
def test_an_error_inside_the_stream_is_told(peer, remote, error):
    peer.says(events(piece("half of"), error))
    with pytest.raises(RemoteError, match="the replica died"):
        remote().generate("q")


@pytest.mark.parametrize("reason", ["content_filter", "abort", "error"])
def test_other_reasons_to_finish_are_errors(peer, remote, reason):
    peer.says(words("hi", finish=reason))
    with pytest.raises(RemoteError, match=reason):
        remote().generate("q")


@pytest.mark.parametrize(
    "event", ["no JSON", "[1, 2]", '{"choices": [5]}', '{"choices": [{"delta": {"content": {}}}']
)
def test_what_is_no_event_is_an_error(peer, remote, event):
    peer.says(events(event))
    with pytest.raises(RemoteError, match="no event of a chat completion"):
        remote().generate("q")


WORD = f"data: {json.dumps(piece('word '))}\n\n".encode()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (endless(WORD, WORD), "answer without end"),
        (endless(WORD, b": still working\n\n"), "answer without end"),
        (endless(WORD, b"event: ping\n"), "answer without end"),
        (endless(b'{"choices": [', b"1, ", "application/json"), "more than 1,048,576 bytes"),
    ],
    ids=["words", "signs of life", "lines", "JSON"],
)
def test_an_answer_without_end_is_given_up(peer, remote, monkeypatch, script, words):
    monkeypatch.setattr("llavakit.remote.exchange._LEAST_ROOM", 1 << 20)
    peer.says(script)
    with pytest.raises(RemoteError, match=words):
        remote().generate("q", SamplingParams(max_tokens=8))
    assert peer.gone.wait(10)  # it stopped reading, and so keeps no more


def test_the_room_for_an_answer_grows_with_the_tokens_it_may_have(peer, remote, monkeypatch):
    monkeypatch.setattr("llavakit.remote.exchange._LEAST_ROOM", 1000)
    long = "word " * 1000
    peer.says(words(*[long] * 3))
    assert remote().generate("q", SamplingParams(max_tokens=3000)).text == long * 3


@pytest.mark.parametrize("more", [b"x", b"data: x\n"], ids=["a line", "lines"])
def test_an_event_without_end_is_given_up(peer, remote, more):
    peer.says(endless(b"data: ", more))
    with pytest.raises(RemoteError, match="event without end"):
        remote().generate("q")
    assert peer.gone.wait(10)


def test_what_comes_behind_the_end_of_an_answer_is_not_waited_for(peer, remote):
    whole = [WORD, f"data: {json.dumps(piece(finish='stop'))}\n\n".encode(), b"data: [DONE]\n\n"]
    peer.says(endless(b"".join(whole), b": still working\n\n"))
    assert remote().generate("q").text == "word "
    assert peer.gone.wait(10)


def test_refusals_and_lists_of_models_have_an_end_too(peer, remote):
    peer.says(endless(b"{", b" ", "application/json", 400))
    with pytest.raises(LlavaKitError, match="400"):
        remote().generate("q")
    assert peer.gone.wait(10)
    peer.gone.clear()
    peer.routes["/v1/models"] = endless(b"{", b" ", "application/json")
    with pytest.raises(RemoteError, match="more than"):
        remote().info  # noqa: B018
    assert peer.gone.wait(10)


def test_a_web_page_is_no_answer(peer, remote):
    peer.says(lambda handler: handler.json("<html>hello", content_type="text/html"))
    with pytest.raises(RemoteError, match="without a finish_reason"):
        remote().generate("q")


# Leaving


def test_closing_the_stream_closes_the_connection(peer, remote):
    backend = remote()
    stream = backend.stream("q") if peer.says(open_ended) else None
    assert next(stream).text == "and "
    stream.close()
    peer.release.set()
    assert peer.gone.wait(10)
    assert list(stream) == []
    assert backend.stats()["cancelled"] == 1 and backend.stats()["failed"] == 0


def test_dropping_the_stream_closes_the_connection(peer, remote):
    stream = remote().stream("q") if peer.says(open_ended) else None
    assert next(stream).text == "and "
    del stream
    gc.collect()
    peer.release.set()
    assert peer.gone.wait(10)


async def test_cancelling_an_async_answer_closes_the_connection(peer, remote):
    task = asyncio.create_task(remote().agenerate("q")) if peer.says(open_ended) else None
    while not peer.asked:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    peer.release.set()
    assert await asyncio.to_thread(peer.gone.wait, 10)


def test_closing_the_backend_ends_its_answers(peer, remote):
    backend = remote()
    stream = backend.stream("q") if peer.says(open_ended) else None
    next(stream)
    backend.close()
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError, match=r"llavakit\.load"):
        backend.generate("q")
    peer.release.set()
    assert peer.gone.wait(10)
    assert remote() is not backend


def test_an_open_stream_keeps_its_connection_when_the_backend_is_dropped(peer, remote):
    peer.says(open_ended)
    stream = llavakit.load("other", base_url=peer.url, dialect="vllm").stream("q")
    gc.collect()
    assert next(stream).text == "and "
    stream.close()


# Attempts and time


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_refusal_that_passes_is_tried_again(peer, remote, status):
    peer.says(refuses(status), refuses(status), words("at last"))
    backend = remote()
    assert backend.generate("q").text == "at last"
    assert backend.stats()["retries"] == 2


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422, 501])
def test_a_refusal_that_stays_is_not_tried_again(peer, remote, status):
    peer.says(refuses(status))
    with pytest.raises(LlavaKitError):
        remote().generate("q")
    assert len(peer.asked) == 1


def test_a_connection_that_closes_before_an_answer_is_tried_again(peer, remote):
    peer.says(lambda handler: handler.cut(), words("at last"))
    assert remote().generate("q").text == "at last"


def test_attempts_come_to_an_end(peer, remote):
    peer.says(refuses(429, {"error": {"message": "too many"}}))
    with pytest.raises(QueueFullError, match="too many"):
        remote(max_retries=3).generate("q")
    assert len(peer.asked) == 4
    with pytest.raises(QueueFullError):
        remote(max_retries=0).generate("q")
    assert len(peer.asked) == 5


def test_the_wait_that_a_server_asks_for_is_kept(peer, remote, monkeypatch):
    slept = []
    sleep = asyncio.sleep

    async def noting(seconds, *rest):
        slept.append(seconds)
        await sleep(0, *rest)

    monkeypatch.setattr("llavakit.remote.transport.asyncio.sleep", noting)
    peer.says(refuses(429, Retry_After="17"), words("at last"))
    assert remote().generate("q").text == "at last"
    assert 17.0 in slept


def test_a_wait_of_hours_is_a_refusal(peer, remote):
    peer.says(refuses(429, Retry_After="7200"))
    with pytest.raises(QueueFullError):
        remote().generate("q")
    assert len(peer.asked) == 1


@pytest.mark.parametrize("script", [silent, open_ended])
def test_the_timeout_is_for_the_whole_answer(peer, remote, script):
    peer.says(script)
    with pytest.raises(RequestTimeoutError, match=r"0\.3 seconds"):
        remote(timeout=0.3).generate("q")
    with pytest.raises(TimeoutError):
        remote().generate("q", timeout=0.2)


def test_the_timeout_counts_the_waits_between_attempts(peer, remote):
    peer.says(refuses(503, Retry_After="30"))
    with pytest.raises(RequestTimeoutError):
        remote().generate("q", timeout=0.3)


def test_finding_the_dialect_out_is_within_the_timeout(peer, remote):
    peer.routes["/v1/models"] = silent
    with pytest.raises(RequestTimeoutError):
        remote(dialect=None).generate("q", timeout=0.3)


# Refusals


def test_a_key_that_is_refused_says_so(peer, remote):
    peer.says(refuses(401, {"error": {"message": "bad key k-123456789 given"}}))
    with pytest.raises(RemoteError, match="refused the api_key") as caught:
        remote(api_key="k-123456789").generate("q")
    assert caught.value.status == 401 and "k-1234" not in str(caught.value)
    with pytest.raises(RemoteError, match="without an api_key"):
        remote().generate("q")


@pytest.mark.parametrize("status", [400, 404])
def test_a_model_that_is_not_there_names_those_that_are(peer, remote, status):
    peer.routes["/v1/models"] = models({"id": "llava-a"}, {"id": "llava-b"})
    peer.says(refuses(status, {"error": {"message": "The model `m` does not exist."}}))
    with pytest.raises(ModelNotFoundError, match="its models: llava-a, llava-b"):
        remote().generate("q")


def test_a_path_that_is_not_there_is_no_missing_model(peer, remote):
    peer.routes["/v1/models"] = models({"id": "m"})
    peer.says(refuses(404, {"detail": "Not Found"}))
    with pytest.raises(RemoteError, match="answers nothing at /v1/chat/completions"):
        remote().generate("q")


def test_a_request_that_is_too_large_says_what_to_do(peer, remote):
    peer.says(refuses(413))
    with pytest.raises(RemoteError, match="fewer or smaller images"):
        remote().generate("q")


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 9512 tokens "
        "(9000 in the messages, 512 in the completion). Please reduce the length.",
        "'max_tokens' is too large: 512. This model's maximum context length is 4096 tokens and "
        "your request has 9000 input tokens (512 > 4096 - 9000).",
        "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
        "The prompt has 9000 tokens and the model holds 4096 with its answer; shorten it.",
    ],
)
def test_a_prompt_that_does_not_fit_is_told_as_here(peer, remote, said):
    code = {"code": "context_length_exceeded", "message": said}
    peer.says(refuses(400, {"error": code}))
    with pytest.raises(ContextLengthError) as caught:
        remote().generate("q")
    error = caught.value
    assert (error.prompt_tokens, error.max_tokens, error.context_length) == (9000, 512, 4096)
    assert len(peer.asked) == 1


def test_an_answer_gets_what_the_context_has_left(peer, remote):
    said = (
        "This model's maximum context length is 4096 tokens. However, you requested 4512 tokens "
        "(4000 in the messages, 512 in the completion)."
    )
    peer.says(refuses(400, {"error": {"message": said}}), words("short"))
    assert remote().generate("q", SamplingParams(max_tokens=512)).text == "short"
    assert [body["max_tokens"] for body in peer.asked] == [512, 96]


def test_an_answer_gets_the_context_where_a_refusal_does_not_say_how_long_the_prompt_is(
    peer, remote
):
    said = "max_tokens=100000 cannot be greater than max_model_len=1024."  # vLLM 0.32
    peer.says(refuses(400, {"error": {"message": said}}), words("short"))
    assert remote().generate("q", SamplingParams(max_tokens=100_000)).text == "short"
    assert [body["max_tokens"] for body in peer.asked] == [100_000, 1024]
    peer.says(refuses(400, {"error": {"message": said}}))
    with pytest.raises(ContextLengthError):
        remote().generate("q", SamplingParams(max_tokens=100_000))
    assert len(peer.asked) == 4


def test_an_old_server_is_asked_without_stream_options(peer, remote):
    detail = [{"loc": ["body", "stream_options"], "msg": "stream_options: extra fields"}]
    peer.says(refuses(422, {"detail": detail}), words("hi", done=False))
    assert remote(dialect="generic").generate("q").text == "hi"
    assert "stream_options" not in peer.asked[1]


def test_no_connection_names_the_address(remote, peer):
    with pytest.raises(RemoteError, match=r"http://127\.0\.0\.1:1 \(") as caught:
        remote(base_url="http://127.0.0.1:1/v1", max_retries=0).generate("q")
    assert caught.value.status is None


def test_a_redirect_is_not_followed(peer, remote):
    peer.says(refuses(307, "", Location="http://127.0.0.1:1/steal"))
    with pytest.raises(RemoteError, match="redirect"):
        remote(api_key="k").generate("q")


def test_a_server_that_echoes_the_picture_is_quoted_without(peer, remote):
    def echo(handler):
        handler.json({"detail": [{"msg": "bad", "input": handler.server.asked[-1]}]}, 422)

    red = llavakit.Image(_png())
    with pytest.raises(RemoteError) as caught:
        remote().generate(Message("user", [red])) if peer.says(echo) else None
    assert "iVBOR" not in str(caught.value) and "bad" in str(caught.value)


# What servers ignore


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Ada is 36.", "begins 'Ada is 36.'"),
        ('{"name": "Ada"}', "'age' is a required property"),
        ('{"name": "Ada", "age": "old"}', "not of type 'integer'"),
        ('```json\n{"name": "Ada", "age": 36}\n```', "must be JSON"),
        ('{"name": "Ada", "age": NaN}', "must be JSON"),
    ],
)
def test_a_schema_that_was_ignored_is_an_error(peer, remote, text, sentence):
    peer.says(words(text))
    with pytest.raises(RemoteError, match=sentence) as caught:
        remote().generate("q", SamplingParams(json_schema=PERSON))
    assert "ignored it" in str(caught.value)
    assert peer.asked[0]["response_format"]["json_schema"]["schema"] == PERSON


def test_a_schema_that_was_obeyed_is_passed_on(peer, remote):
    told = '{"age": 36, "name": "Ada"}'  # in another order than the schema's
    peer.says(words(told))
    assert remote().generate("q", SamplingParams(json_schema=PERSON)).text == told


def test_an_answer_that_the_limit_cut_is_told_as_such(peer, remote):
    peer.says(words('{"name": "A', finish="length"))
    answer = remote().generate("q", SamplingParams(json_schema=PERSON))
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("grammar", ["(red|blue)", "start: COLOUR\nCOLOUR: /red|blue/"])
def test_a_grammar_that_was_ignored_is_an_error(peer, remote, grammar):
    peer.says(words("green"), words("blue"))
    with pytest.raises(RemoteError, match="does not follow the grammar"):
        remote().generate("q", SamplingParams(grammar=grammar))
    assert remote().generate("q", SamplingParams(grammar=grammar)).text == "blue"
    assert grammar in peer.asked[0]["structured_outputs"].values()


# Tools


def test_calls_come_with_ids_names_and_arguments(peer, remote):
    peer.says(called(("add", '{"a": 1,'), finish="stop"))
    pieces = called(("add", '{"a": 1, "b": 2}'), ("add", '{"a": 3, "b": 4}'))
    peer.says(pieces)
    answer = remote().generate("q", tools=[ADD])
    assert [(call.id, call.arguments) for call in answer.tool_calls] == [
        ("id0", {"a": 1, "b": 2}),
        ("id1", {"a": 3, "b": 4}),
    ]
    assert answer.finish_reason == "tool_calls"
    sent = peer.asked[0]
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("auto", True)
    assert sent["tools"][0]["function"]["parameters"] == ADD.parameters


@pytest.mark.parametrize(
    ("script", "options", "sentence"),
    [
        (called(("add", '{"a": 1}')), {}, "'b' is a required property"),
        (called(("add", '{"a": 1, "b": "2"}')), {}, "not of type 'integer'"),
        (called(("add", "a=1")), {}, "must be JSON"),
        (called(("add", "[1]")), {}, "not of type 'object'"),
        (called(("sub", "{}")), {}, "offered were add"),
        (called(("add", '{"a": 1, "b": 2}')), {"tools": []}, "none was offered"),
        (called(("add", '{"a": 1, "b": 2}')), {"tool_choice": "none"}, "'none'"),
        (called(*[("add", '{"a": 1, "b": 2}')] * 2), {"parallel_tool_calls": False}, "2 came"),
        (words("no"), {"tool_choice": "required"}, "A tool call was demanded"),
        (words("no"), {"tool_choice": "add"}, "A call of 'add' was demanded"),
    ],
)
def test_what_was_asked_of_tools_is_checked(peer, remote, script, options, sentence):
    peer.says(script)
    with pytest.raises(RemoteError, match=sentence):
        remote().generate("q", **{"tools": [ADD], **options})


def test_a_named_tool_is_demanded_in_openais_notation(peer, remote):
    peer.says(called(("add", '{"a": 1, "b": 2}'), finish="stop"))  # as vLLM finishes it
    answer = remote().generate("q", tools=[ADD], tool_choice="add", parallel_tool_calls=False)
    assert answer.finish_reason == "tool_calls"
    assert peer.asked[0]["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert peer.asked[0]["parallel_tool_calls"] is False


def test_a_call_that_the_limit_cut_is_no_call(peer, remote):
    peer.says(called(("add", '{"a": 1, "b'), finish="length"))
    answer = remote().generate("q", tools=[ADD])
    assert (answer.tool_calls, answer.finish_reason, answer.text) == ((), "length", "")
    assert answer.cut_calls == (CutCall("add", '{"a": 1, "b'),)


def test_a_call_that_our_server_says_was_cut_is_known_here(peer, remote):
    cut = {"cut_tool_calls": [{"name": "add", "arguments": '{"a": 1'}]}
    piece_ = {"choices": [{"index": 0, "delta": cut, "finish_reason": None}]}
    peer.says(events(piece_, piece(finish="length"), "[DONE]"))
    answer = remote(dialect="llavakit").generate("q", tools=[ADD])
    assert (answer.tool_calls, answer.cut_calls) == ((), (CutCall("add", '{"a": 1'),))


def test_no_piece_of_a_call_is_told_before_all_of_it_is_there(peer, remote):
    pieces = ['{"a": 34', '5, "b": 1', "}"]
    told = [
        {"index": 0, "id": "x", "function": {"name": "add", "arguments": pieces[0]}},
        *({"index": 0, "function": {"arguments": one}} for one in pieces[1:]),
    ]
    peer.says(events(*(piece(tool_calls=[c]) for c in told), piece(finish="stop"), "[DONE]"))
    calls = [c for chunk in remote().stream("q", tools=[ADD]) for c in chunk.tool_calls]
    assert [dict(call.arguments) for call in calls] == [{"a": 345, "b": 1}]


@pytest.mark.parametrize("arguments", ["", None, {}])
def test_a_tool_without_arguments_may_be_called_without_any(peer, remote, arguments):
    call = {"id": "x", "function": {"name": "now", "arguments": arguments}}
    peer.says(events(piece(tool_calls=[call]), piece(finish="tool_calls"), "[DONE]"))
    (made,) = remote().generate("q", tools=[Tool("now")]).tool_calls
    assert (made.name, dict(made.arguments)) == ("now", {})


def test_calls_that_are_all_numbered_0_are_told_apart_by_their_ids(peer, remote):
    told = [
        {"index": 0, "id": name, "function": {"name": "add", "arguments": {"a": n, "b": n}}}
        for n, name in enumerate("xy")
    ]
    peer.says(events(*(piece(tool_calls=[c]) for c in told), piece(finish="stop"), "[DONE]"))
    answer = remote().generate("q", tools=[ADD])
    assert [call.id for call in answer.tool_calls] == ["x", "y"]


# Dialects


@pytest.mark.parametrize(
    ("owner", "dialect"),
    [("vllm", "vllm"), ("sglang", "sglang"), ("llavakit", "llavakit"), ("me", "generic")],
)
def test_the_dialect_is_told_by_the_models_owner(peer, remote, owner, dialect):
    peer.routes["/v1/models"] = models({"id": "m", "owned_by": owner, "max_model_len": 99})
    peer.says(words("hi"))
    backend = remote(dialect=None)
    assert backend.generate("q").text == backend.generate("q").text == "hi"
    assert backend.stats()["dialect"] == dialect
    assert backend.info.context_length == 99
    assert [path for _, path, _ in peer.seen].count("/v1/models") == 2  # once each


@pytest.mark.parametrize(
    ("owner", "dialect"), [("llamacpp", "llamacpp"), ("organization_owner", "lmstudio")]
)
def test_servers_of_laptops_are_found_out_by_the_owner_they_write(peer, remote, owner, dialect):
    peer.routes["/v1/models"] = models({"id": "m", "owned_by": owner})
    peer.says(words("hi"))
    backend = remote(dialect=None)
    assert backend.generate("q").text == "hi"
    assert backend.stats()["dialect"] == dialect


def test_ollama_is_found_out_by_its_version(peer, remote):
    peer.routes["/v1/models"] = models({"id": "llava:7b", "owned_by": "library"})
    peer.routes["/api/version"] = lambda handler: handler.json({"version": "0.13.0"})
    peer.says(says_ollama("hi"))
    backend = remote(dialect=None)
    assert backend.generate("q").text == "hi"
    assert backend.stats()["dialect"] == "ollama"


def test_llama_cpp_counts_the_text_that_its_template_makes(peer, remote):
    peer.routes["/v1/models"] = models({"id": "m", "owned_by": "llamacpp"})
    peer.routes["/props"] = lambda handler: handler.json(
        {"default_generation_settings": {"n_ctx": 4096}}
    )
    peer.routes["/apply-template"] = lambda handler: handler.json({"prompt": "USER: q ASSISTANT:"})
    peer.routes["/tokenize"] = lambda handler: handler.json({"tokens": [1, 2, 3, 4]})
    sent = []
    answer = peer.script_for
    peer.script_for = lambda handler, body: (sent.append(body), answer(handler, body))[1]
    backend = remote(dialect=None, context_length=None)
    assert backend.count_tokens("q") == 4
    assert backend.info.context_length == 4096
    text = {"content": "USER: q ASSISTANT:", "add_special": True, "parse_special": True}
    assert text in sent and {"messages": [{"role": "user", "content": "q"}]} in sent


def test_more_alternatives_than_were_asked_for_are_left_out(peer, remote):
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.0}]
    told = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
    first = piece("a")
    first["choices"][0]["logprobs"] = told
    for asked in (0, 1):
        peer.says(events(first, piece(finish="stop", usage=USAGE), "[DONE]"))
        answer = remote(dialect="llamacpp").generate("q", SamplingParams(logprobs=asked))
        assert [len(token.top) for token in answer.logprobs] == [asked]


def test_the_dialect_is_told_by_the_routes_where_the_models_do_not(peer, remote):
    peer.routes["/v1/models"] = refuses(500)
    peer.routes["/openapi.json"] = lambda handler: handler.json({"paths": {"/load_model": {}}})
    peer.says(words("hi", done=False))
    backend = remote(dialect=None)
    backend.generate("q")
    assert backend.stats()["dialect"] == "transformers"


def test_all_who_wait_for_a_dialect_are_told_together_that_there_is_no_server(remote):
    backend, told = remote(dialect=None, base_url="http://127.0.0.1:1"), []

    def ask():
        with pytest.raises(RemoteError, match="No connection") as caught:
            backend.generate("q")
        told.append(caught.value)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) == 16
    assert backend.stats()["retries"] < 16  # and not two each


def test_finding_the_dialect_out_does_not_hide_a_refused_key(peer, remote):
    peer.routes["/v1/models"] = refuses(401)
    with pytest.raises(RemoteError, match="refused"):
        remote(dialect=None).generate("q")


def test_stop_strings_are_kept_where_the_server_knows_none(peer, remote):
    def talkative(handler):
        handler.begin()
        for text in ("one, tw", "o, three", ", four"):
            handler.event(piece(text))
        open_ended(handler)

    peer.says(talkative)
    answer = remote(dialect="transformers").generate("q", SamplingParams(stop=("two",)))
    assert (answer.text, answer.finish_reason) == ("one, ", "stop")
    peer.release.set()
    assert peer.gone.wait(10)
    assert "stop" not in peer.asked[0]


def test_calls_are_read_out_of_the_text_where_the_server_knows_no_tools(peer, remote):
    said = 'Well: <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    peer.says(words(*[said[i : i + 7] for i in range(0, len(said), 7)], done=False))
    answer = remote(dialect="transformers").generate("q", tools=[ADD])
    assert answer.text == "Well: " and answer.finish_reason == "tool_calls"
    assert [dict(call.arguments) for call in answer.tool_calls] == [{"a": 1, "b": 2}]
    assert "tools" not in peer.asked[0] and "add" in peer.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("said", "finish", "sentence"),
    [
        ("<tool_call>add(1, 2)</tool_call>", "stop", "which is none"),
        ('<tool_call>{"name": "add"', "stop", "which is none"),
        ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>', "stop", "offered were add"),
    ],
)
def test_what_only_looks_like_a_call_is_an_error(peer, remote, said, finish, sentence):
    peer.says(words(said, done=False, finish=finish))
    with pytest.raises(RemoteError, match=sentence):
        remote(dialect="transformers").generate("q", tools=[ADD])


def test_one_call_is_enough_where_one_is_asked_for(peer, remote):
    call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    peer.says(words(call, call, done=False))
    answer = remote(dialect="transformers").generate("q", tools=[ADD], parallel_tool_calls=False)
    assert len(answer.tool_calls) == 1 and answer.finish_reason == "tool_calls"


# Facts


def test_the_context_may_be_told_by_the_caller(peer, remote):
    peer.routes["/v1/models"] = models({"id": "m"})
    with pytest.raises(RemoteError, match="context_length="):
        _ = remote().info
    assert remote(context_length=77).info.context_length == 77
    peer.routes["/v1/models"] = models({"id": "m", "max_model_len": 55})
    assert remote(context_length=78).info.context_length == 55


def test_tokens_are_counted_by_the_server_or_not_at_all(peer, remote):
    peer.routes["/tokenize"] = lambda handler: handler.json({"count": 12, "max_model_len": 99})
    picture = Message("user", [llavakit.Image(_png()), "What is it?"])
    assert remote().count_tokens("How many?") == 12
    assert remote(dialect="llavakit").count_tokens([picture]) == 12
    with pytest.raises(RemoteError, match="the tokens of images"):
        remote().count_tokens([picture])
    with pytest.raises(RemoteError, match="does not count tokens"):
        remote(dialect="generic").count_tokens("How many?")
    with pytest.raises(LlavaKitError, match="not a public address"):
        remote(dialect="llavakit").count_tokens(
            Message("user", [llavakit.Image("http://127.0.0.1:1/x.png")])
        )


def test_figures_of_the_moment(peer, remote):
    backend = remote()
    assert backend.stats() == {"running": 0, "waiting": 0}
    peer.says(words("hi"), open_ended)
    backend.generate("q")
    with backend.stream("q") as stream:
        next(stream)
        assert backend.stats()["running"] == 1
    figures = backend.stats()
    assert (figures["running"], figures["requests"], figures["prompt_tokens"]) == (0, 2, 7)


# Settings


def test_the_same_configuration_is_the_same_backend(peer, remote):
    first = remote(api_key="k")
    assert remote(api_key="k", base_url=peer.url + "/v1/") is first
    assert remote(api_key="other") is not first
    assert remote(api_key="k", max_retries=5) is not first


def test_the_key_goes_to_the_server_and_nowhere_else(peer, remote, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    peer.says(words("hi"))
    backend = remote(api_key="sesame-open")
    backend.generate("q")
    assert peer.seen[-1][2]["Authorization"] == "Bearer sesame-open"
    told = [repr(backend), repr(backend.config), str(backend.stats()), caplog.text]
    assert not [text for text in told if "sesame" in text]
    with pytest.raises(ParameterError, match=r"llavakit\.load"):
        pickle.dumps(backend)
    monkeypatch.setenv("LLAVAKIT_API_KEY", "from-outside")
    remote().generate("q")
    assert peer.seen[-1][2]["Authorization"] == "Bearer from-outside"
    remote(api_key="").generate("q")
    assert "Authorization" not in peer.seen[-1][2]


def test_proxies_of_the_environment_are_not_asked_about_this_machine(peer, remote, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    peer.says(words("hi"))
    assert remote(api_key="fresh").generate("q").text == "hi"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": "cpu"}, "device has no effect"),
        ({"quantization": "4bit"}, "quantization has no effect"),
        ({"conv_mode": "v1"}, "conv_mode has no effect"),
        ({"max_concurrency": 3}, "max_concurrency has no effect"),
        ({"colour": "red"}, "colour has no effect"),
        ({"dialect": "klingon"}, "use llavakit, vllm"),
        ({"max_retries": -1}, "at least 0"),
        ({"timeout": 0}, "above 0"),
        ({"api_key": "two\nlines"}, "HTTP header"),
    ],
)
def test_settings_that_a_server_cannot_take_are_refused(settings, sentence):
    with pytest.raises(ParameterError, match=sentence):
        llavakit.load("m", **{"base_url": "http://localhost:1", **settings})


@pytest.mark.parametrize("name", ["dialect", "max_retries", "timeout"])
def test_settings_of_servers_need_one(name):
    with pytest.raises(ParameterError, match="base_url"):
        llavakit.load("demo", **{name: "vllm" if name == "dialect" else 3})


# The thread


def _in_a_fresh_process(code: str, url: str) -> None:
    """Runs code where no other test has left a backend open."""
    begin = """
import gc, sys, threading, llavakit
def load(**settings):
    return llavakit.load("m", base_url=sys.argv[1], dialect="vllm", **settings)
def threads():
    return [thread for thread in threading.enumerate() if thread.name == "llavakit-remote"]
"""
    subprocess.run([sys.executable, "-c", begin + code, url], check=True, timeout=100)


def test_one_thread_serves_all_backends_and_ends_with_the_last(peer):
    peer.says(words("hi"))
    code = """
backends = [load(max_retries=n) for n in range(3)]
for backend in backends:
    backend.generate("q")
(thread,) = threads()
for backend in backends[:2]:
    backend.close()
assert backends[2].generate("q").text == "hi" and threads() == [thread]
backends[2].close()
thread.join(30)
assert not thread.is_alive()
"""
    _in_a_fresh_process(code, peer.url)


def test_a_dropped_backend_ends_the_thread_too(peer):
    peer.says(words("hi"))
    code = """
backend = load()
backend.generate("q")
(thread,) = threads()
del backend
gc.collect()
thread.join(30)
assert not thread.is_alive()
"""
    _in_a_fresh_process(code, peer.url)


def test_many_threads_ask_at_once(peer, remote):
    peer.says(words("hi"))
    backend, told = remote(dialect=None), []
    threads = [
        threading.Thread(target=lambda: told.append(backend.generate("q").text)) for _ in range(32)
    ]
    peer.routes["/v1/models"] = models({"id": "m", "owned_by": "vllm"})
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert told == ["hi"] * 32
    assert [path for _, path, _ in peer.seen].count("/v1/models") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_asks_for_itself_and_leaves_the_parent_alone(peer):
    peer.says(words("hi"))
    code = (
        "import llavakit, os, sys\n"
        f"backend = llavakit.load('m', base_url={peer.url!r}, dialect='vllm')\n"
        "assert backend.generate('q').text == 'hi'\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    told = backend.generate('q').text\n"
        "    backend.close()\n"
        "    os._exit(0 if told == 'hi' else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert backend.generate('q').text == 'hi'\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_no_torch_is_imported_and_the_exit_is_clean(peer):
    peer.says(words('{"name": "Ada", "age": 36}'))
    code = (
        # Whoever has a finaliser before us makes all of them run after our own end.
        "import weakref; weakref.finalize(weakref.WeakSet(), print)\n"
        "import llavakit, sys\n"
        f"backend = llavakit.load('m', base_url={peer.url!r})\n"
        f"params = llavakit.SamplingParams(json_schema={PERSON!r})\n"
        "backend.generate('q', params)\n"
        "stream = backend.stream('q')\n"
        "next(stream)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def _png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_the_body_is_what_the_docs_say(peer, remote):
    peer.says(words("hi"))
    params = SamplingParams(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=0, seed=3, stop=("x", "y")
    )
    remote().generate([Message("system", "Be short."), Message("user", "q")], params)
    assert json.loads(json.dumps(peer.asked[0])) == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
        "stop": ["x", "y"],
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "q"},
        ],
    }


def test_pictures_are_opened_under_the_backend_s_own_policy(peer, remote, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    backend = remote(source_policy=SourcePolicy(roots=[tmp_path / "in"]))
    with pytest.raises(SourceNotAllowedError):
        backend.generate([Message("user", [Image(tmp_path / "secret.png"), "What?"])])
    assert not peer.asked
