"""An index that was made before, opened with its model: one policy for both."""

from __future__ import annotations

import os
from typing import Any

from llavakit.documents.passwords import Password
from llavakit.retrieval.embedder import load_embedder
from llavakit.retrieval.index import PageIndex
from llavakit.sources import DEFAULT_POLICY, SourcePolicy


def open_index(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "demo",
    adapter: str | os.PathLike[str] | None = None,
    source_policy: SourcePolicy | None = None,
    password: Password = None,
    **settings: Any,
) -> PageIndex:
    """Return an index that was made with ``llavakit index``.

    Args:
        folder: of the index.
        model: the model that it was made with.
        adapter: the retrieval adapter that it was made with; None takes the checkpoint's own.
        source_policy: what may be opened, by the index (pages that were found, updates) and by
            the model; None takes the default policy.
        password: what opens encrypted documents (see :func:`~llavakit.documents.open_files`).
        **settings: further arguments of :func:`~llavakit.retrieval.embedder.load_embedder`.

    Raises:
        ParameterError: the folder holds no index, or one of another model.
        ModelError: the model or the adapter cannot be loaded.
    """
    embedder = load_embedder(model, adapter=adapter, source_policy=source_policy, **settings)
    policy = source_policy or DEFAULT_POLICY
    return PageIndex(folder, embedder, policy=policy, password=password, must_exist=True)
