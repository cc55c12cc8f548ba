"""Real servers of other projects, where environment variables say where they are built.

``LLAVAKIT_LLAMA_SERVER`` is llama.cpp's ``llama-server``; ``LLAVAKIT_LLAMA_MODEL`` and
``LLAVAKIT_LLAMA_MMPROJ`` are the GGUF files of a LLaVA. ``LLAVAKIT_VLLM`` is a Python that has vLLM
for the CPU, and ``LLAVAKIT_VLLM_MODEL`` the folder of a LLaVA. Models must have a context of 1,024
tokens at least; those of the recordings have random weights and a vocabulary of 8,000 tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.remote.conversations import KEY, MODEL
from tests.servers import RealServer

_LLAMA = ("LLAVAKIT_LLAMA_SERVER", "LLAVAKIT_LLAMA_MODEL", "LLAVAKIT_LLAMA_MMPROJ")
_VLLM = ("LLAVAKIT_VLLM", "LLAVAKIT_VLLM_MODEL")
_ONE_THREAD = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_RECORDED = Path(__file__).parent / "recorded"
_HERMES = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
_TEMPLATE = str(_RECORDED / "vicuna.jinja")
"""With Jinja, llama-server takes the name of a built-in template for the template itself."""
_MORE = {
    "llamacpp": (_LLAMA, ["--chat-template-file", _TEMPLATE]),
    "llamacpp without jinja": (_LLAMA, ["--no-jinja", "--chat-template", "vicuna"]),
    "llamacpp with a key": (_LLAMA, ["--api-key", KEY]),
    "vllm": (_VLLM, []),
    "vllm with a parser and a template without tools": (_VLLM, _HERMES),
    "vllm with a parser": (
        _VLLM,
        [*_HERMES, "--chat-template", str(_RECORDED / "tools.jinja")],
    ),
}


def variables(server: str) -> tuple[str, ...]:
    """The environment variables that a server needs."""
    return _MORE[server][0]


@contextmanager
def running(server: str) -> Iterator[str]:
    """Start one of the kinds of ``conversations.BY_SERVER``; gives its address."""
    names, more = _MORE[server]
    program, *files = (os.environ[name] for name in names)
    if names is _LLAMA:
        model, projector = files
        command = [program, "-m", model, "--mmproj", projector, "--alias", MODEL, "-c", "2048"]
        command += ["-np", "2", "-t", "1", "-tb", "1", "--host", "127.0.0.1", "--port", "PORT"]
        started = RealServer(server, MODEL, [*command, "--no-webui", *more], "/health")
    else:
        command = [program, "-m", "vllm.entrypoints.openai.api_server", "--model", files[0]]
        command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "PORT"]
        command += ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4"]
        command += ["--enforce-eager", "--limit-mm-per-prompt", '{"image": 2}', *more]
        started = RealServer(server, MODEL, command, "/health", _ONE_THREAD, 600)
    try:
        yield started.url
    finally:
        started.close()
