"""The backend that runs a model in this process, by the engine."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit._checks import check_instance
from llavakit._forks import ForkLock, in_child
from llavakit.backend import Backend, Messages, ModelInfo, to_request
from llavakit.embedding_requests import EmbeddingWindow, embedding_contents
from llavakit.engine.config import EngineConfig
from llavakit.engine.keep_alive import FOREVER, Stay
from llavakit.errors import EngineClosedError, ParameterError
from llavakit.images import Picture, open_picture, picture_size
from llavakit.prompts.conversation import to_turns
from llavakit.sources import SourcePolicy
from llavakit.streams import AnswerStream
from llavakit.values import Image, Request, Tool, Video
from llavakit.videos import Clip, Length, length_of, open_clip

if TYPE_CHECKING:
    from llavakit.embeddings import Embedding, EmbeddingSpace
    from llavakit.engine.engine import Engine
    from llavakit.model.loader import Reader
    from llavakit.model.retrieval import RetrievalAdapter

log = logging.getLogger(__name__)

_engines: weakref.WeakValueDictionary[EngineConfig, Engine] = weakref.WeakValueDictionary()
_engines_lock = ForkLock()
_torch_was_forked = False


@in_child
def _after_fork() -> None:
    global _torch_was_forked
    _torch_was_forked = "torch" in sys.modules


def _go_on_after_fork() -> None:
    """Make torch usable in a forked process, where it would wait for the parent's threads."""
    global _torch_was_forked
    if not _torch_was_forked:
        return
    import torch

    _torch_was_forked = False
    torch.set_num_threads(1)
    log.warning(
        "this process was forked from one that had torch, whose threads stayed behind: it computes "
        'with one thread; start processes by "spawn" for all of them'
    )


class LocalBackend(Backend):
    """A model in this process; nothing is loaded before the first use.

    Args:
        config: which model, and how the engine is set up.
        policy: where images may come from. Backends that differ only in it share an engine.
        keep_alive: seconds that the model stays in memory when it is idle. Backends that differ
            in this share an engine too, and the longest counts.
    """

    def __init__(
        self, config: EngineConfig, policy: SourcePolicy, keep_alive: float = FOREVER
    ) -> None:
        self.config = config
        self.keep_alive = keep_alive
        self._policy = policy
        self._stay: Stay | None = None
        self._lock = ForkLock()
        self._engine: Engine | None = None
        self._reader: Reader | None = None
        self._closed = False
        self._adapters: dict[Path, RetrievalAdapter] = {}

    @property
    def policy(self) -> SourcePolicy:
        return self._policy

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def info(self) -> ModelInfo:
        reader = self._get_reader()
        limit = self.config.context_length or reader.context_length
        return ModelInfo(
            self.config.model, min(limit, reader.context_length), revision=reader.revision
        )

    def submit(self, request: Request) -> AnswerStream:
        return self._get_engine().submit(request, self._open)

    def count_tokens(
        self,
        messages: Messages,
        *,
        tools: Sequence[Tool] = (),
        continue_final_message: bool = False,
    ) -> int:
        from llavakit.engine.encoding import count

        request = to_request(messages, tools=tools, continue_final_message=continue_final_message)
        turns = to_turns(request, answerable=False)
        return count(self._get_reader(), turns, self._measured)

    @property
    def has_retrieval_adapter(self) -> bool:
        from llavakit.model.retrieval import FOLDER, is_retrieval_adapter

        return is_retrieval_adapter(self._get_reader().path / FOLDER)

    def embedding_space(self, adapter: str | os.PathLike[str] | None = None) -> EmbeddingSpace:
        from llavakit.embeddings import EmbeddingSpace
        from llavakit.engine.embedding import template_of

        found, reader = self._retrieval_adapter(adapter), self._get_reader()
        name = f"{reader.revision}.{template_of(reader)}+{found.fingerprint}"
        return EmbeddingSpace(name, found.dimensions)

    def embed(
        self,
        *,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        return self._window(images, texts, adapter, timeout).run()

    async def aembed(self, **options: Any) -> list[Embedding]:
        window = await asyncio.to_thread(self._window, **options)
        try:
            return await asyncio.to_thread(window.run)
        except asyncio.CancelledError:
            window.cancel()
            raise

    def _window(
        self,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> EmbeddingWindow:
        contents = embedding_contents(images, texts)
        found = self._retrieval_adapter(adapter)
        engine = self._get_engine()
        return EmbeddingWindow(
            contents, lambda content: engine.embed(content, found, self._open, timeout)
        )

    def _retrieval_adapter(self, adapter: str | os.PathLike[str] | None) -> RetrievalAdapter:
        """Read an adapter once; None takes the one that came with the checkpoint."""
        from llavakit.model.retrieval import FOLDER, is_retrieval_adapter, read_retrieval_adapter

        check_instance("adapter", adapter, (str, os.PathLike, type(None)), "a directory or None")
        path = self._get_reader().path / FOLDER if adapter is None else Path(adapter)
        if adapter is None and not is_retrieval_adapter(path):
            raise ParameterError(
                f"The model {self.config.model!r} came without a retrieval adapter; name one with "
                "adapter=, or train one with `llavakit train retrieve`."
            )
        with self._lock:
            if path not in self._adapters:
                self._adapters[path] = read_retrieval_adapter(path)
            return self._adapters[path]

    def warm_up(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        self._get_engine().warm_up(progress)

    def stats(self) -> dict[str, Any]:
        engine = self._engine
        return {"running": 0, "waiting": 0} if engine is None else engine.stats()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            engine, self._engine, self._stay = self._engine, None, None
        if engine is not None:
            engine.close()

    def _open(self, part: Image | Video) -> Picture | Clip:
        if isinstance(part, Video):
            return open_clip(part.source, self.policy, from_url_field=part.from_url_field)
        return open_picture(part.source, self.policy, from_url_field=part.from_url_field)

    def _measured(self, part: Image | Video) -> tuple[int, int] | Length:
        if isinstance(part, Video):
            return length_of(part.source, self.policy, from_url_field=part.from_url_field)
        return picture_size(part.source, self.policy, from_url_field=part.from_url_field)

    def _get_reader(self) -> Reader:
        with self._lock:
            return self._reader_locked()

    def _reader_locked(self) -> Reader:
        _go_on_after_fork()
        if self._reader is None:
            from llavakit.model.adapter import is_hf_adapter
            from llavakit.model.loader import load_reader
            from llavakit.model.locate import locate

            model, base = self.config.model, self.config.model_base
            path = locate(model, self.config.revision)
            # An adapter of the original needs a base with the original's names.
            original = not is_hf_adapter(path)
            self._reader = load_reader(
                path,
                conv_mode=self.config.conv_mode,
                name=model,
                model_base=None if base is None else locate(base, original=original),
            )
        return self._reader

    def _get_engine(self) -> Engine:
        engine = self._engine
        if engine is not None and not engine.closed:
            return engine
        with self._lock:
            if self._closed:
                raise EngineClosedError("This backend was closed; llavakit.load gives a fresh one.")
            if self._engine is None or self._engine.closed:
                self._engine = _shared_engine(self._reader_locked(), self.config)
                self._stay = self._engine.stay(self.keep_alive)
            return self._engine


def _shared_engine(reader: Reader, config: EngineConfig) -> Engine:
    """The living engine of this configuration, or a new one: weights are loaded once."""
    from llavakit.engine.engine import Engine

    with _engines_lock:
        engine = _engines.get(config)
        if engine is None or engine.closed:
            engine = _engines[config] = Engine(reader, config)
        return engine
