"""The inference core as its callers see it: submit a request, read the stream of its answer."""

from __future__ import annotations

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from llavakit._forks import ForkLock
from llavakit.engine.answer import Answer
from llavakit.engine.config import EngineConfig
from llavakit.engine.embedding import (
    EmbeddingJob,
    EmbeddingResult,
    PendingEmbedding,
    prompt_of,
)
from llavakit.engine.encoding import OpenPicture, encode
from llavakit.engine.grammar import grammar_of
from llavakit.engine.keep_alive import FOREVER, Stay, Stays
from llavakit.engine.loop import EngineLoop
from llavakit.engine.resident import Resident
from llavakit.engine.sequence import Sequence
from llavakit.engine.steps import Counters
from llavakit.engine.warm_up import Progress, warm_up
from llavakit.errors import ContextLengthError, EngineClosedError, ParameterError
from llavakit.images import open_picture
from llavakit.kernels.huge_pages import trim
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader
from llavakit.model.preprocess import seen_size
from llavakit.model.retrieval import RetrievalAdapter
from llavakit.prompts.conversation import Turn, to_turns
from llavakit.streams import AnswerStream, Channel
from llavakit.values import Image, Message, Request, SamplingParams

log = logging.getLogger(__name__)

_loading = ForkLock()
"""One model is loaded at a time: transformers changes torch meanwhile, and memory is counted."""


_JOIN_SECONDS = 10.0
"""How long :meth:`Engine.close` waits for a thread that is ending."""


class Engine:
    """One model, its memory, and the thread that runs it.

    Args:
        reader: the half of the checkpoint that reads prompts.
        config: how it is set up.
        model: the weights, where they are loaded already (or were never in a file). Then the
            engine keeps them.

    Weights are loaded by the constructor. If every user of the engine allows it (:meth:`stay`),
    they are unloaded when it is idle, and loaded again by the next request. Dropping the last
    reference stops the thread and frees them.
    """

    def __init__(self, reader: Reader, config: EngineConfig, model: Llava | None = None) -> None:
        self.reader = reader
        self.config = config
        self.context_length = min(
            config.context_length or reader.context_length, reader.context_length
        )
        self._process = os.getpid()
        self._closed = False
        self._counters = Counters()
        self._stays = Stays(_nudging(weakref.ref(self)))
        self._keeper = None if model is None else self._stays.add(FOREVER)
        self._state = threading.Lock()  # guards what follows, and is never held for long
        self._resident: Resident | None = None
        self._leaving: threading.Thread | None = None
        self._finalizer: weakref.finalize[..., Engine] | None = None
        self._load(model)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, dead, or left behind by a fork."""
        if self._closed or self._process != os.getpid():
            return True
        resident = self._resident
        return resident is not None and resident.loop.dead and not resident.loop.retired

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        resident = self._resident
        return resident is not None and not resident.loop.retired

    @property
    def _loop(self) -> EngineLoop:
        """The loop of the model that is loaded."""
        assert self._resident is not None, "the model has left"
        return self._resident.loop

    def stay(self, seconds: float) -> Stay:
        """Ask that the model stays in memory for so long when it is idle.

        Of several such wishes the longest counts. This one holds while the caller keeps the result.

        Args:
            seconds: 0 lets it leave at once; ``math.inf`` keeps it for ever.
        """
        return self._stays.add(seconds)

    def submit(self, request: Request, open_picture: OpenPicture) -> AnswerStream:
        """Queue a request; loads the model if it was unloaded.

        Everything that can be wrong with it is found here, on the caller's thread.

        Raises:
            InputError: images, messages, grammar or length.
            ModelError: the model cannot be loaded again.
            QueueFullError: too many requests wait.
            EngineClosedError: the engine was closed.
        """
        with _Lease(self) as held:
            held.model.loop.check_room()  # before any work is done for it
            _check_biases(request.params, held.model.vocab_size)
            grammar = grammar_of(request, held.model.grammars.spell)
            tokens, images = encode(self.reader, to_turns(request), open_picture)
            max_tokens = self._room(request, len(tokens), held.model.loop.scheduler.kv_tokens)
            matcher = None if grammar is None else held.model.grammars.matcher(grammar, request)
            for image in images:
                if image.key not in held.model.loop.runner.vision.cache:
                    image.pixels.inputs()  # here rather than on the thread that runs the model
            channel = Channel()
            sequence = Sequence(tokens, images, request, channel, max_tokens)
            sequence.answer = Answer(
                request,
                self.reader.tokenizer.tokenizer,
                self.reader.special.stops,
                max_tokens,
                matcher,
                self.reader.tokenizer.stop_strings,
                tokens,
            )
            held.model.loop.submit(sequence)
            loop = weakref.ref(held.model.loop)

        def cancel(keep: Engine = self) -> None:  # an open stream keeps its engine
            living = loop()
            if living is not None:
                living.cancel(sequence)

        return AnswerStream(channel, cancel)

    def embed(
        self,
        content: Image | str,
        adapter: RetrievalAdapter,
        open_picture: OpenPicture,
        timeout: float | None = None,
    ) -> PendingEmbedding:
        """Queue an embedding of an image or a text; loads the model if it was unloaded.

        Args:
            content: an image, or a query.
            adapter: a retrieval adapter for this model.
            open_picture: opens images.
            timeout: seconds until it is given up.

        Raises:
            InputError, ModelError, QueueFullError, EngineClosedError: as :meth:`submit` does.
            CheckpointError: the adapter does not fit the model.
        """
        with _Lease(self) as held:
            held.model.loop.check_room()
            prompt = prompt_of(self.reader, content, open_picture)
            request = Request((Message("user", content),), timeout=timeout)
            self._room(request, len(prompt.tokens), held.model.loop.scheduler.kv_tokens)
            for image in prompt.images:
                if image.key not in held.model.loop.runner.vision.cache:
                    image.pixels.inputs()
            job = EmbeddingJob(held.model.retrieval(adapter), prompt.first, prompt.last)
            result = EmbeddingResult()
            # One token: its keys and values belong to the prompt's last.
            sequence = Sequence(prompt.tokens, prompt.images, request, result, 1, embedding=job)
            held.model.loop.submit(sequence)
            loop = weakref.ref(held.model.loop)

        def cancel(keep: Engine = self) -> None:
            living = loop()
            if living is not None:
                living.cancel(sequence)

        return PendingEmbedding(result, prompt, cancel)

    def _room(self, request: Request, prompt: int, kv_tokens: int) -> int:
        """Tokens left for the answer: as many as requested, or as fit the context."""
        limit = min(self.context_length, kv_tokens)
        asked = request.params.max_tokens
        if prompt >= limit:
            raise ContextLengthError(
                f"The prompt has {prompt} tokens and the model holds {limit} with its answer; "
                "shorten the conversation or send fewer images.",
                prompt_tokens=prompt,
                max_tokens=asked,
                context_length=limit,
            )
        return min(asked, limit - prompt)

    def stats(self) -> dict[str, Any]:
        """Return figures of the moment and totals; of a model that has left, the totals alone."""
        resident = self._resident if self.loaded else None
        figures = {"running": 0, "waiting": 0} if resident is None else resident.stats()
        return {**figures, "loaded": resident is not None, **asdict(self._counters)}

    def warm_up(self, progress: Progress | None = None) -> None:
        """Run, compile and capture what requests will need; once, however often it is called.

        Requests that come meanwhile wait. What fails is a warning.

        Args:
            progress: called with how many tasks are done, of how many, and the last one's name.

        Raises:
            EngineClosedError: the engine was closed.
        """
        with _Lease(self) as held, held.model.warming:  # a second caller waits for the first
            if held.model.warm:
                return
            loop = held.model.loop
            warm_up(
                lambda request: self.submit(request, lambda image: open_picture(image.source)),
                loop,
                [one for one in (loop.runner.static, loop.runner.mixed) if one is not None],
                max_rows=loop.scheduler.max_concurrency,
                # On a processor an image costs seconds and leaves nothing behind.
                picture=loop.runner.model.device.type != "cpu",
                progress=progress,
            )
            held.model.warm = True

    def close(self) -> None:
        """End every request with an error and stop the thread."""
        self._closed = True
        finalizer, resident, leaving = self._finalizer, self._resident, self._leaving
        if finalizer is not None:
            finalizer.detach()
        if resident is not None:
            resident.loop.stop()
        elif leaving is not None and leaving is not threading.current_thread():
            leaving.join(_JOIN_SECONDS)

    def _entered(self) -> Resident:
        """Enter the model, which keeps it loaded until its loop is left; load it if it is not.

        Raises:
            EngineClosedError: the engine was closed.
            ModelError: it cannot be loaded.
        """
        while True:
            with self._state:
                if self.closed:
                    raise EngineClosedError(
                        "The engine was closed; llavakit.load gives a fresh one."
                    )
                if self._resident is not None and self._resident.loop.enter():
                    return self._resident
            self._load()

    def _load(self, model: Llava | None = None) -> None:
        """Load the model if it is not loaded, once the one before has left the memory."""
        with _loading:
            if self.closed or self.loaded:
                return
            with self._state:
                self._forget()
                leaving = self._leaving
            if leaving is not None:
                leaving.join()
            resident = Resident(
                self.reader,
                self.config,
                model,
                self.context_length,
                self._counters,
                lambda stays=self._stays: stays.longest,  # type: ignore[misc]
                _ending(weakref.ref(self)),
            )
            with self._state:
                self._resident = resident
                self._finalizer = weakref.finalize(self, resident.loop.stop)
            if self._closed:  # meanwhile, by a caller that found nothing to stop
                self.close()

    def _forget(self) -> None:
        """Drop a model that was unloaded; its thread may still have to end."""
        if self._resident is None or not self._resident.loop.retired:
            return
        if self._finalizer is not None:
            self._finalizer.detach()
        self._leaving = self._resident.loop.thread
        self._resident = self._finalizer = None

    def _ended(self) -> None:
        """Note that the thread of an unloaded model has ended."""
        with self._state:
            self._forget()


class _Lease:
    """Keeps an engine's model loaded while it is needed.

    Nothing else refers to the model meanwhile: an error keeps the variables of all functions that
    it has passed through, so that keeping such an error would keep the weights.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._model: Resident | None = None

    @property
    def model(self) -> Resident:
        """The model."""
        assert self._model is not None
        return self._model

    def __enter__(self) -> _Lease:
        self._model = self._engine._entered()
        return self

    def __exit__(self, *error: object) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.loop.leave()


def _nudging(engine: weakref.ref[Engine]) -> Callable[[], None]:
    """Return a callback by which an engine's loop asks again how long it may wait; lock-free."""

    def nudge() -> None:
        living = engine()
        resident = None if living is None else getattr(living, "_resident", None)
        if resident is not None:
            resident.loop.nudge()

    return nudge


def _ending(engine: weakref.ref[Engine]) -> Callable[[bool], None]:
    """Return a callback for the end of a loop's thread: it gives the memory back."""

    def ended(retired: bool) -> None:
        if not retired:  # closed or dead: the engine's owner drops it
            return
        living = engine()
        if living is not None:
            living._ended()
        del living
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        trim()
        log.info("the model has left the memory")

    return ended


def _check_biases(params: SamplingParams, vocab_size: int) -> None:
    for token in dict(params.logit_bias):
        if token >= vocab_size:
            raise ParameterError(
                f"logit_bias names the token {token}, and this model's vocabulary ends at "
                f"{vocab_size - 1}; take the token out."
            )


def count(reader: Reader, turns: list[Turn], size_of: Callable[[Image], tuple[int, int]]) -> int:
    """Count the tokens of a prompt from the images' sizes (width, height) alone."""
    parts = [part for turn in turns for part in turn.parts if isinstance(part, Image)]
    sizes = [seen_size(size_of(part)) for part in parts]
    pictures = sum(reader.layout.tokens(size, len(sizes)) for size in sizes)
    return len(reader.tokenizer.encode(turns)) - len(sizes) + pictures
