"""The benchmark of retrieval: its questions have one right page, its figures are as by hand."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.retrieval import (
    Outcome,
    by_full_text,
    by_pixels,
    draw,
    figures_of,
    fused,
)
from benchmarks.retrieval_table import tables
from benchmarks.retrieval_world import KINDS, Asked, make_pages, make_questions, right_pages
from llavakit.embeddings import Embedding
from llavakit.retrieval.fusion import K

ROOT = Path(__file__).parents[2]


def test_every_question_has_one_right_page_and_all_kinds_are_asked():
    pages = make_pages(400)
    asked = make_questions(pages, 200)
    assert len({page.text() for page in pages}) == 400
    assert len({one.page for one in asked}) == len({one.text for one in asked}) == 200
    counts = {kind: sum(one.kind == kind for one in asked) for kind in KINDS}
    assert max(counts.values()) - min(counts.values()) <= 1
    for one in asked:
        assert right_pages(pages, one.kind, one.page) == [one.page]
        fields, _ = KINDS[one.kind]
        for field in fields:
            assert str(getattr(pages[one.page], field)).lower() in one.text.lower()


def test_pages_and_questions_are_the_same_each_time_and_other_with_another_seed():
    pages = make_pages(60)
    assert pages == make_pages(60) and make_pages(30) == pages[:30]
    assert make_questions(pages, 20) == make_questions(pages, 20)
    assert make_pages(60, "other") != pages
    with pytest.raises(ValueError, match=r"60 pages have \d+ such questions, not 61"):
        make_questions(pages, 61)


def asked(*pages):
    kinds = list(KINDS)
    return [Asked(kinds[at % 2], f"page {page}", page) for at, page in enumerate(pages)]


def test_figures_are_those_worked_out_by_hand():
    # Ranks 1, 3, 6 and none, of the kinds "number", "total", "number", "total".
    outcome = Outcome([[4, 1], [9, 8, 7], [1, 2, 3, 5, 6, 0], [1]], 2.0, 100.4, 1.234)
    found = figures_of(outcome, asked(4, 7, 0, 3))
    assert found["nDCG@5"][0] == round((1 + 1 / math.log2(4)) / 4, 4)
    assert found["recall@1"][0] == 0.25
    assert found["nDCG@5 by kind"] == {"number": 0.5, "total": 0.25}
    value, low, high = found["nDCG@5"]
    assert low < value < high
    assert (found["pages per second"], found["bytes per page"], found["query ms"]) == (2, 100, 1.23)


def test_ranks_are_fused_by_their_reciprocals():
    one = Outcome([[1, 2, 3]], bytes_per_page=10, query_ms=1)
    other = Outcome([[3, 4]], bytes_per_page=5, query_ms=2)
    both = fused(one, other)
    # 3: 1/63 + 1/61; 1: 1/61; 2 and 4: 1/62 each, 2 in the first list.
    assert both.rankings == [[3, 1, 2, 4]] and K == 60
    assert (both.bytes_per_page, both.query_ms, both.pages_per_second) == (15, 3, None)


class Numbers:
    """Embeds a page by the number of its file, each number three times, and two that all have."""

    fingerprint, dimensions = "numbers", 12

    def embed(self, *, images=None, texts=None):
        numbers = [int(Path(one).stem) for one in images or ()]
        numbers += [int(one.split()[-1]) for one in texts or ()]
        again = 1 if texts is not None else 3
        common = [] if texts is not None else [10, 11]
        return [
            Embedding(np.eye(12, dtype=np.float32)[[*([number] * again), *common]])
            for number in numbers
        ]


def test_pixels_are_ranked_and_pooled(tmp_path):
    images = draw(make_pages(8), tmp_path / "images")
    assert [path.name for path in images] == [f"{number:06}.png" for number in range(8)]
    found = by_pixels(Numbers(), images, asked(5, 0, 7))
    assert [ranking[0] for ranking in found[1].rankings] == [5, 0, 7]
    assert [one.vectors for one in found.values()] == [5, 3, 2, 1]
    assert found[1].bytes_per_page == 2 * 5 * 12
    assert [ranking[0] for ranking in found[2].rankings] == [5, 0, 7]


def test_full_text_finds_a_number(tmp_path):
    pages = make_pages(30)
    texts = [page.text() for page in pages]
    questions = make_questions(pages, 12)
    found = by_full_text(texts, questions, tmp_path / "index")
    figures = figures_of(found, questions)
    assert figures["recall@1"][0] > 0.9 and figures["bytes per page"] > 0


def test_tables_have_every_way_kind_and_factor():
    way = figures_of(Outcome([[4], [7]], 1234.5, 99, 0.5, 64), asked(4, 7))
    worse = figures_of(Outcome([[4], [1]], vectors=32), asked(4, 7))
    text = tables(
        {
            "machine": "a machine",
            "pages": 10,
            "questions": 2,
            "ways": {"pixels": way, "full text": worse},
            "pooling": {"1": way, "2": worse},
        }
    )
    lines = text.splitlines()
    assert (
        "| pixels | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) | 1,234 | 99 | 0.5 |" in lines
    )
    assert "| nDCG@5, a question names | number | total |" in lines
    assert "| full text | 1.000 | 0.000 |" in lines
    assert lines[-1].startswith("| 2 | 32 |") and lines[-1].endswith("| -0.500 |")


@pytest.mark.slow  # loads the sentence embeddings
def test_a_small_run_by_text_alone(tmp_path):
    out = tmp_path / "figures"
    options = f"--pages 40 --questions 12 --without-pixels --out {out}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.retrieval", *options.split()],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.with_suffix(".json").read_text())
    assert list(figures["ways"]) == [
        "MiniLM, printed text",
        "full text, printed text",
        "hybrid of MiniLM and full text, printed text",
    ]
    assert out.with_suffix(".md").read_text() in done.stdout + "\n"
