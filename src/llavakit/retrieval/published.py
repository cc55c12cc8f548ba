"""Published retrievers behind :class:`~llavakit.embeddings.Embedder`, by transformers' own classes.

A user takes a state-of-the-art retriever for finding pages, and LLaVA for the answers. Torch and
transformers are imported when they are needed: importing this module loads neither.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any

from llavakit._checks import check_instance, refused
from llavakit._forks import ForkLock
from llavakit.embedding_requests import embedding_contents
from llavakit.embeddings import Embedding
from llavakit.engine.config import EngineConfig
from llavakit.errors import EngineClosedError
from llavakit.images import Picture, open_picture
from llavakit.retrieval.published_families import is_published_retriever
from llavakit.retrieval.published_files import Description, describe, load
from llavakit.retrieval.published_model import LoadedRetriever
from llavakit.sources import DEFAULT_POLICY, SourcePolicy
from llavakit.values import Image

__all__ = ["PublishedRetriever", "is_published_retriever"]


class PublishedRetriever:
    """ColPali, ColQwen2 or ColModernVBERT; embeddings are the published ones, padding left out.

    Nothing is loaded before it is needed. Retrievers of one model, device and type share the
    weights, which are freed when the last of them is closed or dropped. Threads may share it: one
    batch is computed at a time.

    Args:
        model: a local directory in transformers' format, or a hub id such as
            ``"vidore/colqwen2-v1.0-hf"``.
        policy: which files and addresses images may come from.
        device: as :func:`llavakit.load` takes it.
        dtype: as :func:`llavakit.load` takes it.
        revision: a branch, tag or commit on the hub.

    Raises:
        ParameterError: a value that does not exist.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        policy: SourcePolicy | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        check_instance("model", model, (str, os.PathLike), "a name or a path")
        check_instance("policy", policy, (SourcePolicy, type(None)), "a SourcePolicy or None")
        if not os.fspath(model):
            raise refused("model", model, "a name or a path")
        name = os.path.expanduser(os.fspath(model))
        name = os.path.realpath(name) if os.path.isdir(name) else name
        # The engine's configuration checks the same names, and equal ones share the weights.
        self._config = EngineConfig(name, revision=revision, device=device, dtype=dtype)
        self._policy = policy or DEFAULT_POLICY
        self._lock = ForkLock()
        self._description: Description | None = None
        self._retriever: LoadedRetriever | None = None
        self._closed = False

    @property
    def fingerprint(self) -> str:
        """Names the configuration and the weights, by what their files are."""
        return self._described().fingerprint

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self._described().config.embedding_dim)

    @property
    def title(self) -> str:
        """The kind of retriever, such as ``"ColPali"``."""
        return self._described().family.title

    @property
    def policy(self) -> SourcePolicy:
        """Which files and addresses images may come from."""
        return self._policy

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def embed(
        self, *, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None
    ) -> list[Embedding]:
        """Embed images or queries, in their order.

        Of an image there is a vector for every token that the model read, patches and prompt; of
        a query one for every token, with the prefix and the suffix that the model was trained
        with. Those are the vectors that transformers' ``score_retrieval`` compares.

        Args:
            images: whatever ``llavakit.Image`` takes. They are opened one batch at a time.
            texts: queries.

        Raises:
            ParameterError: neither images nor texts are given, or both, or a text is empty.
            ImageError, SourceError: an image cannot be opened, or not be used by this model.
            InputError: a text holds the model's mark of an image.
            ContextLengthError: a text is too long.
            ModelError: the model cannot be loaded.
            EngineClosedError: it was closed.
            OutOfMemoryError: there is no memory for one image or text.
        """
        given = embedding_contents(images, texts)
        if not given:
            return []
        loaded = self._loaded()
        if texts is not None:
            return loaded.texts(one for one in given if isinstance(one, str))
        return loaded.images(self._open(one) for one in given if isinstance(one, Image))

    def close(self) -> None:
        """Let go of the weights; what is being embedded is finished first. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._retriever = None

    def __enter__(self) -> PublishedRetriever:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, image: Image) -> Picture:
        return open_picture(image.source, self._policy, from_url_field=image.from_url_field)

    def _described(self) -> Description:
        with self._lock:
            return self._described_locked()

    def _described_locked(self) -> Description:
        if self._description is None:
            self._description = describe(self._config)
        return self._description

    def _loaded(self) -> LoadedRetriever:
        with self._lock:
            if self._closed:
                raise EngineClosedError("This retriever was closed; make a new one.")
            if self._retriever is None:
                self._retriever = _retriever(self._config, self._described_locked())
            return self._retriever


_retrievers: weakref.WeakValueDictionary[tuple[EngineConfig, str], LoadedRetriever] = (
    weakref.WeakValueDictionary()
)
_retrievers_lock = ForkLock()


def _retriever(config: EngineConfig, described: Description) -> LoadedRetriever:
    """The model in memory, loaded if no other retriever holds it."""
    key = (config, described.fingerprint)
    with _retrievers_lock:
        found = _retrievers.get(key)
        if found is None:
            found = _retrievers[key] = load(config, described)
        return found
