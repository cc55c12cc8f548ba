"""What the machine is, and whether the engine is right on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.engine import Forced, How, chosen_kernel, loaded, ran, verdict
from benchmarks.gpu.machine import ROOF, Bench, copy_bandwidth, seconds, wait
from benchmarks.gpu.models import LARGE, SEVEN

PACKAGES = (
    *("llavakit", "torch", "triton", "torchvision", "transformers", "accelerate", "tokenizers"),
    *("safetensors", "numpy", "pillow", "pytest", "pytest-asyncio", "pytest-socket"),
    *("llguidance", "bitsandbytes"),
)
HEADS = ((32, 32), (32, 8), (56, 8))
CSV = ("--format=csv,noheader",)
PROBE = 40
"""Tokens of an answer that is compared: enough for steps to be captured (see ``engine.decode``)."""


def facts(bench: Bench) -> None:
    """Write what the machine has, the attention that is chosen on it, and the roof."""
    with bench.records.figure("machine") as line:
        line["value"] = _machine(bench.device)
    with bench.records.figure("versions") as line:
        line["value"] = {name: _version(name) for name in PACKAGES} | {
            "python": platform.python_version(),
            "commit": _commit(),
        }
    with bench.records.figure("chosen kernel") as line:
        for spec in (SEVEN, LARGE):
            name, said = chosen_kernel(
                spec.heads, spec.kv_heads, _dim(bench), bench.dtype, bench.device
            )
            line.setdefault("value", {})[spec.name] = name
            line.setdefault("said", {})[spec.name] = said
        line["ok"] = None not in line["value"].values()
    with bench.records.figure(ROOF, "GB/s, read and written") as line:
        line["value"] = round(copy_bandwidth(bench.device, bench.sizes.copy_bytes) / 1e9, 1)
    with bench.records.figure("matrix product", "TFLOP/s") as line:
        line["value"] = round(_product_rate(bench) / 1e12, 2)


def _dim(bench: Bench) -> int:
    """Channels of a head: those of all large models."""
    return 32 if bench.tiny else 128


def _machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "memory, GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "device memory, GB": round(properties.total_memory / 1e9, 1),
            "processors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "driver": _said(["nvidia-smi", "--query-gpu=driver_version", *CSV]),
            "limits": _said(
                ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem,power.limit", *CSV]
            ),
        }
    return found


def _said(command: list[str]) -> str | None:
    """What a program prints; None if there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _commit() -> str | None:
    return _said(["git", "rev-parse", "--short", "HEAD"])


def _version(name: str) -> str | None:
    """The version of a package; None where it has no metadata, as in a bare checkout."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _product_rate(bench: Bench) -> float:
    """Operations a second of a square matrix product."""
    side = 256 if bench.tiny else 8192
    one = torch.randn(side, side, device=bench.device, dtype=bench.dtype)
    return 2 * side**3 / seconds(bench.device, lambda: one @ one, 10)


def self_tests(bench: Bench) -> None:
    """Write which attention gives the right numbers, by shape and type."""
    types = (torch.bfloat16, torch.float16, torch.float32)
    for heads, kv_heads in HEADS:
        for dtype in types:
            name = f"{heads}/{kv_heads} {str(dtype).removeprefix('torch.')}"
            with bench.records.figure(name) as line:
                kernel, said = chosen_kernel(heads, kv_heads, _dim(bench), dtype, bench.device)
                line |= {"value": kernel, "ok": kernel is not None, "said": said}
                wait(bench.device)


def oracle(bench: Bench) -> None:
    """Compare tiny random models with ``generate``: tokens in fp32, logits in bf16."""
    from tests.tiny import tiny_llava, tiny_llava_next

    ways: tuple[How, ...] = ("eager", "captured", "compiled")
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, tuple[Any, list[_Expected]]] = {}
        for name, make in (("llava", tiny_llava), ("llava_next", tiny_llava_next)):
            with bench.records.figure(f"{name}, generate") as line:
                tiny = make(Path(folder) / name)
                tiny.model.to(bench.device)
                made[name] = (tiny, [_expected(tiny, *one, bench) for one in _questions()])
                line["value"] = {"answers": len(made[name][1])}
        for how in ways:
            for name, (tiny, expected) in made.items():
                if how != "compiled" or name == "llava":
                    _tokens(bench, f"{name}, fp32, {how}", how, tiny, expected)
        if "llava" in made:
            _logits(bench, made["llava"][0])


def _questions() -> Sequence[tuple[str, Any]]:
    from tests.engine.asking import PICTURES, WORDS

    return [(text, PICTURES[n % len(PICTURES)]) for n, text in enumerate(WORDS)]


class _Expected:
    """Greedy tokens of the reference, and how far the best was from the second at each."""

    def __init__(self, tokens: list[int], margins: list[float]) -> None:
        self.tokens = tokens
        self.margins = margins


def _expected(tiny: Any, text: str, picture: Any, bench: Bench) -> _Expected:
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = tiny.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs = tiny.processor(images=[picture], text=prompt, return_tensors="pt")
    with torch.inference_mode():
        out = tiny.model.generate(
            **{name: value.to(bench.device) for name, value in inputs.items()},
            max_new_tokens=PROBE,
            do_sample=False,
            suppress_tokens=tiny.forbidden,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    best = torch.stack([score[0].topk(2).values for score in out.scores])
    tokens: list[int] = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return _Expected(tokens, (best[:, 0] - best[:, 1]).tolist())


def _tokens(bench: Bench, name: str, how: How, tiny: Any, expected: list[_Expected]) -> None:
    """Compare an engine's answers, all asked together and again, token for token."""
    from tests.engine.asking import ask

    texts, pictures = zip(*_questions(), strict=True)
    with bench.records.figure(name, "answers that equal generate's") as line:
        with loaded(bench, tiny.path, how, "float32") as engine:
            rounds = [ask(engine, texts, pictures, PROBE) for _ in range(2)]
            line["ran"] = ran(engine)
        pairs = [pair for got in rounds for pair in zip(got, expected, strict=True)]
        equal = sum(got == one.tokens for got, one in pairs)
        line["value"] = {"equal": equal, "of": len(pairs)}
        line["first differences"] = [
            difference for got, one in pairs if (difference := _difference(got, one)) is not None
        ]
        line |= verdict(line["ran"], how, every=False)
        if equal < len(pairs):
            line |= {"ok": False, "error": "answers differ"}


def _difference(got: list[int], expected: _Expected) -> dict[str, Any] | None:
    """Where two answers part, and by how much the reference preferred its token there."""
    for place, (one, other) in enumerate(zip(got, expected.tokens, strict=False)):
        if one != other:
            return {"place": place, "margin": round(expected.margins[place], 6)}
    if len(got) != len(expected.tokens):
        return {"place": min(len(got), len(expected.tokens)), "length": len(got)}
    return None


def _logits(bench: Bench, tiny: Any) -> None:
    """Compare logits in bf16 of given tokens with fp32's; ``generate``'s own error is the measure.

    The error is the largest deviation over the largest logit.
    """
    length, start = 48, 24
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 260, (5, length), generator=drawn)
    reference: Tensor | None = None
    yardstick = 0.0
    with bench.records.figure("bf16 logits, transformers", "share of the largest logit") as line:
        reference = _plain_logits(tiny.model, tokens, bench)
        yardstick = _error(_plain_logits(_in_bf16(tiny, bench), tokens, bench), reference)
        line["value"] = yardstick
    if reference is None or not yardstick:
        return
    passes: dict[str, tuple[Callable[[Forced], Tensor], Tensor]] = {
        "prefill": (lambda forced: forced.prefill(length), reference),
        "captured decode": (lambda forced: forced.decode(start), reference[:, start:]),
    }
    for name, (run, right) in passes.items():
        with bench.records.figure(f"bf16 logits, {name}", "share of the largest logit") as line:
            found = _error(run(Forced(tiny.path, bench, "bfloat16", tokens)), right)
            line |= {"value": found, "of transformers' error": round(found / yardstick, 2)}
            line["ok"] = found <= 2 * yardstick
            if not line["ok"]:
                line["error"] = "more than twice the error of transformers in bf16"


def _in_bf16(tiny: Any, bench: Bench) -> Any:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny.path, dtype=torch.bfloat16)
    return model.eval().to(bench.device)


@torch.inference_mode()
def _plain_logits(model: Any, tokens: Tensor, bench: Bench) -> Tensor:
    logits: Tensor = model(input_ids=tokens.to(bench.device)).logits
    return logits.float()


def _error(found: Tensor, right: Tensor) -> float:
    return round(float((found - right).abs().max() / right.abs().max()), 6)


class _Reports:
    """Writes tests that fail as they fail, and counts all."""

    def __init__(self, bench: Bench) -> None:
        self._records = bench.records
        self.counts: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            # The last lines tell what was found; the first ones are the test's own source.
            why = re.sub(r"\x1b\[[\d;]*m", "", str(report.longrepr))[-1500:]
            self._records.write(report.nodeid, seconds=report.duration, ok=False, error=why)


def gpu_tests(bench: Bench) -> None:
    """Run the tests that need a GPU, without the project's settings, which name plugins."""
    import pytest

    reports = _Reports(bench)
    with bench.records.figure("tests/engine/test_gpu.py", "tests") as line:
        command = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-q"]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        code = pytest.main([*command, "tests/engine/test_gpu.py"], plugins=[reports])
        line |= {"value": reports.counts, "ok": int(code) == 0}
        if code:
            line["error"] = f"pytest ended with {code!r}"
