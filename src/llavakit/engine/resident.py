"""A model in memory: its weights, its keys and values, and the thread that runs it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from llavakit.engine import memory
from llavakit.engine.arena import KVArena
from llavakit.engine.attending import Attending
from llavakit.engine.attention import pass_kernel
from llavakit.engine.config import EngineConfig
from llavakit.engine.decode import static_decode
from llavakit.engine.grammar import GrammarCompiler
from llavakit.engine.loop import EngineLoop
from llavakit.engine.mixed import static_mixed
from llavakit.engine.runner import ModelRunner
from llavakit.engine.sampler import Sampler
from llavakit.engine.scheduler import Scheduler
from llavakit.engine.steps import Counters
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_weights
from llavakit.model.retrieval import RetrievalAdapter, RetrievalModel

log = logging.getLogger(__name__)


class Resident:
    """All that is in memory while a model is loaded, and freed when it is unloaded.

    Args:
        reader: the half of the checkpoint that reads prompts.
        config: how it is set up.
        model: the weights, where they are loaded already; else they are loaded here.
        context_length: tokens of prompt and answer.
        counters: totals, which go on where an earlier one ended.
        patience: seconds that it stays when it is idle (see :class:`EngineLoop`).
        ended: called when its thread has ended (see :class:`EngineLoop`).

    Attributes:
        loop: runs requests.
        grammars: compiles grammars for its tokenizer.
        vocab_size: rows of the output layer.
        warming: held while it is warmed up.
        warm: whether it was warmed up.
    """

    def __init__(
        self,
        reader: Reader,
        config: EngineConfig,
        model: Llava | None,
        context_length: int,
        counters: Counters,
        patience: Callable[[], float],
        ended: Callable[[bool], None],
    ) -> None:
        began = time.monotonic()
        model = model or load_weights(
            reader,
            device=config.device,
            dtype=config.dtype,
            quantization=config.quantization,
            device_map=config.device_map,
            room=memory.available(),
        )
        kv_tokens = kv_budget(model, config, context_length)
        most = concurrency(model, config, kv_tokens, context_length)
        scheduler = Scheduler(kv_tokens, most, config.prefill_chunk)
        arena = KVArena(
            model.layer_devices, kv_tokens, model.kv_heads, model.head_dim, dtype=model.dtype
        )
        refused: dict[str, str] = {}
        kernel = pass_kernel(arena, model.heads, model.kv_heads, model.head_dim, refused)
        static = static_decode(model, arena, config, refused, kernel)
        mixed = static_mixed(model, arena, static, kernel)
        runner = ModelRunner(model, arena, config.image_cache_bytes, static, kernel, mixed)
        self._attention = Attending(kernel, static, mixed, refused, model.device)
        log.info("attends by %s", self._attention)
        sampler = Sampler(reader.special.forbidden, model.device)
        self.vocab_size = model.vocab_size
        self.grammars = GrammarCompiler(
            reader.tokenizer.tokenizer, model.vocab_size, sorted(reader.special.stops)
        )
        on_gpu = model.device.type == "cuda"
        self.loop = EngineLoop(
            scheduler,
            runner,
            sampler,
            reader.path.name,
            config.max_waiting,
            lookahead=on_gpu if config.lookahead == "auto" else config.lookahead,
            counters=counters,
            patience=patience,
            ended=ended,
        )
        self._retrieval: dict[str, RetrievalModel] = {}
        self.warming = threading.Lock()
        self.warm = False
        log.info("ready in %.1f s, %d KV slots", time.monotonic() - began, kv_tokens)

    def retrieval(self, adapter: RetrievalAdapter) -> RetrievalModel:
        """Return the model with a retrieval adapter in it, made once.

        Raises:
            CheckpointError: the adapter does not fit the model.
        """

        def made() -> RetrievalModel:
            key = adapter.fingerprint
            if key not in self._retrieval:
                self._retrieval[key] = RetrievalModel(self.loop.runner.model, adapter)
            return self._retrieval[key]

        # Between steps: hooks are added to layers that the loop's thread runs.
        return self.loop.run_between_steps(made).result()

    def stats(self) -> dict[str, Any]:
        """Return figures of the moment, and totals since it was loaded."""
        scheduler, runner = self.loop.scheduler, self.loop.runner
        vision = runner.vision
        kept = scheduler.kept
        return {
            "running": len(scheduler.running),
            "waiting": self.loop.backlog,
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
        }


def kv_budget(model: Llava, config: EngineConfig, context_length: int) -> int:
    """Return the slots of the KV arena: what the budget buys; automatic, at least one context."""
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
    """Return the most sequences of a batch: as configured, or what suits device and arena."""
    if config.max_concurrency != "auto":
        return config.max_concurrency
    return memory.concurrency(kv_tokens, context_length, _on_gpu(model))


def _on_gpu(model: Llava) -> bool:
    return all(device.type == "cuda" for device in model.layer_devices)


def _free_bytes(device: torch.device, model: Llava) -> int:
    """Bytes that keys and values may take on a device, the weights being there already."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what merged weights were made of
        free, _ = torch.cuda.mem_get_info(device)
        # Activations of a prefill chunk and of the vision tower need the rest.
        return int(0.85 * free)
    weights = [weight for weight in model.hf.parameters() if weight.device.type == "cpu"]
    stretches = ((weight.data_ptr(), weight.nbytes) for weight in weights)
    return memory.kv_room(memory.available() - memory.in_files(stretches))
