"""The engine behind the seam: lifetime, limits, cancelling, and one bad request among good ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

import llavakit
from llavakit import Backend, Image, Message, SamplingParams, SourcePolicy
from llavakit.engine.config import EngineConfig
from llavakit.engine.loop import CHECKS
from llavakit.errors import (
    ContextLengthError,
    EngineClosedError,
    EngineError,
    ImageError,
    InputError,
    LlavaKitError,
    MessageError,
    ParameterError,
    QueueFullError,
    RequestTimeoutError,
    SourceNotAllowedError,
)
from llavakit.local import LocalBackend
from llavakit.values import Tool
from tests.loopback import LOCAL, Server, reply
from tests.tiny import TinyModel

LONG = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
SHORT = SamplingParams(max_tokens=4, temperature=0)
SOON: dict[str, dict[str, float]] = {"finished": {}, "cancelled": {}, "timed out": {"timeout": 0.1}}


@pytest.fixture
def backend(tiny: TinyModel) -> Iterator[LocalBackend]:
    backend = llavakit.load(tiny.path, max_concurrency=3, max_waiting=6)
    assert isinstance(backend, LocalBackend)
    yield backend
    backend.close()


def settle(backend: Backend) -> dict:
    """The figures once the engine is idle."""
    for _ in range(400):
        stats = backend.stats()
        if not (stats["running"] or stats["waiting"]):
            return stats
        time.sleep(0.01)
    raise AssertionError(f"the engine is not idle: {stats}")


def test_nothing_is_loaded_before_the_first_use(tiny: TinyModel):
    backend = llavakit.load(tiny.path, max_concurrency=9)
    assert backend.stats() == {"running": 0, "waiting": 0}
    assert backend._engine is None  # type: ignore[attr-defined]


def test_usage_counts_prompt_pictures_and_answer(backend: LocalBackend):
    message = Message("user", [Image(PILImage.new("RGB", (40, 40), "red")), "What is it?"])
    usage = backend.generate([message], SHORT).usage
    assert usage.prompt_tokens == backend.count_tokens([message])
    assert usage.image_tokens == 16
    assert usage.completion_tokens == 4


@pytest.mark.parametrize("checks", ["1", "0"])
def test_books_that_are_wrong_are_noticed_when_the_engine_falls_idle_in_debug_mode(
    tiny: TinyModel, checks: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(CHECKS, checks)
    backend = LocalBackend(EngineConfig(str(tiny.path), max_waiting=77), SourcePolicy())
    assert backend.generate("hello", SHORT).text
    backend._get_engine()._loop.scheduler.kv_tokens += 1
    with contextlib.suppress(EngineClosedError):
        backend.generate("hello", SHORT)
    until = time.monotonic() + 20
    while checks == "1" and not backend._engine.closed:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert backend._engine is not None and backend._engine.closed == (checks == "1")
    backend.close()


@pytest.mark.enable_socket
def test_counting_runs_nothing_and_obeys_the_policy(backend: LocalBackend):
    assert backend.count_tokens("hello") > 5
    assert backend._engine is None
    with pytest.raises(SourceNotAllowedError, match="not a public address"):
        backend.count_tokens([Message("user", [Image("http://127.0.0.1:1/a.png"), "?"])])


@pytest.mark.parametrize(
    "stretch",
    [
        [Message("system", "Be brief.")],
        [Message("user", "hi"), Message("assistant", "hello")],
        [Message("assistant", "hello")],
    ],
)
def test_stretch_of_a_conversation_can_be_counted(backend: LocalBackend, stretch):
    assert backend.count_tokens(stretch) > 5


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_tool_that_json_cannot_hold_is_refused_when_counted_and_when_run(backend, value):
    tool = Tool("pick", parameters={"type": "object", "properties": {"a": {"enum": value}}})
    with pytest.raises(InputError, match="JSON"):
        backend.count_tokens("hello", tools=[tool])
    with pytest.raises(InputError, match="JSON"):
        backend.generate("hello", SHORT, tools=[tool])


def test_same_picture_again_is_not_encoded_again(backend: LocalBackend):
    picture = PILImage.new("RGB", (40, 40), "red")
    for question in ("What is it?", "Where is it?"):
        backend.generate([Message("user", [question, Image(picture)])], SHORT)
    assert backend.stats()["images_encoded"] == 1


@pytest.mark.enable_socket
def test_one_picture_however_delivered_is_one_cache_entry(
    tiny: TinyModel, server: Server, tmp_path: Path
):
    path = tmp_path / "noise.png"
    PILImage.effect_noise((40, 30), 80).convert("RGB").save(path)
    server.answer = reply(path.read_bytes())
    encoded = base64.b64encode(path.read_bytes()).decode()
    sources = [path, str(path), encoded, f"data:image/png;base64,{encoded}", path.read_bytes()]
    sources += [PILImage.open(path), server.url(), server.url("/another-name.png")]
    backend = llavakit.load(tiny.path, source_policy=LOCAL, max_waiting=7)
    answers = {backend.ask(source, "What is it?", max_tokens=8) for source in sources}
    assert len(answers) == 1
    assert server.connections == 2
    stats = backend.stats()
    assert (stats["images_encoded"], stats["image_cache_entries"]) == (1, 1)
    # The prompts are equal to their last token, and so is what is kept of them.
    assert stats["kept_prefixes"] == 1
    backend.close()


def test_file_that_is_overwritten_is_another_picture(backend: LocalBackend, tmp_path):
    path = tmp_path / "changes.png"
    answers = []
    for colour in ("red", "blue", "red"):
        PILImage.new("RGB", (40, 40), colour).save(path)
        answers.append(backend.ask(path, "What is it?", max_tokens=8))
    assert answers[0] == answers[2] != answers[1]
    assert backend.stats()["images_encoded"] == 2


def test_same_bytes_in_a_transposed_size_are_another_picture(backend: LocalBackend):
    pixels = bytes(range(240)) * 5
    for size in ((20, 20), (40, 10), (10, 40)):
        backend.ask(PILImage.frombytes("RGB", size, pixels), "What is it?", max_tokens=2)
    assert backend.stats()["images_encoded"] == 3


def test_closed_stream_frees_the_sequence(backend: LocalBackend):
    stream = backend.stream("hello", LONG)
    next(stream)
    stream.close()
    stats = settle(backend)
    assert stats["cancelled"] == 1
    assert stats["kv_tokens_live"] == 0


def test_abandoned_stream_frees_the_sequence(backend: LocalBackend):
    for _chunk in backend.stream("hello", LONG):
        break
    assert settle(backend)["cancelled"] == 1


async def test_cancelled_task_frees_the_sequence(backend: LocalBackend):
    task = asyncio.create_task(backend.agenerate("hello", LONG))
    while not backend.stats()["running"]:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert settle(backend)["kv_tokens_live"] == 0


async def test_event_loop_goes_on_while_the_model_runs(backend: LocalBackend):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await asyncio.gather(*(backend.agenerate("hello", LONG) for _ in range(3)))
    ticker.cancel()
    assert ticks > 20


def test_many_threads_get_what_each_gets_alone(backend: LocalBackend):
    prompts = [f"question {number}" for number in range(6)]
    alone = [backend.generate(prompt, SHORT).text for prompt in prompts]
    together: dict[str, str] = {}

    def ask(prompt: str) -> None:
        together[prompt] = backend.generate(prompt, SHORT).text

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone


def test_several_answers_share_one_prefill_and_differ(backend: LocalBackend):
    picture = Image(PILImage.new("RGB", (40, 40), "red"))
    message = Message("user", [picture, "What could this be, and why?"])
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=5)
    answers = backend.choices([message], params, n=3)
    assert len({answer.text for answer in answers}) == 3
    prompt = answers[0].usage.prompt_tokens
    assert [answer.usage.cached_tokens for answer in answers] == [0, prompt - 1, prompt - 1]
    assert answers[1].text == backend.generate([message], replace(params, seed=6)).text


def test_seed_gives_the_same_answer_whatever_runs_beside_it(backend: LocalBackend):
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=5, top_p=0.9)
    alone = backend.generate("hello", params).text
    others = [backend.stream(f"other {n}", LONG) for n in range(2)]
    assert backend.generate("hello", params).text == alone
    for other in others:
        other.close()
    assert backend.generate("hello", SamplingParams(20, 1.0, seed=6)).text != alone


def test_prompt_that_is_too_long_is_refused_with_the_numbers(backend: LocalBackend):
    with pytest.raises(ContextLengthError) as caught:
        backend.generate("a" * 3000, SHORT)
    assert caught.value.context_length == 2048
    assert caught.value.prompt_tokens > 3000
    assert str(caught.value.prompt_tokens) in str(caught.value)


def test_answer_that_meets_the_context_limit_says_so(backend: LocalBackend):
    completion = backend.generate("a" * 2000, SamplingParams(max_tokens=500, temperature=0))
    assert completion.finish_reason in ("length", "stop")
    assert completion.usage.total_tokens <= 2048


def test_queue_is_bounded(backend: LocalBackend):
    streams = []
    with pytest.raises(QueueFullError, match="max_waiting"):
        for _ in range(30):
            streams.append(backend.stream("hello", LONG))
    for stream in streams:
        stream.close()
    settle(backend)


def test_bound_of_the_queue_holds_when_many_come_at_once(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
):
    backend.generate("hello", SHORT)
    scheduler = backend._get_engine()._loop.scheduler
    go_on, schedule = threading.Event(), scheduler.schedule
    monkeypatch.setattr(scheduler, "schedule", lambda: (go_on.wait(30), schedule())[1])
    streams, refused = [], []

    def ask() -> None:
        for _ in range(4):
            try:
                streams.append(backend.stream("hello", SHORT))
            except QueueFullError as error:
                refused.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert (len(streams), len(refused)) == (6, 26)
    assert backend.stats()["waiting"] == 6
    go_on.set()
    for stream in streams:
        list(stream)
    assert settle(backend)["waiting"] == 0


def test_timeout_ends_a_request_that_waits_or_runs(backend: LocalBackend):
    with pytest.raises(RequestTimeoutError, match=r"0\.05 seconds"):
        # The grammar keeps the answer from ending by itself before that.
        backend.generate(
            "hello", SamplingParams(max_tokens=1900, grammar="[ab]{1900}"), timeout=0.05
        )
    assert issubclass(RequestTimeoutError, TimeoutError)
    settle(backend)


def test_bad_picture_fails_alone(backend: LocalBackend):
    good = backend.stream("hello", LONG)
    with pytest.raises(ImageError):
        backend.generate([Message("user", [Image(b"not an image"), "?"])], SHORT)
    assert list(good)[-1].finish_reason is not None


def test_request_that_breaks_the_model_fails_alone(backend: LocalBackend, monkeypatch):
    backend.generate("warm up", SHORT)
    runner = backend._get_engine()._loop.runner
    hidden = runner._hidden

    def break_on_poison(work, features, drawn=None):
        if any(2 * [ord("X") + 5] == one.sequence.tokens[-3:-1] for one in work):
            raise RuntimeError("poison")
        return hidden(work, features, drawn)

    monkeypatch.setattr(runner, "_hidden", break_on_poison)
    expected = backend.generate("hello", SHORT).text
    streams = [backend.stream(text, SHORT) for text in ("hello", "hello", "hello")]
    assert ["".join(c.text for c in s) for s in streams] == [expected] * 3

    def always(work, features, drawn=None):
        if any(one.sequence.request.messages[0].text == "poison" for one in work):
            raise RuntimeError("poison")
        return hidden(work, features, drawn)

    monkeypatch.setattr(runner, "_hidden", always)
    streams = [backend.stream(text, SHORT) for text in ("hello", "poison", "hello")]
    results = []
    for stream in streams:
        try:
            results.append("".join(chunk.text for chunk in stream))
        except EngineError as error:
            results.append(type(error.__cause__).__name__)
    assert results == [expected, "RuntimeError", expected]
    backend._get_engine()._loop.scheduler.check_integrity()


def test_out_of_memory_in_the_tower_halves_the_batch(backend: LocalBackend, monkeypatch):
    backend.generate("warm up", SHORT)
    vision = backend._get_engine()._loop.runner.vision
    encode, sizes = vision._encode, []

    def small_device(pictures):
        sizes.append(len(pictures))
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("too much")
        return encode(pictures)

    monkeypatch.setattr(vision, "_encode", small_device)
    colours = ("red", "green", "blue")
    images = [Image(PILImage.new("RGB", (40, 40), colour)) for colour in colours]
    backend.generate([Message("user", [*images, "Which?"])], SHORT)
    assert max(sizes) == 3 and sizes.count(1) == 3


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["finished", "cancelled", "timed out"])
def test_loop_that_dies_while_it_frees_a_request_ends_that_one_too(
    backend: LocalBackend, monkeypatch, how
):
    engine = backend._get_engine()
    other = backend.stream("hello", LONG)
    next(other)
    monkeypatch.setattr(engine._loop.scheduler, "release", lambda *args, **kwargs: 1 / 0)
    stream = backend.stream("hi", SHORT if how == "finished" else LONG, **SOON[how])
    if how == "cancelled":
        next(stream)
        stream.close()
    else:
        with pytest.raises(EngineClosedError, match="died"):
            list(stream)
    with pytest.raises(EngineClosedError, match="died"):
        list(other)


def test_dead_loop_ends_every_request_and_load_gives_a_fresh_engine(
    backend: LocalBackend, monkeypatch
):
    expected = backend.generate("hello", SHORT).text
    engine = backend._get_engine()
    streams = [backend.stream("hello", LONG) for _ in range(3)]
    monkeypatch.setattr(engine._loop.scheduler, "schedule", lambda: 1 / 0)
    for stream in streams:
        with pytest.raises(EngineClosedError, match="died"):
            list(stream)
    assert engine.closed
    assert backend.generate("hello", SHORT).text == expected


def test_close_ends_every_open_request(backend: LocalBackend):
    streams = [backend.stream("hello", LONG) for _ in range(5)]
    backend.close()
    for stream in streams:
        with pytest.raises(EngineClosedError):
            list(stream)
    with pytest.raises(EngineClosedError):
        backend.generate("hello")


def test_half_a_character_in_a_tool_is_told_too(backend: LocalBackend):
    with pytest.raises(MessageError, match="half a character"):
        backend.generate("hello", tools=[Tool("add", "Adds \ud83d")])


def test_a_conversation_in_which_nobody_speaks_is_refused(backend: LocalBackend):
    with pytest.raises(MessageError, match="conversation is empty"):
        backend.generate([])
    with pytest.raises(MessageError, match="conversation is empty"):
        backend.generate([Message("system", "")])


def test_image_token_typed_by_a_user_is_text(backend: LocalBackend):
    usage = backend.generate("Is <image> here? </s><s>", SHORT).usage
    assert usage.image_tokens == 0
    assert usage.prompt_tokens == backend.count_tokens("Is (image) here? (/s)(s)")


def test_stop_string_ends_the_answer_and_is_not_in_it(backend: LocalBackend):
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=3)
    whole = backend.generate("hello", params)
    middle = whole.text[len(whole.text) // 2]
    cut = backend.generate(
        "hello", SamplingParams(max_tokens=60, temperature=1.0, seed=3, stop=(middle,))
    )
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(middle)]


def test_logprobs_come_with_their_alternatives(backend: LocalBackend):
    completion = backend.generate("hello", SamplingParams(max_tokens=5, temperature=0, logprobs=3))
    assert len(completion.logprobs) == completion.usage.completion_tokens
    for one in completion.logprobs:
        assert len(one.top) == 3
        assert one.logprob == pytest.approx(one.top[0][1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_forked_child_gets_an_engine_of_its_own(tiny: TinyModel):
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
import torch; torch.set_num_threads(2)
import llavakit
from llavakit import SamplingParams
backend = llavakit.load({str(tiny.path)!r})
expected = backend.generate("hello", SamplingParams(max_tokens=4, temperature=0)).text
child = os.fork()
if child == 0:
    text = backend.generate("hello", SamplingParams(max_tokens=4, temperature=0)).text
    os._exit(0 if text == expected else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_interpreter_ends_while_requests_are_open(tiny: TinyModel):
    code = f"""
import llavakit
backend = llavakit.load({str(tiny.path)!r})
stream = backend.stream("hello", llavakit.SamplingParams(max_tokens=1500))
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_every_error_is_one_that_users_can_catch(backend: LocalBackend):
    for bad in ([], "x" * 5000, [Message("user", [Image("/nowhere.png")])]):
        with pytest.raises(LlavaKitError):
            backend.generate(bad)


def test_a_stop_string_may_lie_across_tokens(backend):
    params = {"max_tokens": 60, "temperature": 0, "grammar": "abcSTOPdef"}
    assert backend.generate("hello", SamplingParams(**params)).text == "abcSTOPdef"
    cut = backend.generate("hello", SamplingParams(**params, stop=("STOP",)))
    assert (cut.text, cut.finish_reason) == ("abc", "stop")


def test_answers_without_a_seed_differ(backend):
    # Hot enough that both letters are as likely: 64 equal ones are no accident. (Most of the
    # tiny model's own tokens are pieces of characters, which all read alike.)
    params = SamplingParams(max_tokens=80, temperature=1000.0, grammar="[ab]{64}")
    assert len({backend.generate("hello", params).text for _ in range(3)}) == 3


LONG = SamplingParams(max_tokens=1900, grammar="[ab]{1900}", temperature=0)


@pytest.fixture
def narrow(tiny):
    """A backend that answers one request at a time."""
    backend = llavakit.load(tiny.path, max_concurrency=1, max_waiting=6)
    yield backend
    backend.close()


def test_a_timeout_ends_a_request_that_waits(narrow):
    with narrow.stream("hello", LONG) as first:
        next(first)
        with pytest.raises(RequestTimeoutError):
            narrow.generate("other", LONG, timeout=0.05)
        stats = narrow.stats()
        assert (stats["running"], stats["finished"]) == (1, 0)


def test_a_request_that_waits_can_be_cancelled(narrow):
    with narrow.stream("hello", LONG) as first:
        next(first)
        second = narrow.stream("other", LONG)
        until(lambda: narrow.stats()["waiting"])
        second.close()
        until(lambda: not narrow.stats()["waiting"])
        stats = narrow.stats()
        assert (stats["running"], stats["cancelled"]) == (1, 1)


def until(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_device_that_is_not_there_is_one_sentence(tiny):
    for device in ("foo", "meta:x", "xpu"):
        with pytest.raises(ParameterError, match=r"no device .*cpu"):
            llavakit.load(tiny.path, device=device).generate("hello")


def test_what_is_for_servers_is_refused_without_one(tiny):
    with pytest.raises(ParameterError, match="api_key is for servers"):
        llavakit.load(tiny.path, api_key="k")
