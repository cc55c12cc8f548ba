"""What embeds pages and questions: a LLaVA with a retrieval adapter, or a published retriever."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

from llavakit.backend import Backend
from llavakit.embeddings import Embedder, Embedding
from llavakit.errors import ParameterError
from llavakit.sources import SourcePolicy


class BackendEmbedder:
    """A backend and a retrieval adapter as an :class:`~llavakit.embeddings.Embedder`.

    Args:
        backend: a model in this process; it answers meanwhile.
        adapter: directory of an adapter; None takes the one that came with the checkpoint.

    Raises:
        ParameterError: the model gives no embeddings.
        ModelError: the adapter is missing or damaged.
    """

    def __init__(self, backend: Backend, adapter: str | os.PathLike[str] | None = None) -> None:
        self.backend = backend
        self._adapter = adapter
        self._space = backend.embedding_space(adapter)

    @property
    def fingerprint(self) -> str:
        """Names the weights and the adapter."""
        return self._space.fingerprint

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._space.dimensions

    def embed(
        self, *, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None
    ) -> list[Embedding]:
        """Embed images or queries (see :meth:`llavakit.Backend.embed`)."""
        return self.backend.embed(images=images, texts=texts, adapter=self._adapter)


def load_embedder(
    model: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    source_policy: SourcePolicy | None = None,
    **settings: Any,
) -> Embedder:
    """Return an embedder by the name or directory of its model.

    Args:
        model: a LLaVA, as in :func:`llavakit.load`, whose weights are shared with all that
            answers by it in this process; or a published retriever (ColPali, ColQwen2,
            ColModernVBERT) in transformers' format.
        adapter: a retrieval adapter for a LLaVA; None takes the one that came with the checkpoint.
        source_policy: which files and addresses images may come from.
        **settings: further arguments of :func:`llavakit.load`; a published retriever takes
            ``device``, ``dtype`` and ``revision``.

    Raises:
        ParameterError: a setting that does not exist, or has no effect on this model.
        ModelError: the model or its adapter is missing or damaged.
    """
    if _is_published(model, settings):
        return _published(model, adapter, source_policy, settings)
    from llavakit.loading import load

    return BackendEmbedder(load(model, source_policy=source_policy, **settings), adapter)


def _is_published(model: str | os.PathLike[str], settings: dict[str, Any]) -> bool:
    from llavakit.model.locate import locate
    from llavakit.retrieval.published import is_published_retriever

    name = os.path.expanduser(os.fspath(model))
    if settings.get("base_url") is not None or name in ("", "demo"):
        return False
    return is_published_retriever(locate(name, settings.get("revision")))


def _published(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None,
    policy: SourcePolicy | None,
    settings: dict[str, Any],
) -> Embedder:
    from llavakit.loading import load
    from llavakit.retrieval.published import PublishedRetriever

    if adapter is not None:
        raise ParameterError(
            f"{model} is a retriever already, and adapter is for a LLaVA; leave it out."
        )
    taken = {name: settings.pop(name) for name in ("device", "dtype", "revision") & settings.keys()}
    unset = {name: one.default for name, one in inspect.signature(load).parameters.items()}
    for name, value in settings.items():
        if value != unset.get(name):
            raise ParameterError(
                f"{name} has no effect on a published retriever, {model}; leave it out."
            )
    return PublishedRetriever(model, policy=policy, **taken)
