"""Real servers of the bundled model, each in a process of its own: ours, and transformers'.

A server is started by the first test that asks for it, and serves all others of the run. Tests
that use one carry ``enable_socket``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import httpx

from llavakit.demo import checkpoint_path

_STARTED: list[RealServer] = []
_LLAVAKIT = "from llavakit.cli import main; main()"


class RealServer:
    """A server, and its process; ``model`` is its name for the bundled model.

    Args:
        name: its dialect.
        model: its name for the model.
        command: what starts it; ``PORT`` stands for the port.
        ready: the path that answers 200 once the model is there.
        env: further variables of its environment.
        patience: most seconds until it is ready.
    """

    def __init__(
        self,
        name: str,
        model: str,
        command: list[str],
        ready: str,
        env: Mapping[str, str] = MappingProxyType({}),
        patience: float = 240,
    ) -> None:
        self.name = name
        self.model = model
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [part.replace("PORT", str(port)) for part in command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env},
        )
        _STARTED.append(self)
        self._wait(ready, patience)

    def _wait(self, ready: str, patience: float) -> None:
        end = time.monotonic() + patience
        # A client of its own: LangChain's suite has another `httpx.get` while it runs.
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            while time.monotonic() < end and self.process.poll() is None:
                try:
                    if client.get(ready).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        self._log.seek(0)
        said = self._log.read()[-4000:]
        self.close()
        raise AssertionError(f"{self.name} did not start:\n{said}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


def close_all() -> None:
    """End the servers of this run; the last thing that a session of pytest does."""
    while _STARTED:
        _STARTED.pop().close()


@cache
def llavakit_server() -> RealServer:
    """``llavakit serve demo``."""
    command = [sys.executable, "-c", _LLAVAKIT, "serve", "demo", "--port", "PORT"]
    return RealServer("llavakit", "demo", command, "/health")


@cache
def transformers_server() -> RealServer:
    """``transformers serve`` on the same checkpoint: another implementation of everything."""
    checkpoint = str(checkpoint_path())
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", checkpoint, "--host", "127.0.0.1", "--port", "PORT"]
    command += ["--device", "cpu", "--dtype", "float32"]
    return RealServer("transformers", checkpoint, command, "/health")


SERVERS = {"llavakit": llavakit_server, "transformers": transformers_server}
