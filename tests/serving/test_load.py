"""Many clients at once against a server process: nobody is harmed, and nothing piles up."""

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import CHAT, ENDLESS, asking, picture_block, saying

pytestmark = pytest.mark.enable_socket

CLIENTS = 64
COLOURS = ("red", "green", "blue", "yellow")
BAD = (
    {"model": "other", "messages": [{"role": "user", "content": "x"}]},
    asking() | {"temperature": -1},
    asking() | {"beams": 4},
    saying("so " * 5000, model="demo"),
    {"model": "demo", "messages": [{"role": "user", "content": [{"type": "image_url",
     "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
    {"model": "demo", "messages": [{"role": "user", "content": [{"type": "image_url",
     "image_url": {"url": "/etc/passwd"}}]}]},
)  # fmt: skip
BLOCKS = {colour: picture_block(colour) for colour in COLOURS}
QUESTION = {"type": "text", "text": "What colour is the circle?"}


def question(colour, **rest):
    messages = [{"role": "user", "content": [BLOCKS[colour], QUESTION]}]
    return {"model": "demo", "messages": messages, "temperature": 0, **rest}


class Crowd:
    """Clients that ask until a time is over; what went wrong is noted, not raised."""

    path, bad_bodies = CHAT, BAD

    def __init__(self, url, seconds, leaving=0.0, bad=0.0):
        self.url = url
        self.end = time.monotonic() + seconds
        self.leaving = leaving
        self.bad = bad
        self.counts = Counter()
        self.wrong = []

    async def run(self):
        limits = httpx.Limits(max_connections=CLIENTS + 1)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
            clients = (self.client(http, number) for number in range(CLIENTS))
            await asyncio.gather(self.watch(http), *clients)

    async def watch(self, http):
        """Prometheus and a load balancer."""
        while time.monotonic() < self.end:
            for path in ("/metrics", "/health"):
                answer = await http.get(path)
                self.note(path, answer.status_code == 200, answer.text)
            await asyncio.sleep(0.2)

    async def client(self, http, number):
        chance = random.Random(number)
        while time.monotonic() < self.end:
            lot = chance.random()
            colour = chance.choice(COLOURS)
            try:
                if lot < self.leaving:
                    await self.leave(http)
                elif lot < self.leaving + self.bad:
                    await self.err(http, chance.choice(self.bad_bodies))
                elif chance.random() < 0.5:
                    await self.whole(http, colour)
                else:
                    await self.streamed(http, colour)
            except Exception as error:
                self.wrong.append(repr(error))

    async def whole(self, http, colour):
        answer = await http.post(self.path, json=self.question(colour))
        self.note("whole", answer.status_code == 200, answer.text)
        said = self.answer(answer.json())
        self.note("right", said == colour, said)

    async def streamed(self, http, colour):
        lines = []
        async with http.stream("POST", self.path, json=self.question(colour, stream=True)) as got:
            async for line in got.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line[6:])
        self.note("streamed", self.is_end(lines[-1]), lines[-1:])
        said = self.added(lines)
        self.note("right", said == colour, said)

    async def leave(self, http):
        async with http.stream("POST", self.path, json=self.endless()) as answer:
            async for line in answer.aiter_lines():
                if self.has_words(line):
                    break
        self.counts["left"] += 1

    async def err(self, http, body):
        answer = await http.post(self.path, json=body)
        self.note("refused", answer.status_code in (400, 404), answer.text)

    def note(self, what, good, found):
        self.counts[what] += 1
        if not good:
            self.wrong.append((what, found))

    def question(self, colour, **rest):
        return question(colour, **rest)

    def endless(self):
        return saying("Go on", model="demo", stream=True, **ENDLESS)

    def answer(self, body):
        return body["choices"][0]["message"]["content"]

    def is_end(self, data):
        return data == "[DONE]"

    def added(self, lines):
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
        return "".join(delta.get("content", "") for delta in deltas)

    def has_words(self, line):
        return '"content":"' in line and '"role"' not in line


def responses_question(colour, **rest):
    image = {"type": "input_image", "image_url": BLOCKS[colour]["image_url"]["url"]}
    words = {"type": "input_text", "text": QUESTION["text"]}
    said = [{"role": "user", "content": [image, words]}]
    return {"model": "demo", "input": said, "temperature": 0, **rest}


ONLY_AN_ENDLESS_LIST = {
    "type": "json_schema",
    "name": "endless",
    "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 900},
}


class ResponsesCrowd(Crowd):
    """The same by the Responses API."""

    path = "/v1/responses"
    bad_bodies = (
        responses_question("red", model="other"),
        responses_question("red", temperature=-1),
        responses_question("red", beams=4),
        responses_question("red", previous_response_id="resp_1"),
        {"model": "demo", "input": "so " * 5000},
        {"model": "demo", "input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]},
        {"model": "demo", "input": [{"role": "user", "content": [
            {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0xLjQK"}]}]},
    )  # fmt: skip

    def question(self, colour, **rest):
        return responses_question(colour, **rest)

    def endless(self):
        form = {"format": ONLY_AN_ENDLESS_LIST}
        return {"model": "demo", "input": "Go on", "stream": True, "text": form}

    def answer(self, body):
        return body["output"][0]["content"][0]["text"]

    def is_end(self, data):
        return json.loads(data)["type"] == "response.completed"

    def added(self, lines):
        events = [json.loads(line) for line in lines]
        deltas = [one["delta"] for one in events if one["type"] == "response.output_text.delta"]
        assert "".join(deltas) == self.answer(events[-1]["response"])
        return "".join(deltas)

    def has_words(self, line):
        return '"type":"response.output_text.delta"' in line


KINDS = [
    pytest.param(Crowd, 3, id="chat"),
    pytest.param(Crowd, 60, id="chat-a-minute", marks=pytest.mark.slow),
    pytest.param(ResponsesCrowd, 60, id="responses-a-minute", marks=pytest.mark.slow),
]


def memory(served):
    """Resident bytes of the server."""
    pages = Path(f"/proc/{served.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.parametrize(("kind", "seconds"), KINDS)
async def test_sixty_four_clients_are_all_answered_rightly_and_memory_is_level(
    served, kind, seconds
):
    before = await asyncio.to_thread(served.idle)
    warm = kind(served.url, seconds / 3)
    await warm.run()
    level = memory(served)
    crowd = kind(served.url, seconds)
    await crowd.run()
    print(f"{seconds} s: {dict(crowd.counts)}; memory {level} -> {memory(served)}")
    assert crowd.wrong == warm.wrong == []
    assert crowd.counts["whole"] >= CLIENTS / 4 and crowd.counts["streamed"] >= CLIENTS / 4
    assert memory(served) < level + 48 * 2**20
    after = await asyncio.to_thread(served.idle)
    answered = sum(c[kind] for c in (warm.counts, crowd.counts) for kind in ("whole", "streamed"))
    assert after["request_success_total"] - before["request_success_total"] == answered
    assert after["request_errors_total"] == before["request_errors_total"]


@pytest.mark.parametrize(("kind", "seconds"), KINDS)
async def test_who_leaves_and_who_errs_harms_nobody_else(served, kind, seconds):
    before = await asyncio.to_thread(served.idle)
    crowd = kind(served.url, seconds, leaving=0.1, bad=0.1)
    await crowd.run()
    print(f"{seconds} s: {dict(crowd.counts)}; memory {memory(served)}")
    assert crowd.wrong == []
    assert crowd.counts["left"] and crowd.counts["refused"] and crowd.counts["right"]
    after = await asyncio.to_thread(served.idle)
    cancelled = "engine_requests_cancelled_total"
    assert after[cancelled] - before[cancelled] == crowd.counts["left"]
    assert after["engine_requests_failed_total"] == before["engine_requests_failed_total"]
    assert after["kv_cache_tokens_live"] == 0
