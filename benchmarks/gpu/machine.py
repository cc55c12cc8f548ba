"""What stages share: how much is measured, on what, and how long something takes."""

from __future__ import annotations

import gc
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import question
from benchmarks.contenders import Turns
from benchmarks.gpu.models import Spec, build, save_without_weights
from benchmarks.gpu.processes import Options
from benchmarks.gpu.records import Records, read
from llavakit.model.quantization import Quantization, weight_bytes

ROOF = "copy bandwidth"
TRACED = "7b-compiled"
"""The stage that traces what it would compile in the rehearsal, too; others skip that."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        prompt: words of a text prompt.
        answer: tokens of an answer whose speed is measured.
        batches: requests that decode together.
        pictures: images encoded together.
        slots: tokens that the engine's arena holds.
        copy_bytes: bytes of the buffer whose copy gives the bandwidth.
        known: words that prompts are made of.
        served: requests, and tokens of their prompts and of their answers.
    """

    prompt: int = 64
    answer: int = 128
    batches: tuple[int, ...] = (1, 8, 32, 64)
    pictures: int = 16
    slots: int = 65_536
    copy_bytes: int = 4 << 30
    known: int = 5000
    served: tuple[int, int, int] = (96, 597, 104)

    @classmethod
    def tiny(cls) -> Sizes:
        """For the rehearsal on a CPU."""
        return cls(8, 24, (1, 2), 2, 4096, 8 << 20, 300, (6, 40, 8))


@dataclass(frozen=True)
class Bench:
    """What a stage is given.

    Attributes:
        records: takes its figures.
        tiny: whether it is the rehearsal.
        device: that is measured.
        dtype: of weights and activations.
        sizes: how much is measured.
    """

    records: Records
    tiny: bool
    device: torch.device
    dtype: torch.dtype
    sizes: Sizes

    @classmethod
    def of(cls, options: Options, records: Records) -> Bench:
        """Set up a stage."""
        if options.tiny:
            _compile_lightly(records.stage)
            return cls(records, True, torch.device("cpu"), torch.float32, Sizes.tiny())
        return cls(records, False, torch.device("cuda", 0), torch.bfloat16, Sizes())

    @contextmanager
    def model(self, spec: Spec, kind: Quantization | None = None) -> Iterator[tuple[Any, Path]]:
        """Build a model with random weights; its files without weights lie in the folder."""
        spec = spec.tiny() if self.tiny else spec
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            path = save_without_weights(spec, Path(folder) / "model")
            model = build(spec, self.device, self.dtype, kind)
            name = f"{spec.name}, {kind or '16 bit'}, weights"
            taken = time.perf_counter() - began
            self.records.write(name, round(weight_bytes(model) / 1e9, 3), "GB", taken)
            yield model, path

    def roof(self) -> float:
        """Bytes a second of a copy, read and written: measured before, or else now."""
        for line in reversed(read(self.records.folder)):
            if line["name"] == ROOF and line["value"]:
                return float(line["value"]) * 1e9
        return copy_bandwidth(self.device, self.sizes.copy_bytes)

    def words(self, number: int, words: int | None = None) -> str:
        """Make a question of so many tokens; each number has its own."""
        return question(number, words or self.sizes.prompt, self.sizes.known)

    def text(self, number: int) -> Turns:
        """Make a question without an image."""
        return [("user", [self.words(number)])]

    def about(self, picture: Any, number: int) -> Turns:
        """Make a question about an image."""
        return [("user", [picture, self.words(number)])]

    def smaller(self, answer: int) -> Bench:
        """The same with answers of so many tokens, where they were longer."""
        return replace(self, sizes=replace(self.sizes, answer=min(answer, self.sizes.answer)))


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], Any], repeats: int = 3) -> float:
    """Median time of a run in seconds, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written in a second by copying ``size`` bytes on the device: the roof."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(device, lambda: target.copy_(source), 10)


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def quiet() -> None:
    """Let the log hold what the engine says, and no advice of the libraries."""
    import transformers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", force=True)
    logging.getLogger("llavakit").setLevel(logging.INFO)


def _compile_lightly(stage: str) -> None:
    """Let ``torch.compile`` generate no code, for which a CPU takes minutes, and trace once."""
    compile = torch.compile

    def light(function: Any = None, **settings: Any) -> Any:
        if stage != TRACED:
            return function
        kept = {k: v for k, v in settings.items() if k in ("fullgraph", "dynamic")}
        return compile(function, backend="eager", **kept)

    torch.compile = light  # type: ignore[assignment]
