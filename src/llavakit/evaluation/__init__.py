"""The benchmarks of LLaVA's papers, with the original's prompts and rules.

>>> from llavakit.evaluation import Data, evaluate, open_benchmark
>>> pope = open_benchmark("pope", Data(Path("playground/data/eval/pope")))  # doctest: +SKIP
>>> evaluate(pope, llavakit.load("demo"), Path("pope-demo"), model="demo")  # doctest: +SKIP
"""

from __future__ import annotations

from llavakit.evaluation.benchmark import Benchmark, BenchmarkAnswer
from llavakit.evaluation.data import Data, Question
from llavakit.evaluation.metrics import Counts, anls, vqa_accuracy
from llavakit.evaluation.registry import BENCHMARKS, open_benchmark
from llavakit.evaluation.run import Results, RunProgress, evaluate
from llavakit.evaluation.scores import Score
from llavakit.evaluation.table import to_table

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkAnswer",
    "Counts",
    "Data",
    "Question",
    "Results",
    "RunProgress",
    "Score",
    "anls",
    "evaluate",
    "open_benchmark",
    "to_table",
    "vqa_accuracy",
]
