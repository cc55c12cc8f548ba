"""Speed and memory on one GPU, in one command: ``python -m benchmarks.gpu``.

Builds LLaVA-1.5-7B, -13B and 1.6-34B from configuration with random weights directly on the
GPU (no download), and measures llavakit's engine against plain ``transformers.generate``,
with the dynamic cache (eager) and with the static one. Speeds of decoding are given as shares
of the roofline, too: the bytes of weights that the steps of a second read, over the bandwidth
(reads and writes) of a copy that was measured in the same run. How the engine's steps ran
(captured, in static shapes, eagerly) stands beside its speeds, and the log says why. The bar:
70 percent of the roofline with one request in bf16 on an H200. Takes under ten minutes; what
does not fit into the time or the memory is left out and said so. ``--tiny`` runs the same
code with tiny shapes on a CPU.

No GPU figures are recorded yet: only the dry run (``--tiny``) was made so far.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_measures import (
    OwnEngine,
    PlainGenerate,
    Sizes,
    copy_bandwidth,
    some_pictures,
)
from benchmarks.gpu_models import SPECS, Spec, build, save_without_weights
from benchmarks.run import quiet
from llavakit.model.llava import Llava
from llavakit.model.quantization import Quantization, weight_bytes

RESULTS = Path(__file__).parent / "results"
KINDS: dict[str, Quantization | None] = {"16 bit": None, "8 bit": "8bit", "4 bit": "4bit"}


class Budget:
    """The time that is left; what would begin behind it is not begun.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def measure(self, run: Callable[[], Any], reserve: float = 0.0) -> Any:
        """The result of a measurement, or why there is none.

        Args:
            run: makes it.
            reserve: seconds that must be left for others when it begins.
        """
        if self.left < reserve:
            return "left out: no time"
        try:
            return run()
        except torch.OutOfMemoryError:
            _free()
            return "left out: no memory"


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a dry run on a CPU")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--models", nargs="*", default=[spec.name for spec in SPECS])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<GPU>.json")
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("there is no GPU here; --tiny makes a dry run on the CPU")
    quiet()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llavakit.engine").setLevel(logging.INFO)
    device = torch.device("cpu" if options.tiny else "cuda")
    dtype = torch.float32 if options.tiny else torch.bfloat16
    sizes = Sizes.tiny() if options.tiny else Sizes()
    budget = Budget(60 * options.minutes)
    figures: dict[str, Any] = _machine(device)
    roof = copy_bandwidth(device, sizes.copy_bytes)
    figures["copy bandwidth, GB/s"] = round(roof / 1e9, 1)
    print(json.dumps(figures, indent=1), flush=True)
    figures["models"] = {}
    specs = [spec for spec in SPECS if spec.name in options.models]
    for number, spec in enumerate(specs):
        share = Budget(budget.left / (len(specs) - number))
        spec = spec.tiny() if options.tiny else spec
        one = share.measure(lambda s=spec, b=share: measure(s, device, dtype, sizes, roof, b))
        figures["models"][spec.name] = one
        print(json.dumps({spec.name: one}, indent=1), flush=True)
        _free()
    out = options.out or (None if options.tiny else RESULTS / f"{_slug(figures['device'])}.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")


def measure(
    spec: Spec,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sizes,
    roof: float,
    budget: Budget,
) -> dict[str, Any]:
    """All figures of one model."""
    images = some_pictures(max(4, sizes.pictures), 2 * spec.side)
    with tempfile.TemporaryDirectory() as folder:
        path = save_without_weights(spec, Path(folder) / "model")
        model = build(spec, device, dtype)
        memory = {"16 bit": _gigabytes(weight_bytes(model))}
        read = _read_by_a_step(model)
        eager = _plain(PlainGenerate(model, path, sizes), images, sizes.batches, budget)
        own = _own(OwnEngine(model, path, sizes), images, sizes, budget)
        # Last, because it is compiled for a minute or more, and with one batch for that reason.
        static = _plain(
            PlainGenerate(model, path, sizes, static=True), images, sizes.batches[:1], budget, 60.0
        )
        del model
        _free()
        for name, kind in KINDS.items():
            if kind is not None:
                memory[name] = budget.measure(
                    lambda k=kind: _gigabytes(_quantised_bytes(spec, device, dtype, k))
                )
                _free()
    result = {"llavakit": own, "generate, eager": eager, "generate, static cache": static}
    for one in result.values():
        one["share of the roofline"] = {
            batch: round(rate / int(batch) * read / roof, 3)
            for batch, rate in one["tokens per second"].items()
            if not isinstance(rate, str)
        }
    return {"weights, GB": memory, "read for a token, GB": _gigabytes(read), **result}


def _plain(
    peer: PlainGenerate,
    images: list[Any],
    batches: tuple[int, ...],
    budget: Budget,
    reserve: float = 0.0,
) -> dict[str, Any]:
    """``generate`` keeps nothing, so that the same picture and the next turn cost as the first."""
    return {
        "tokens per second": {
            str(n): budget.measure(lambda n=n: round(peer.decode(n), 1), reserve) for n in batches
        },
        "first token, s": {
            "cold": budget.measure(lambda: round(peer.first_token(images[0]), 4), reserve)
        },
    }


def _own(engine: OwnEngine, images: list[Any], sizes: Sizes, budget: Budget) -> dict[str, Any]:
    try:
        return {
            "tokens per second": {
                str(n): budget.measure(lambda n=n: round(engine.decode(n), 1))
                for n in sizes.batches
            },
            "steps": engine.paths,
            "host waits for a step": budget.measure(engine.host_waits),
            "first token, s": budget.measure(
                lambda: {
                    name: round(took, 4) for name, took in engine.first_tokens(images[:4]).items()
                }
            ),
            "pictures encoded per second": budget.measure(
                lambda: round(engine.images_per_second(images[: sizes.pictures]), 2)
            ),
        }
    finally:
        engine.close()


def _read_by_a_step(model: Any) -> int:
    """Bytes of the weights that every decoding step reads; keys and values are left out."""
    return weight_bytes(model.model.language_model.layers) + weight_bytes(model.lm_head)


def _quantised_bytes(
    spec: Spec, device: torch.device, dtype: torch.dtype, kind: Quantization
) -> int:
    model = build(spec, device, dtype, kind)
    Llava(model)  # the engine's form of it: nothing may be quantised that must not be
    return weight_bytes(model)


def _gigabytes(count: float) -> float:
    return round(count / 1e9, 3)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _machine(device: torch.device) -> dict[str, Any]:
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, tiny shapes"
    packages = ("llavakit", "torch", "transformers", "bitsandbytes")
    return {
        "device": named,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
