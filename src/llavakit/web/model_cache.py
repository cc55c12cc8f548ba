"""The models that visitors may choose, and which of them are in memory."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llavakit.backend import Backend
from llavakit.errors import ParameterError, QueueFullError
from llavakit.web.catalog import ListedModel


class ModelCache:
    """Models by name. The first offers stay in memory; of the others there is one at a time.

    Args:
        offers: what visitors may choose; nothing else is ever loaded.
        kept: how many offers, from the first, stay in memory once they were used.
        load: gives the backend of a name, without loading weights (``llavakit.load``).
    """

    def __init__(
        self, offers: Sequence[ListedModel], kept: int, load: Callable[[str], Backend]
    ) -> None:
        self.offers = tuple(offers)
        self._kept = {offer.name for offer in self.offers[:kept]}
        self._load = load
        self._backends: dict[str, Backend] = {}
        self._loaded: set[str] = set()
        self._with_maps: set[str] = set()
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def default(self) -> str:
        """Return the model that the page starts with."""
        return self.offers[0].name

    def label(self, name: str) -> str:
        """Return what the list calls a model, without what it needs."""
        labels = (offer.label for offer in self.offers if offer.name == name)
        return next(labels, Path(name).name).partition(" · ")[0]

    def is_loaded(self, name: str) -> bool:
        """Return whether it has answered before, so that no visitor waits for its weights."""
        return name in self._loaded

    def loaded(self, name: str) -> None:
        """Note that the weights are in memory."""
        self._loaded.add(name)
        backend = self._backends.get(name)
        has_maps = backend is not None and backend.has_retrieval_adapter
        (self._with_maps.add if has_maps else self._with_maps.discard)(name)

    def has_maps(self, name: str) -> bool:
        """Return whether a model is in memory and came with a retrieval adapter."""
        backend = self._backends.get(name)
        return name in self._loaded & self._with_maps and not (backend is None or backend.closed)

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Backend]:
        """Yield the model of an offer; it stays in memory while it is used.

        Raises:
            ParameterError: it is not offered.
            QueueFullError: it needs the room of another one that is in use.
        """
        with self._lock:
            backend = self._backend(name)
            self._users[name] += 1
        try:
            yield backend
        finally:
            with self._lock:
                self._users[name] -= 1

    def stats(self) -> dict[str, dict[str, object]]:
        """Return the figures of models in memory (see :meth:`llavakit.backend.Backend.stats`)."""
        return {name: backend.stats() for name, backend in self._backends.items()}

    def close(self) -> None:
        """Free everything; running answers end with an error."""
        with self._lock:
            for backend in self._backends.values():
                backend.close()
            self._backends.clear()

    def _backend(self, name: str) -> Backend:
        if all(offer.name != name for offer in self.offers):
            raise ParameterError(f"{Path(name).name} is not offered here; choose another.")
        backend = self._backends.get(name)
        if backend is not None and not backend.closed:
            return backend
        if name not in self._kept:
            self._make_room()
        self._loaded.discard(name)
        backend = self._backends[name] = self._load(name)
        return backend

    def _make_room(self) -> None:
        for other in set(self._backends) - self._kept:
            if self._users[other]:
                raise QueueFullError(
                    f"{Path(other).name} is answering another visitor, and there is room for "
                    "one model of the list at a time; try again in a moment."
                )
            self._backends.pop(other).close()
            self._loaded.discard(other)
