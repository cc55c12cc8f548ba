"""How long a small image waits while others are slow: ``python -m benchmarks.fairness``.

A server of the bundled model is asked about a small image by value, again and again: alone, under
40 addresses that drip, and under 8 large images that are slow to decode, sent again and again. The
99th percentile beside them should be at most three times the one alone. Everything runs on this
machine, clients included, so that they share its processors with the server.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import http.server
import io
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from PIL import Image

SERVER = """
import dataclasses, sys, llavakit, uvicorn
from llavakit.serving import ServerSettings, create_app

class Settings(ServerSettings):
    def policy(self, **options):
        policy = ServerSettings.policy(self, **options)
        return dataclasses.replace(policy, allow_private_hosts=True)

settings = Settings(model_name="demo", allow_urls=True)
backend = llavakit.load("demo", source_policy=settings.policy())
uvicorn.run(create_app(backend, settings), port=int(sys.argv[1]), log_level="critical")
"""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of requests, sorted."""

    seconds: list[float]

    def percentile(self, share: float) -> float:
        """The time that this share of requests took at most."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


class _Drip(http.server.BaseHTTPRequestHandler):
    """Gives a byte each half second."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b"a")
                self.wfile.flush()
                time.sleep(0.5)
        except OSError:
            pass


class _Drips(http.server.ThreadingHTTPServer):
    request_queue_size, daemon_threads = 128, True


@contextmanager
def served() -> Iterator[str]:
    """The address of a server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(400):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        yield url
    finally:
        process.kill()
        process.wait()


def about(url: str) -> dict[str, Any]:
    """A request about one image."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "temperature": 0, "max_tokens": 8, "messages": messages}


def data_uri(image: Image.Image, form: str, **options: Any) -> str:
    """An image by value."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return "data:;base64," + base64.b64encode(buffer.getvalue()).decode()


def asked(url: str, count: int) -> Times:
    """The times of so many small images, one after the other, each another one."""
    times = []
    with httpx.Client(base_url=url, timeout=120) as client:
        for _ in range(count):
            small = data_uri(Image.effect_noise((200, 200), 40).convert("RGB"), "PNG")
            begun = time.perf_counter()
            client.post("/v1/chat/completions", json=about(small)).raise_for_status()
            times.append(time.perf_counter() - begun)
    return Times(sorted(times))


def send_for_ever(url: str, bodies: list[bytes], drips: int) -> None:
    """Be many clients, one a body and one a dripping address, who ask again and again."""
    if drips:
        server = _Drips(("127.0.0.1", 0), _Drip)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses = [f"http://127.0.0.1:{server.server_port}/{n}.png" for n in range(drips)]
        bodies = [json.dumps(about(address)).encode() for address in addresses]

    def send(body: bytes) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while True:
                headers = {"Content-Type": "application/json"}
                client.post("/v1/chat/completions", content=body, headers=headers)

    threads = [threading.Thread(target=send, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def busy(url: str, bodies: list[bytes] | None = None, drips: int = 0) -> Iterator[None]:
    """Other clients, in a process of their own."""
    spawn = multiprocessing.get_context("spawn")
    others = spawn.Process(target=send_for_ever, args=(url, bodies or [], drips), daemon=True)
    others.start()
    time.sleep(8)
    try:
        yield
    finally:
        others.kill()
        others.join()


def slow_images(count: int) -> list[bytes]:
    """Bodies with images of 30 megapixels in formats that take longest."""
    large = Image.effect_noise((1500, 1250), 60).convert("RGB").resize((6000, 5000))
    forms: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {"quality": 30, "progressive": True}),
        ("AVIF", {"quality": 10, "speed": 10}),
        ("JPEG2000", {"quality_mode": "rates", "quality_layers": [50]}),
    ]
    made = [data_uri(large, form, **options) for form, options in forms]
    return [json.dumps(about(made[number % len(made)])).encode() for number in range(count)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    count = parser.parse_args().requests
    with served() as url:
        asked(url, 5)
        first = asked(url, count)
        with busy(url, drips=40):
            dripping = asked(url, count)
        with busy(url, slow_images(8)):
            slow = asked(url, count)
        time.sleep(10)  # what the others left behind is worked off
        alone = Times(sorted(first.seconds + asked(url, count).seconds))
    report("alone, before and after", alone, alone)
    report("beside 40 dripping addresses", dripping, alone)
    report("beside 8 slow images", slow, alone)


def report(name: str, times: Times, alone: Times) -> None:
    """Print a line of the table."""
    ratio = times.percentile(0.99) / alone.percentile(0.99)
    print(
        f"{name:<28} median {times.percentile(0.5):6.3f} s, 99% {times.percentile(0.99):6.3f} s "
        f"({ratio:.1f} x alone)",
        flush=True,
    )


if __name__ == "__main__":
    main()
