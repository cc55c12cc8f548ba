"""Benchmarks of free conversation, scored by a judge: MM-Vet and LLaVA-Bench."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from llavakit.evaluation.answers import review_scores
from llavakit.evaluation.benchmark import Benchmark, BenchmarkAnswer
from llavakit.evaluation.data import DataLine, read_lines
from llavakit.evaluation.scores import Score


class MMVet(Benchmark):
    """MM-Vet (Yu et al. 2023): answers for its own scorer, which asks GPT-4."""

    name = "mmvet"
    title = "MM-Vet"
    question_files = ("llava-mm-vet.jsonl",)
    images = "images"
    max_tokens = 1024
    elsewhere = "MM-Vet's own notebook or server, with GPT-4"

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        return []

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        texts = {f"v1_{one.question.id}": one.text for one in answers}
        return {"upload.json": json.dumps(texts, indent=2).encode()}


class LLaVABench(Benchmark):
    """LLaVA-Bench (in the Wild): answers for the original's review by GPT-4.

    Reviews that were made elsewhere, in the original's form (a ``category`` and the judge's
    ``content`` or ``tuple`` of two scores on each line), are summed up if they are named as the
    annotations: the scores of these answers in percent of those of the reference.
    """

    name = "llava-bench"
    title = "LLaVA-Bench (in the Wild)"
    question_files = ("questions.jsonl",)
    images = "images"
    max_tokens = 1024
    elsewhere = "a judge such as GPT-4, with the original's review script and answers.jsonl"

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        if self.data.annotations is None:
            return []
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for line in read_lines(self.data.annotation_file()):
            for name in ("all", line.text("category")):
                pairs[name].append(_reviewed(line))
        return [_relative(name, values) for name, values in pairs.items()]


def _reviewed(line: DataLine) -> tuple[float, float]:
    given = line.record.get("tuple")
    if isinstance(given, list) and len(given) == 2:
        return float(given[0]), float(given[1])
    found = review_scores(line.text("content"))
    if found is None:
        raise line.wrong("the review does not begin with two scores")
    return found


def _relative(name: str, pairs: Sequence[tuple[float, float]]) -> Score:
    reference = sum(first for first, _ in pairs)
    value = 100 * sum(second for _, second in pairs) / reference if reference else None
    return Score(f"relative score, {name}", value, None, None, None, len(pairs))
