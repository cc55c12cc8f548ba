"""The benchmarks by name."""

from __future__ import annotations

from llavakit._checks import checked
from llavakit.errors import ParameterError
from llavakit.evaluation.benchmark import Benchmark
from llavakit.evaluation.chats import LLaVABench, MMVet
from llavakit.evaluation.choices import MMBench, MMBenchCN, ScienceQA, SeedBench
from llavakit.evaluation.data import Data
from llavakit.evaluation.open_answers import GQA, DocVQA, TextVQA, VizWiz, VQAv2
from llavakit.evaluation.yes_no import MME, Pope

_KINDS: tuple[type[Benchmark], ...] = (
    VQAv2, GQA, TextVQA, VizWiz, Pope, MME, MMBench, MMBenchCN, MMVet, ScienceQA, SeedBench, DocVQA,
    LLaVABench,
)  # fmt: skip
BENCHMARKS: dict[str, type[Benchmark]] = {kind.name: kind for kind in _KINDS}
"""Benchmarks of questions that a model answers."""

VIDORE = "vidore"
"""The benchmark of retrieval, which is no matter of answers: see ``evaluate_retrieval``."""


@checked
def open_benchmark(name: str, data: Data) -> Benchmark:
    """Open a benchmark and read its files.

    Raises:
        ParameterError: there is no benchmark of this name.
        InputError: its files are missing or damaged.
    """
    if name == VIDORE:
        raise ParameterError(
            "vidore asks no questions of a model; use read_tasks and evaluate_retrieval."
        )
    if name not in BENCHMARKS:
        raise ParameterError(
            f"There is no benchmark {name!r}; there are {', '.join(sorted(BENCHMARKS))}."
        )
    return BENCHMARKS[name](data)
