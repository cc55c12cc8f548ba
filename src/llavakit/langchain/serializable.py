"""LangChain's own serialisation (``langchain_core.load``): dumped by value, the key by its name."""

from __future__ import annotations

from typing import Any, cast

from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)

from llavakit.sources import SourcePolicy

SECRET = "LLAVAKIT_API_KEY"


class SerializableModel(Serializable):
    """A model object that ``dumps`` writes down and ``loads`` makes again.

    ``loads(text, valid_namespaces=["llavakit"], allowed_objects=[ChatLLaVA])``: the framework
    loads classes of other packages only where it is told to. A model that was given a backend is no
    data, and is written as what cannot be made again.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return whether LangChain may serialise it."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Secrets by the variables that hold them where it is read."""
        return {"api_key": SECRET}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What is written in another form than it has."""
        policy: SourcePolicy | None = cast("Any", self).source_policy
        return {"source_policy": None if policy is None else policy.to_dict()}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Write down the arguments that make it again."""
        made_of = cast("Any", self)
        if any(getattr(made_of, name) is not None for name in _OBJECTS):
            return self.to_json_not_implemented()
        return super().to_json()


_OBJECTS = ("backend", "http_client", "http_async_client")
