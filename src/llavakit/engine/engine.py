"""The inference core as its callers see it: submit a request, read the stream of its answer."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from llavakit.engine import memory
from llavakit.engine.answer import Answer
from llavakit.engine.arena import KVArena
from llavakit.engine.attending import Attending
from llavakit.engine.attention import pass_kernel
from llavakit.engine.config import EngineConfig
from llavakit.engine.decode import static_decode
from llavakit.engine.grammar import GrammarCompiler, grammar_of
from llavakit.engine.loop import EngineLoop
from llavakit.engine.runner import ModelRunner
from llavakit.engine.sampler import Sampler
from llavakit.engine.scheduler import Scheduler
from llavakit.engine.sequence import ImageSpan, Sequence
from llavakit.engine.warm_up import Progress, warm_up
from llavakit.errors import ContextLengthError, EngineClosedError
from llavakit.images import Picture, open_picture
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_weights
from llavakit.prompts.conversation import Turn, to_turns
from llavakit.streams import AnswerStream, Channel
from llavakit.values import Image, Request

log = logging.getLogger(__name__)

OpenPicture = Callable[[Image], Picture]


class Engine:
    """One model, its memory, and the thread that runs it.

    Args:
        reader: the half of the checkpoint that reads prompts.
        config: how it is set up.
        model: the weights, where they are loaded already (or were never in a file).

    Weights are loaded here. Dropping the last reference stops the thread and frees them.
    """

    def __init__(self, reader: Reader, config: EngineConfig, model: Llava | None = None) -> None:
        began = time.monotonic()
        model = model or load_weights(
            reader,
            device=config.device,
            dtype=config.dtype,
            quantization=config.quantization,
            device_map=config.device_map,
            room=memory.available(),
        )
        self.reader = reader
        self.config = config
        self.context_length = min(
            config.context_length or reader.context_length, reader.context_length
        )
        kv_tokens = kv_budget(model, config, self.context_length)
        most = concurrency(model, config, kv_tokens, self.context_length)
        scheduler = Scheduler(kv_tokens, most, config.prefill_chunk)
        arena = KVArena(
            model.layer_devices, kv_tokens, model.kv_heads, model.head_dim, dtype=model.dtype
        )
        refused: dict[str, str] = {}
        kernel = pass_kernel(arena, model.heads, model.kv_heads, model.head_dim, refused)
        static = static_decode(model, arena, config, refused, kernel)
        runner = ModelRunner(model, arena, config.image_cache_bytes, static, kernel)
        self._attention = Attending(kernel, static, refused, model.device)
        log.info("attends by %s", self._attention)
        sampler = Sampler(reader.special.forbidden, model.device)
        self._grammars = GrammarCompiler(
            reader.tokenizer.tokenizer, model.vocab_size, sorted(reader.special.stops)
        )
        on_gpu = model.device.type == "cuda"
        self._loop = EngineLoop(
            scheduler,
            runner,
            sampler,
            reader.path.name,
            config.max_waiting,
            lookahead=on_gpu if config.lookahead == "auto" else config.lookahead,
        )
        self._process = os.getpid()
        self._warming = threading.Lock()
        self._warm = False
        self._finalizer = weakref.finalize(self, self._loop.stop)
        log.info("ready in %.1f s, %d KV slots", time.monotonic() - began, kv_tokens)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, dead, or left behind by a fork."""
        return self._loop.dead or self._process != os.getpid()

    def submit(self, request: Request, open_picture: OpenPicture) -> AnswerStream:
        """Queue a request.

        Everything that can be wrong with it is found here, on the caller's thread.

        Raises:
            InputError: pictures, messages, grammar or length.
            QueueFullError: too many requests wait.
            EngineClosedError: the engine was closed.
        """
        if self.closed:
            raise EngineClosedError("The engine was closed; llavakit.load gives a fresh one.")
        self._loop.check_room()  # before any work is done for it
        grammar = grammar_of(request, self._grammars.spell)
        tokens, images = encode(self.reader, to_turns(request), open_picture)
        max_tokens = self._room(request, len(tokens))
        matcher = None if grammar is None else self._grammars.matcher(grammar)
        cache = self._loop.runner.vision.cache
        for image in images:
            if image.key not in cache:
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
        )
        self._loop.submit(sequence)
        return AnswerStream(channel, lambda: self._loop.cancel(sequence))

    def _room(self, request: Request, prompt: int) -> int:
        """Tokens left for the answer: what was asked, or what the context has room for."""
        limit = min(self.context_length, self._loop.scheduler.kv_tokens)
        asked = request.params.max_tokens
        if prompt >= limit:
            raise ContextLengthError(
                f"The prompt has {prompt} tokens and the model holds {limit} with its answer; "
                "shorten the conversation or send fewer pictures.",
                prompt_tokens=prompt,
                max_tokens=asked,
                context_length=limit,
            )
        return min(asked, limit - prompt)

    def stats(self) -> dict[str, Any]:
        """Figures of the moment and totals."""
        scheduler, runner = self._loop.scheduler, self._loop.runner
        vision = runner.vision
        kept = scheduler.kept
        return {
            "running": len(scheduler.running),
            "waiting": self._loop.backlog,
            "max_concurrency": scheduler.max_concurrency,
            "kv_tokens": scheduler.kv_tokens,
            "kv_tokens_live": scheduler.live_tokens,
            "kv_tokens_kept": sum(segment.extent.length for segment in kept),
            "kept_prefixes": len(kept),
            "image_cache_entries": len(vision.cache),
            "image_cache_bytes": vision.cache.bytes,
            "image_cache_hits": vision.cache.hits,
            "images_encoded": vision.encoded,
            "halved_steps": runner.halved,
            "eager_steps": runner.eager,
            **self._attention.stats(),
            **asdict(self._loop.counters),
        }

    def warm_up(self, progress: Progress | None = None) -> None:
        """Run, compile and capture what requests will need; once, whoever asks for it.

        Requests that come meanwhile wait. What fails is a warning.

        Args:
            progress: told how many pieces of work are done, of how many, and the last one's name.

        Raises:
            EngineClosedError: the engine was closed.
        """
        with self._warming:  # whoever comes second waits for the first
            if self._warm:
                return
            runner = self._loop.runner
            warm_up(
                lambda request: self.submit(request, lambda image: open_picture(image.source)),
                self._loop,
                runner.static,
                max_rows=self._loop.scheduler.max_concurrency,
                # On a processor a picture costs seconds and leaves nothing behind.
                picture=runner.model.device.type != "cpu",
                progress=progress,
            )
            self._warm = True

    def close(self) -> None:
        """End every request with an error and stop the thread."""
        self._finalizer.detach()
        self._loop.stop()


def encode(
    reader: Reader, turns: list[Turn], open_picture: OpenPicture
) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Token ids of a prompt, each picture's token repeated, and where the pictures stand."""
    parts = [part for turn in turns for part in turn.parts if isinstance(part, Image)]
    pictures = [open_picture(part) for part in parts]
    tokens: list[int] = []
    images: list[ImageSpan] = []
    for token in reader.tokenizer.encode(turns):
        if token == reader.special.image:
            picture = pictures[len(images)]
            pixels = reader.preprocess(picture, len(pictures))
            count = reader.layout.tokens(pixels.size, len(pictures))
            images.append(ImageSpan(len(tokens), count, pixels.key, pixels))
            tokens += [token] * count
        else:
            tokens.append(token)
    return tokens, tuple(images)


def kv_budget(model: Llava, config: EngineConfig, context_length: int) -> int:
    """Slots of the KV arena: what the budget buys, at least one context if it is automatic."""
    each = KVArena.bytes_per_token(model.layers, model.kv_heads, model.head_dim, model.dtype)
    if config.kv_cache_bytes != "auto":
        return max(1, config.kv_cache_bytes // each)
    # The fullest device decides for all layers, by the share of them that lies there.
    layers = Counter(model.layer_devices)
    room = min(_free_bytes(device, model) * model.layers // n for device, n in layers.items())
    contexts = config.max_concurrency
    if contexts == "auto":
        contexts = memory.planned_contexts(context_length, _on_gpu(model))
    return memory.kv_slots(room // each, context_length, contexts)


def concurrency(model: Llava, config: EngineConfig, kv_tokens: int, context_length: int) -> int:
    """Most sequences of a batch: what was asked for, or what suits the device and the arena."""
    if config.max_concurrency != "auto":
        return config.max_concurrency
    return memory.concurrency(kv_tokens, context_length, _on_gpu(model))


def _on_gpu(model: Llava) -> bool:
    return all(device.type == "cuda" for device in model.layer_devices)


def _free_bytes(device: torch.device, model: Llava) -> int:
    """What keys and values may take on a device, the weights being there already."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what merged weights were made of
        free, _ = torch.cuda.mem_get_info(device)
        # Activations of a prefill chunk and of the vision tower need the rest.
        return int(0.85 * free)
    weights = [weight for weight in model.hf.parameters() if weight.device.type == "cpu"]
    stretches = ((weight.data_ptr(), weight.nbytes) for weight in weights)
    return memory.kv_room(memory.available() - memory.in_files(stretches))
