"""``llavakit.load``: one backend for each configuration, shared by the whole process."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from llavakit._checks import check_instance, refused
from llavakit._forks import ForkLock
from llavakit.backend import Backend
from llavakit.errors import ParameterError

if TYPE_CHECKING:
    import httpx

    from llavakit.engine.config import EngineConfig
    from llavakit.sources import SourcePolicy

_backends: weakref.WeakValueDictionary[Any, Backend] = weakref.WeakValueDictionary()
_backends_lock = ForkLock()


def load(
    model: str | os.PathLike[str],
    *,
    model_base: str | os.PathLike[str] | None = None,
    conv_mode: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    keep_alive: float | str | None = None,
    warm_up: bool = False,
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: str | None = None,
    max_retries: int | None = None,
    timeout: float | None = None,
    default_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    http_client: httpx.Client | httpx.AsyncClient | None = None,
    client_kwargs: Mapping[str, Any] | None = None,
    source_policy: SourcePolicy | None = None,
    **settings: Any,
) -> Backend:
    """Load a model's backend: the same object for the same configuration in one process.

    Nothing heavy happens here, unless ``warm_up`` asks for it. The weights are loaded at the
    first use, once, and freed when the last reference to the backend is dropped or ``close()`` is
    called.

    Args:
        model: an alias (``"demo"``), a local directory, or a hub id; with ``base_url`` the
            server's name for it.
        model_base: the base model of a LoRA or projector-only checkpoint, named like a model.
        conv_mode: a conversation template by name; None takes the checkpoint's own.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        dtype: ``"auto"``, ``"float32"``, ``"float16"``, ``"bfloat16"``.
        quantization: ``"4bit"``, ``"8bit"`` or None; ``load_in_4bit`` and ``load_in_8bit``
            are understood too.
        keep_alive: how long the weights stay in memory when no request runs or waits: seconds, a
            duration such as ``"5m"`` or ``"1h30m"``, 0 (not at all), -1 or None (for ever). The
            next request loads them again, and waits for it. Backends of one configuration that
            differ in this share the weights, and the longest time of those in use counts.
        warm_up: load the model now, run a first request, and compile and capture what steps
            need, which would otherwise happen while requests wait. Its progress is logged; for
            more, call ``warm_up(progress)`` of the backend.
        base_url: address of an OpenAI-compatible server that runs the model, with or without
            ``/v1``. Of the other settings only those below and ``context_length`` apply.
        api_key: the server's key; None reads ``LLAVAKIT_API_KEY``, ``""`` sends no key.
        dialect: which kind of server it is: ``"llavakit"``, ``"vllm"``, ``"sglang"``,
            ``"transformers"``, ``"llamacpp"``, ``"ollama"``, ``"lmstudio"`` or ``"generic"``; None
            finds out (see ``docs/remote.md``).
        max_retries: most further attempts, where a server gave no answer; the default is 2.
        timeout: seconds for a whole answer of a server, for requests that name none.
        default_headers: further headers of every request to a server.
        extra_body: further fields of every chat completion that a server is asked for.
        http_client: a client for the requests to a server, with the program's own proxy or
            certificates; it is never closed here.
        client_kwargs: arguments of ``httpx.AsyncClient`` for the client that is made instead.
        source_policy: which files and addresses images may come from.
        **settings: further fields of :class:`~llavakit.engine.config.EngineConfig`, such as
            ``device_map="auto"`` for a model that is spread over several GPUs.

    Raises:
        ParameterError: settings that contradict each other or do not exist.
        ModelError: with ``warm_up``, the model cannot be loaded.
    """
    from llavakit.engine.keep_alive import seconds_of
    from llavakit.sources import SourcePolicy

    check_instance("model", model, (str, os.PathLike), "a name or a path")
    if not os.fspath(model):
        raise refused("model", model, "a name or a path")
    check_instance(
        "model_base", model_base, (str, os.PathLike, type(None)), "a name, a path or None"
    )
    check_instance("conv_mode", conv_mode, (str, type(None)), "the name of a template or None")
    check_instance("base_url", base_url, (str, type(None)), "a server's address or None")
    check_instance(
        "source_policy",
        source_policy,
        (SourcePolicy, type(None)),
        "a llavakit.SourcePolicy or None",
    )
    check_instance("load_in_4bit", load_in_4bit, bool, "True or False")
    check_instance("load_in_8bit", load_in_8bit, bool, "True or False")
    check_instance("warm_up", warm_up, bool, "True or False")
    seconds = seconds_of(keep_alive)
    policy = source_policy or SourcePolicy()
    if base_url is not None:
        here = {
            "model_base": model_base,
            "conv_mode": conv_mode,
            "device": None if device == "auto" else device,
            "dtype": None if dtype == "auto" else dtype,
            "quantization": quantization,
            "load_in_4bit": load_in_4bit or None,
            "load_in_8bit": load_in_8bit or None,
            "keep_alive": keep_alive,
            "warm_up": warm_up or None,
            **settings,
        }
        how = {
            "dialect": dialect,
            "max_retries": max_retries,
            "timeout": timeout,
            "extra_body": extra_body,
            "http": (default_headers, http_client, client_kwargs),
        }
        return _remote(os.fspath(model), base_url, api_key, policy, how, here)
    of_servers = {
        "api_key": api_key,
        "dialect": dialect,
        "max_retries": max_retries,
        "timeout": timeout,
        "default_headers": default_headers or None,
        "extra_body": extra_body or None,
        "http_client": http_client,
        "client_kwargs": client_kwargs or None,
    }
    for name, value in of_servers.items():
        if value is not None:
            raise ParameterError(f"{name} is for servers; give base_url too, or leave it out.")
    config = _engine_config(
        model=_located(model),
        model_base=None if model_base is None else _located(model_base),
        conv_mode=conv_mode,
        device=device,
        dtype=dtype,
        quantization=_quantization(quantization, load_in_4bit, load_in_8bit),
        **settings,
    )

    def build() -> Backend:
        from llavakit.local import LocalBackend

        return LocalBackend(config, policy, seconds)

    backend = shared((config, policy, seconds), build)
    if warm_up:
        backend.warm_up()
    return backend


def _remote(
    model: str,
    base_url: str,
    api_key: str | None,
    policy: SourcePolicy,
    how: dict[str, Any],
    here: dict[str, Any],
) -> Backend:
    """The backend of a model on a server; ``here`` has the settings of models in this process."""
    from llavakit.remote.address import RemoteConfig, normalized
    from llavakit.remote.fields import to_extra_body
    from llavakit.remote.http_client import ClientSettings

    limit = here.pop("context_length", None)
    given = sorted(name for name, value in here.items() if value is not None)
    if given:
        raise ParameterError(
            f"{given[0]} has no effect on a server (base_url); set it where the server is started."
        )
    headers, client, arguments = how.pop("http")
    check_instance(
        "default_headers", headers, (Mapping, type(None)), "a dict of names and values or None"
    )
    check_instance("client_kwargs", arguments, (Mapping, type(None)), "a dict of arguments or None")
    how["http"] = ClientSettings(headers or {}, client, arguments or {})
    how["extra_body"] = to_extra_body(how["extra_body"])
    key = os.environ.get("LLAVAKIT_API_KEY") if api_key is None else api_key
    config = RemoteConfig(
        model=model,
        address=normalized(base_url),
        api_key=key or None,
        context_length=limit,
        **{name: value for name, value in how.items() if value is not None},
    )

    def build() -> Backend:
        from llavakit.remote.client import RemoteBackend

        return RemoteBackend(config, policy)

    return shared((config, policy), build)


def shared(key: Any, build: Callable[[], Backend]) -> Backend:
    """Return the living backend of this key, or a new one; closed ones are replaced."""
    with _backends_lock:
        backend = _backends.get(key)
        if backend is None or backend.closed:
            backend = _backends[key] = build()
        return backend


_ORIGINAL_NAMES = {
    "load_4bit": "load_in_4bit",
    "load_8bit": "load_in_8bit",
    "model_path": "model, the first argument,",
    "model_name": "model, the first argument,",
    "torch_dtype": "dtype",
    "conv_template": "conv_mode",
    "temperature": "a field of SamplingParams, given with each request,",
    "max_new_tokens": "max_tokens of SamplingParams, given with each request,",
}
"""What the original LLaVA and transformers call settings."""


def _engine_config(**settings: Any) -> EngineConfig:
    from llavakit.engine.config import EngineConfig

    unknown = sorted(set(settings) - {field.name for field in fields(EngineConfig)})
    if unknown:
        if (meant := _ORIGINAL_NAMES.get(unknown[0])) is not None:
            raise ParameterError(f"load() knows no setting {unknown[0]!r}; it is {meant} here.")
        known = ", ".join(field.name for field in fields(EngineConfig))
        raise ParameterError(f"load() knows no setting {unknown[0]!r}; it knows {known}.")
    return EngineConfig(**settings)


def _located(model: str | os.PathLike[str]) -> str:
    # One directory reached by two spellings is one model; a name stays a name.
    name = os.path.expanduser(os.fspath(model))
    return os.path.realpath(name) if os.path.isdir(name) else name


def _quantization(named: str | None, in_4bit: bool, in_8bit: bool) -> str | None:
    named_by = ((named, named is not None), ("4bit", in_4bit), ("8bit", in_8bit))
    asked = {str(name) for name, given in named_by if given}
    if len(asked) > 1:
        raise ParameterError(f"Ask for one quantization, not for {' and '.join(sorted(asked))}.")
    return asked.pop() if asked else None
