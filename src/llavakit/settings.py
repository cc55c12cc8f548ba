"""The constructor of every framework's model class: its arguments and its backend.

The frameworks' models are pydantic classes, and so is this: every framework brings pydantic.
Nothing else here belongs to any of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from pydantic.json_schema import GenerateJsonSchema, SkipJsonSchema

import llavakit
from llavakit.arguments import CALL_ARGUMENTS, check_known, to_params, unaliased
from llavakit.backend import Backend
from llavakit.engine.config import EngineConfig
from llavakit.errors import ParameterError
from llavakit.remote.address import normalized
from llavakit.sources import SourcePolicy
from llavakit.values import SamplingParams

_DEFAULT_POLICY = SourcePolicy()


class ModelSettings(BaseModel):
    """Which model answers, and how. None means "not set": llavakit's default.

    Nothing is loaded by construction, unless ``warm_up`` asks for it. The backend is taken
    from :func:`llavakit.load` at first use, so that all objects of one configuration share one
    model; a copy or a pickle of the object takes its own.
    """

    # pydantic's errors would quote all arguments, the key among them.
    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    model: str
    """An alias (``"demo"``), a hub id, an original id (``liuhaotian/...``) or a directory."""
    model_base: str | None = None
    """The base model of a LoRA or projector-only checkpoint."""
    conv_mode: str | None = None
    """A conversation template by name; None takes the checkpoint's own."""
    revision: str | None = None
    """A branch, tag or commit on the hub."""

    temperature: float | None = None
    """0 is greedy; the default is 0.2, as in the original LLaVA."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Any, float] | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    """``"json"`` for any JSON object, or a JSON schema: the constraint of answers, unless a
    call says otherwise. The name is ChatOllama's."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of every call, by their names; the call's own win."""
    max_tokens: int | None = None
    """Most tokens of an answer; the default is 512."""
    stop: list[str] | None = None
    seed: int | None = None
    logprobs: bool | int | None = None
    """True, or the number of alternatives to report for each token."""
    top_logprobs: int | None = None
    """With ``logprobs=True``: the number of alternatives."""

    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds until a request is given up, queueing included."""
    max_retries: int = Field(default=2, ge=0)
    """For servers (``base_url``); failures of a model in this process are not retried."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server that runs the model."""
    api_key: SecretStr | None = Field(default_factory=lambda: key_from_environment())
    """The server's key, by default from ``LLAVAKIT_API_KEY``; not part of a pickle."""
    dialect: (
        Literal[
            "llavakit",
            "vllm",
            "sglang",
            "transformers",
            "llamacpp",
            "ollama",
            "lmstudio",
            "generic",
        ]
        | None
    ) = None
    """Which kind of server it is; None finds out."""
    default_headers: dict[str, str] | None = Field(default=None, repr=False)
    """Further headers of every request to a server."""
    extra_body: dict[str, Any] | None = None
    """Further fields of every chat completion that a server is asked for."""
    http_client: SkipJsonSchema[Any] = Field(default=None, exclude=True, repr=False)
    """An ``httpx.Client`` or ``httpx.AsyncClient`` for the requests to a server."""
    http_async_client: SkipJsonSchema[Any] = Field(default=None, exclude=True, repr=False)
    """As ``http_client``, and preferred to it: requests are made on llavakit's own event loop."""
    client_kwargs: dict[str, Any] | None = Field(default=None, repr=False)
    """Arguments of ``httpx.AsyncClient``, for the client that is made where none is given."""

    device: str | None = None
    dtype: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """How a model is spread over several GPUs."""
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    context_length: int | None = None
    max_concurrency: int | Literal["auto"] | None = None
    max_waiting: int | None = None
    prefill_chunk: int | None = None
    kv_cache_bytes: int | Literal["auto"] | None = None
    image_cache_bytes: int | None = None
    static_decode: bool | Literal["auto"] | None = None
    lookahead: bool | Literal["auto"] | None = None
    compile: bool | Literal["auto"] | None = None
    keep_alive: float | str | None = None
    """How long the model stays in memory unused: seconds, ``"5m"``, -1 or None for ever."""
    warm_up: bool = False
    """Load the model and warm it up by construction, and not at first use."""
    validate_model_on_init: bool = False
    """Read the model's configuration (or ask the server for it) by construction."""
    source_policy: SourcePolicy | None = Field(default=None, repr=False)
    """Which files and addresses images may come from."""
    max_pages: int = Field(default=16, ge=1)
    """Most pages of a PDF in a message; a longer one is refused."""
    backend: SkipJsonSchema[Backend | None] = Field(default=None, exclude=True, repr=False)
    """A backend to use instead of ``llavakit.load``; not part of a pickle."""

    _held: HeldBackends = PrivateAttr(default_factory=lambda: HeldBackends())

    @model_validator(mode="before")
    @classmethod
    def _named_as_here(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = unaliased(values)
        if "source_policy" not in given and cls._serialised_fields() <= given.keys():
            raise ParameterError(
                f"This {cls.__name__} was saved without its source_policy, so what it may open is "
                "unknown; give it one: source_policy=SourcePolicy(...)."
            )
        check_known(given, tuple(cls.model_fields), cls.__name__)
        if given.get("model") is None:
            if given.get("backend") is None:
                raise ParameterError(
                    'Name the model: model="demo", a hub id, an original id or a directory.'
                )
            given["model"] = given["backend"].info.name
        if given.get("api_key") == str(SecretStr("hidden")):
            # The placeholder that pydantic writes in place of a key.
            del given["api_key"]
        if isinstance(given["model"], os.PathLike):
            given["model"] = os.fspath(given["model"])
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        to_params(self._sampling())  # raises for values out of range now, not at the first call
        if self.base_url is not None:
            normalized(self.base_url)
        if self.backend is not None:
            if self.source_policy == self.policy:  # of an object restored from its values
                self.source_policy = None
            unused = [*sorted(self._load_settings()), *(["warm_up"] if self.warm_up else [])]
            if unused:
                raise ParameterError(
                    f"{unused[0]} has no effect on a backend that exists; give it to llavakit.load."
                )
            self.source_policy = self.policy  # it outlives the backend, which is never serialised
        if self.validate_model_on_init:
            _ = self.backend_for().info
        if self.warm_up:  # here and not at first use, which may be on an event loop
            self._loaded(self.model, warm_up=True)
        return self

    def backend_for(self, model: str | None = None) -> Backend:
        """Return the backend that answers; it loads lazily, is shared, and is held from now on.

        Args:
            model: another model than the object's own, with the same load settings.
        """
        if self.backend is not None and model in (None, self.model):
            return self.backend
        return self._loaded(model or self.model)

    def _loaded(self, model: str, **more: Any) -> Backend:
        settings = self._load_settings() | more
        if self.base_url is not None:
            settings["api_key"] = "" if self.api_key is None else self.api_key.get_secret_value()
            if "max_retries" in self.model_fields_set:
                settings["max_retries"] = self.max_retries
        further = {
            "default_headers": self.default_headers,
            "extra_body": self.extra_body,
            "http_client": self.http_async_client or self.http_client,
            "client_kwargs": self.client_kwargs,
        }
        settings |= {name: value for name, value in further.items() if value}
        if self.keep_alive is not None:
            settings["keep_alive"] = self.keep_alive
        backend = llavakit.load(model, **settings)
        self._held.keep(backend)
        return backend

    @property
    def policy(self) -> SourcePolicy:
        """Which images may be opened: a given backend's own policy, where it has one."""
        if self.backend is not None:
            policy = getattr(self.backend, "policy", None)
            return policy if isinstance(policy, SourcePolicy) else _DEFAULT_POLICY
        return self.source_policy or _DEFAULT_POLICY

    def identity(self) -> dict[str, Any]:
        """Return every setting that changes the answer.

        Sampling settings are included with their defaults.
        """
        sampling = asdict(to_params(self._sampling()))
        # LangChain writes the call's `stop` over a key of that name.
        sampling["stop_sequences"] = list(sampling.pop("stop"))
        load = self._load_settings()
        if "source_policy" in load:
            load["source_policy"] = repr(load["source_policy"])
        more = {
            name: value for name in ("model_kwargs", "extra_body") if (value := getattr(self, name))
        }
        return {"model": self.model, **load, **sampling, **more}

    def _sampling(self) -> dict[str, Any]:
        """The sampling settings of every call, unless it says otherwise."""
        names = {*SamplingParams.names(), "top_logprobs", "timeout"} & set(type(self).model_fields)
        named = {name: getattr(self, name) for name in names}
        more = unaliased(self.model_kwargs)
        check_known(more, CALL_ARGUMENTS, "model_kwargs")
        for name in more:
            if named.get(name) is not None:
                raise ParameterError(f"{name} is given twice, once in model_kwargs; give it once.")
        if self.format:
            more = {"response_format": _to_response_format(self.format), **more}
        return named | more

    def _load_settings(self) -> dict[str, Any]:
        names = [field.name for field in fields(EngineConfig) if field.name != "model"]
        names += ["base_url", "dialect", "source_policy"]
        values = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        return given | {
            name: True for name in ("load_in_4bit", "load_in_8bit") if getattr(self, name)
        }

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """Return pydantic's schema; a default that JSON cannot hold is left out."""
        if len(args) < 3:
            options.setdefault("schema_generator", _Lenient)
        return super().model_json_schema(*args, **options)

    @classmethod
    def _serialised_fields(cls) -> set[str]:
        """The settings that ``model_dump`` writes for every object, besides its policy."""
        known = {name for name in ModelSettings.model_fields if not cls.model_fields[name].exclude}
        return known - {"source_policy", "api_key"}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy as pydantic does; a new backend brings its policy, and one taken away leaves it."""
        other = super().model_copy(update=update, deep=deep)
        if other.backend is not None:
            other.source_policy = other.policy
        return other

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # A backend is a handle on something shared and is never copied.
        memo = {} if memo is None else memo
        memo[id(self.backend)] = self.backend
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.backend is not None:
            raise ParameterError(
                f"A {type(self).__name__} that was given a backend cannot be pickled; "
                "give it model=... instead."
            )
        if self.http_client is not None or self.http_async_client is not None:
            raise ParameterError(
                f"A {type(self).__name__} that was given an HTTP client cannot be pickled; give "
                "it client_kwargs=... instead."
            )
        state = super().__getstate__()
        if self.api_key is None:
            return state
        # A key does not belong in a file; the process that loads it takes its environment's.
        values = {**state["__dict__"], "api_key": None}
        return {**state, "__dict__": values, "key_left_out": True}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        rest = {name: value for name, value in state.items() if name != "key_left_out"}
        super().__setstate__(rest)
        if "key_left_out" in state:
            self.__dict__["api_key"] = key_from_environment()


def _to_response_format(format_: str | dict[str, Any]) -> dict[str, Any]:
    if format_ == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": format_}}


class _Lenient(GenerateJsonSchema):
    """A schema in which fields that only a program can give (caches, callbacks) take any value."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def key_from_environment() -> SecretStr | None:
    """Return the server's key from ``LLAVAKIT_API_KEY``."""
    key = os.environ.get("LLAVAKIT_API_KEY")
    return None if key is None else SecretStr(key)


class HeldBackends:
    """Keeps backends alive for their user; a copy starts empty and asks for its own."""

    def __init__(self) -> None:
        self._backends: tuple[Backend, ...] = ()

    def keep(self, backend: Backend) -> None:
        """Keep this one as well, and drop those that were closed."""
        if not any(held is backend for held in self._backends):
            living = (held for held in self._backends if not held.closed)
            self._backends = (*living, backend)

    def __deepcopy__(self, memo: object) -> HeldBackends:
        return HeldBackends()

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldBackends, ()
