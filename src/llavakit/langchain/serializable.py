"""LangChain's own serialisation (``langchain_core.load``): by value, the API key by name."""

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
    """A model object that ``dumps`` serialises and ``loads`` restores.

    ``loads(text, valid_namespaces=["llavakit"], allowed_objects=[ChatLLaVA])``: the framework
    loads classes of other packages only where they are allowed. A model that was given a backend is
    not data, and is written as not serialisable.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return whether LangChain may serialise it."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Secret fields, by the environment variables that hold them where it is loaded."""
        return {"api_key": SECRET}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Fields that are serialised in another form."""
        policy: SourcePolicy | None = cast("Any", self).source_policy
        return {"source_policy": None if policy is None else policy.to_dict()}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Serialise the arguments of the constructor."""
        made_of = cast("Any", self)
        if any(getattr(made_of, name) is not None for name in _OBJECTS):
            return self.to_json_not_implemented()
        return super().to_json()


_OBJECTS = ("backend", "http_client", "http_async_client")
