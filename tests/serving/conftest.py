"""A real server process with the bundled model, and apps in this process with a scripted one."""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from PIL import Image, ImageDraw

from llavakit.serving import Server, ServerSettings, create_app
from llavakit.serving.runner import listen
from llavakit.streams import AnswerStream, Channel
from llavakit.testing import FakeBackend
from tests.servers import llavakit_server


class Served:
    """A server of the bundled model, by its figures."""

    def __init__(self, url, process):
        self.url = url
        self.process = process

    def metrics(self, key=None):
        """Figures by their name, summed over labels."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return figures(httpx.get(f"{self.url}/metrics", headers=headers).text)

    def idle(self):
        """Waits until the engine has nothing to do; gives the figures."""
        return eventually(self.metrics, lambda found: not busy(found))


class Process(Served):
    """`llavakit serve` in a process of its own."""

    def __init__(self, *arguments):
        program = [sys.executable, "-c", "from llavakit.cli import main; main()"]
        process = subprocess.Popen(
            [*program, "serve", "demo", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        super().__init__("", process)
        self.lines = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for("listening on ").partition("listening on ")[2].partition(",")[0]

    def _read(self):
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self.lines.append("<end>")
            self._heard.notify_all()

    def wait_for(self, words, timeout=90):
        """The first line of stderr with these words."""

        def found():
            return [line for line in self.lines if words in line or line == "<end>"]

        with self._heard:
            assert self._heard.wait_for(found, timeout), self.lines
            line = found()[0]
        assert words in line, self.lines
        return line

    def ready(self):
        self.wait_for(" is ready")
        return self

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._reader.join(10)
        self.process.stderr.close()
        self.process.stdout.close()


def figures(text):
    found = Counter()
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0].removeprefix("llavakit:")
            found[name] += float(value)
    return found


def busy(found):
    return found["num_requests_running"] + found["num_requests_waiting"]


def eventually(ask, good, timeout=30):
    """What ``ask`` gives once it is good."""
    end = time.monotonic() + timeout
    while not good(found := ask()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def served():
    """A server of the bundled model, for all tests (marked ``enable_socket``)."""
    server = llavakit_server()
    return Served(server.url, server.process)


@contextlib.contextmanager
def running(backend, *, grace=5.0, **settings):
    """A server in a thread of this process; gives it, its address and its app."""
    app = create_app(backend, ServerSettings(**({"warm_up": False} | settings)))
    listener = listen("127.0.0.1", 0)
    server = Server(app, grace)
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.app = app
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    server.thread = thread
    try:
        eventually(lambda: server.started, bool)
        eventually(lambda: app.state.service.readiness.state, lambda state: state == "ready")
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Scripted(FakeBackend):
    """Streams whose chunks the test puts; errors and ends included."""

    def __init__(self):
        super().__init__()
        self.channels = []

    def submit(self, request):
        self.requests.append(request)
        self.channels.append(Channel())
        return AnswerStream(self.channels[-1], self._count_cancel)


async def begun(backend, count=1):
    async with asyncio.timeout(20):
        while len(backend.channels) < count:
            await asyncio.sleep(0.01)
    return backend.channels


class Neighbourly(ServerSettings):
    """Settings under which images are fetched from this machine too, where tests have servers."""

    def policy(self):
        return replace(super().policy(), allow_private_hosts=True)


@pytest.fixture
def client():
    """Clients of apps in this process: client(backend or answers, **settings)."""

    def make(backend=("a red circle",), kind=ServerSettings, **settings):
        if not isinstance(backend, FakeBackend):
            backend = FakeBackend(backend)
        app = create_app(backend, kind(**({"warm_up": False} | settings)))
        service = app.state.service
        service.readiness.begin()
        if settings.get("wait", True):
            eventually(lambda: service.readiness.state, lambda state: state != "loading")
        made = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        made.app, made.backend, made.service = app, backend, service
        return made

    return make


OPEN = {"/health", "/version", "/openapi.json"}
"""Where no key is asked for."""


def routes(app):
    """Method and path of every route of an app, a parameter in the path filled in."""
    return [
        (method, re.sub(r"\{.*?\}", "x", route.path))
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods)
    ]


def draw(colour="red", size=256):
    image = Image.new("RGB", (size, size), "white")
    edge = size * 7 // 25
    ImageDraw.Draw(image).ellipse((edge, edge, size - edge, size - edge), fill=colour)
    return image


def data_uri(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{encoded}"


def picture_block(colour="red", size=256):
    return {"type": "image_url", "image_url": {"url": data_uri(draw(colour, size))}}


def asking(question="What colour is the circle?", colour="red", **rest):
    """A request about an image, greedy."""
    content = [picture_block(colour), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "messages": messages, "temperature": 0, **rest}


def events_of(text):
    """The JSON of all events, but the last word."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def saying(text="hello", **rest):
    """A request without an image, for the scripted model."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **rest}


LONG = {"structured_outputs": {"regex": "[a-z ]{1500,3000}"}, "max_tokens": 3000}
"""An answer that takes seconds."""

ENDLESS = {"structured_outputs": {"regex": "[a-z ]{9000,12000}"}, "max_tokens": 3000}
"""An answer that a test leaves long before its end."""

CHAT = "/v1/chat/completions"
