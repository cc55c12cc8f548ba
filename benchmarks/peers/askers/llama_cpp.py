"""llama.cpp's server over HTTP on loopback, its prompt cache and continuous batching on."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from benchmarks.peers.child import Job, Reply, peak_memory
from benchmarks.peers.work import Request

CONTEXT = 1024
"""Tokens of one request; the longest chat has some 900."""
MARKER = "<__media__>"
READY_WITHIN = 120.0
"""Seconds."""


class LlamaServer:
    """A server that was started for this process alone."""

    def __init__(self, job: Job) -> None:
        self._job = job
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._log = Path(job.folder) / "llama-server.log"
        with self._log.open("w") as log:
            self._server = subprocess.Popen(
                self._command(), stdout=log, stderr=subprocess.STDOUT, env=self._environment()
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        bodies = [self._body(request) for request in requests]
        began = time.perf_counter()
        with ThreadPoolExecutor(len(bodies)) as readers:
            return list(readers.map(lambda body: self._answer(body, began), bodies))

    def peak_memory(self) -> int:
        return peak_memory(self._server.pid)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(30)

    def _command(self) -> list[str]:
        job = self._job
        model = Path(job.model)
        options: dict[str, Any] = {
            "--model": model,
            "--mmproj": model.with_name("vision.gguf"),
            "--host": "127.0.0.1",
            "--port": self._port,
            "--threads": job.threads,
            "--threads-batch": job.threads,
            "--parallel": job.slots,
            "--ctx-size": job.slots * CONTEXT,
        }
        flags = [str(word) for option in options.items() for word in option]
        return [job.program, *flags, "--cont-batching", "--no-webui"]

    def _environment(self) -> dict[str, str]:
        # --threads counts; the variable would bound what the server takes from OpenMP.
        kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        folders = [str(Path(self._job.program).parent), os.environ.get("LD_LIBRARY_PATH", "")]
        libraries = os.pathsep.join(filter(None, folders))
        return kept | {"LD_LIBRARY_PATH": libraries, "LLAMA_MEDIA_MARKER": MARKER}

    def _wait(self) -> None:
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended: {self._log.read_text()[-500:]}")
            try:
                if self._request("GET", "/health").status == 200:
                    return
            except ConnectionError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"llama-server was not ready within {READY_WITHIN:.0f} seconds")

    def _request(self, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def _prompt(self, request: Request) -> Any:
        image = base64.b64encode(self._job.image(request.image).read_bytes()).decode()
        return {"prompt_string": request.prompt(MARKER), "multimodal_data": [image]}

    def _body(self, request: Request) -> bytes:
        asked = {
            "prompt": self._prompt(request),
            "n_predict": request.max_tokens,
            "temperature": 0,
            # No other sampler may take time from the engine.
            "samplers": ["top_k", "temperature"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": True,
            "stream": True,
            "return_tokens": True,
        }
        return json.dumps(asked).encode()

    def _answer(self, body: bytes, began: float) -> Reply:
        response = self._request("POST", "/completion", body)
        if response.status != 200:
            raise RuntimeError(f"llama-server: {response.read().decode()}")
        first, last, tokens, text = 0.0, 0.0, 0, ""
        for line in response:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(f"llama-server: {event['error']}")
            if event["tokens"] and not event.get("stop"):
                last = time.perf_counter() - began
                first = first or last
                tokens += len(event["tokens"])
                text += event["content"]
        return Reply(first, last, tokens, text.strip())


start = LlamaServer
