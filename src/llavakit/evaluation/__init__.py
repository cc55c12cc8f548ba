"""The benchmarks of LLaVA's papers, with the original's prompts and rules; ViDoRe for retrieval.

>>> from llavakit.evaluation import Data, evaluate, open_benchmark
>>> pope = open_benchmark("pope", Data(Path("playground/data/eval/pope")))  # doctest: +SKIP
>>> evaluate(pope, llavakit.load("demo"), Path("pope-demo"), model="demo")  # doctest: +SKIP
"""

from __future__ import annotations

from llavakit.evaluation.benchmark import Benchmark, BenchmarkAnswer
from llavakit.evaluation.data import Data, Question
from llavakit.evaluation.metrics import Counts, anls, vqa_accuracy
from llavakit.evaluation.ranking import ndcg, ranking, recall
from llavakit.evaluation.registry import BENCHMARKS, VIDORE, open_benchmark
from llavakit.evaluation.run import Results, RunProgress, evaluate
from llavakit.evaluation.scores import Score
from llavakit.evaluation.table import to_retrieval_table, to_table
from llavakit.evaluation.vidore import RetrievalResults, evaluate_retrieval
from llavakit.evaluation.vidore_data import RetrievalTask, read_tasks

__all__ = [
    "BENCHMARKS",
    "VIDORE",
    "Benchmark",
    "BenchmarkAnswer",
    "Counts",
    "Data",
    "Question",
    "Results",
    "RetrievalResults",
    "RetrievalTask",
    "RunProgress",
    "Score",
    "anls",
    "evaluate",
    "evaluate_retrieval",
    "ndcg",
    "open_benchmark",
    "ranking",
    "read_tasks",
    "recall",
    "to_retrieval_table",
    "to_table",
    "vqa_accuracy",
]
