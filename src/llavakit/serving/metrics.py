"""Figures for Prometheus, named after vLLM's with ``llavakit:`` for ``vllm:``.

Each app has a registry of its own. What the server sees (times, outcomes) is counted here;
what the engine knows is read from ``Backend.stats()`` on each request. No figure holds a
word of a prompt or an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llavakit.values import Chunk, Usage

PREFIX = "llavakit"
_ENDS = ("stop", "length", "tool_calls", "abort", "error")
_FIRST = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.75, 1, 2.5, 5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240, 480, 960)

# Figures of Backend.stats() -> (name, what it says, whether it only grows).
_ENGINE: dict[str, tuple[str, str, bool]] = {
    "loaded": ("engine_loaded", "Whether the model is in memory (1) or has left it (0).", False),
    "running": ("num_requests_running", "Requests that the engine computes.", False),
    "waiting": ("num_requests_waiting", "Requests that wait for their first step.", False),
    "prompt_tokens": ("prefix_cache_queries", "Prompt tokens looked up in the cache.", True),
    "cached_tokens": ("prefix_cache_hits", "Prompt tokens found in the cache.", True),
    "kept_prefixes": ("prefix_cache_entries", "Beginnings of prompts that are kept.", False),
    "kv_tokens": ("kv_cache_tokens", "Slots of the KV cache.", False),
    "kv_tokens_live": ("kv_cache_tokens_live", "Slots held by running requests.", False),
    "kv_tokens_kept": ("kv_cache_tokens_kept", "Slots held by kept beginnings.", False),
    "image_cache_entries": ("image_cache_entries", "Images whose features are kept.", False),
    "image_cache_bytes": ("image_cache_bytes", "Memory of the kept features.", False),
    "image_cache_hits": ("image_cache_hits", "Images that were found in the cache.", True),
    "images_encoded": ("images_encoded", "Images that went through the vision tower.", True),
    "steps": ("engine_steps", "Steps of the engine.", True),
    "eager_steps": ("engine_eager_steps", "Steps that ran layer by layer.", True),
    "static_steps": ("engine_static_steps", "Decoding steps in static shapes.", True),
    "captured_steps": ("engine_captured_steps", "Decoding steps replayed as a graph.", True),
    "static_mixed_steps": (
        "engine_static_mixed_steps",
        "Short steps with a prefill in static shapes.",
        True,
    ),
    "captured_mixed_steps": (
        "engine_captured_mixed_steps",
        "Short steps with a prefill replayed as a graph.",
        True,
    ),
    "halved_steps": ("engine_halved_steps", "Steps halved for lack of memory.", True),
    "requests": ("engine_requests", "Requests that the engine took in.", True),
    "finished": ("engine_requests_finished", "Requests that it finished.", True),
    "cancelled": ("engine_requests_cancelled", "Requests whose owner left.", True),
    "failed": ("engine_requests_failed", "Requests that it could not finish.", True),
    "generated_tokens": ("engine_generation_tokens", "Tokens that it drew.", True),
}


class Metrics:
    """The figures of one app.

    Args:
        model: the label ``model_name``.
        stats: gives the engine's figures.
    """

    def __init__(self, model: str, stats: Callable[[], dict[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model}

        def counter(name: str, about: str, *labels: str) -> Counter:
            names = ["model_name", *labels]
            return Counter(f"{PREFIX}:{name}", about, names, registry=self.registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Any:
            made = Histogram(
                f"{PREFIX}:{name}", about, ["model_name"], registry=self.registry, buckets=buckets
            )
            return made.labels(**self._labels)

        self._success = counter("request_success", "Answers by their end.", "finished_reason")
        for reason in _ENDS:  # a figure that is not there yet is no 0 for Prometheus
            self._success.labels(**self._labels, finished_reason=reason)
        self._refused = counter("request_errors", "Requests refused or failed.", "code")
        prompt = counter("prompt_tokens", "Tokens of answered prompts, images included.")
        self.prompt_tokens = prompt.labels(**self._labels)
        answers = counter("generation_tokens", "Tokens of complete answers.")
        self.generation_tokens = answers.labels(**self._labels)
        self.first = histogram(
            "time_to_first_token_seconds", "From the whole request to the first token.", _FIRST
        )
        self.between = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _BETWEEN
        )
        self.whole = histogram(
            "e2e_request_latency_seconds", "From the whole request to the end of one.", _WHOLE
        )
        self.registry.register(_EngineFigures(self._labels, stats))

    def finished(self, reason: str) -> None:
        """An answer ended: ``stop``, ``length``, ``tool_calls``, ``abort`` or ``error``."""
        self._success.labels(**self._labels, finished_reason=reason).inc()

    def refused(self, code: str) -> None:
        """A request ended with an error."""
        self._refused.labels(**self._labels, code=code).inc()

    def render(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(slots=True)
class Clock:
    """Times the answers to one request, from the moment when its body was there.

    Attributes:
        metrics: where the times are recorded.
        open: answers that have no end yet.
        failed: whether it was an error that ended them.
    """

    metrics: Metrics
    open: int = 0
    failed: bool = False
    began: float = field(default_factory=time.monotonic)
    _last: dict[int, float] = field(default_factory=dict)

    def chunk(self, index: int, chunk: Chunk) -> None:
        """A chunk of one choice came."""
        now = time.monotonic()
        if chunk.text or chunk.tool_calls:
            last = self._last.get(index)
            if last is None:
                self.metrics.first.observe(now - self.began)
            else:
                self.metrics.between.observe(now - last)
            self._last[index] = now
        if chunk.finish_reason is not None:
            self.open -= 1
            self.metrics.whole.observe(now - self.began)
            self.metrics.finished(chunk.finish_reason)

    def tokens(self, usages: Sequence[Usage]) -> None:
        """All answers to one prompt are complete."""
        self.metrics.prompt_tokens.inc(usages[0].prompt_tokens)
        self.metrics.generation_tokens.inc(sum(one.completion_tokens for one in usages))

    def over(self) -> None:
        """Record that the request is over, whether the answers have an end or not."""
        for _ in range(self.open):
            self.metrics.finished("error" if self.failed else "abort")
        self.open = 0


class _EngineFigures(Collector):
    """Reads the engine's figures when they are asked for."""

    def __init__(self, labels: dict[str, str], stats: Callable[[], dict[str, Any]]) -> None:
        self._labels = labels
        self._stats = stats

    def describe(self) -> list[Metric]:
        return []  # registering reads no figures

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for key, (name, about, grows) in _ENGINE.items():
            if key in stats:
                yield self._family(name, about, float(stats[key]), grows)
        if stats.get("kv_tokens"):
            share = float(stats["kv_tokens_live"]) / float(stats["kv_tokens"])
            about = "Share of the KV cache that running requests hold; 1 is full."
            yield self._family("kv_cache_usage_perc", about, share, False)

    def _family(self, name: str, about: str, value: float, grows: bool) -> Metric:
        kind = CounterMetricFamily if grows else GaugeMetricFamily
        family = kind(f"{PREFIX}:{name}", about, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
