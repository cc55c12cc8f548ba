"""Results as a table of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from llavakit._checks import checked
from llavakit.evaluation.run import Results
from llavakit.evaluation.scores import Score
from llavakit.evaluation.vidore import RetrievalResults


@checked
def to_table(results: Results) -> str:
    """Format the table that a run ends with: scores, 95% intervals, and notes."""
    lines = [f"{results.title}, {results.model}", "", *_score_lines(results.scores)]
    asked = f"{results.questions} questions asked"
    if results.questions < results.of:
        asked = f"The first {results.questions} of {results.of} questions asked"
    lines.append(f"{asked}, {results.errors} without an answer, {results.cut} answers cut.")
    if results.errors:
        lines.append("A question without an answer counts as answered wrongly.")
    if results.elsewhere:
        files = ", ".join(results.files) or "answers.jsonl"
        lines.append(f"For {results.elsewhere}: {files}.")
    return "\n".join(lines) + "\n"


@checked
def to_retrieval_table(results: RetrievalResults) -> str:
    """Format the table that a run of ViDoRe ends with."""
    title = f"{results.title}, {results.model}"
    if results.pool > 1:
        title += f", vectors pooled by {results.pool}"
    lines = [title, "", *_score_lines(results.scores)]
    for task in results.tasks:
        lines.append(
            f"{task.task}: {task.queries} queries against {task.pages} pages of "
            f"{task.vectors:g} vectors."
        )
        notes = {
            "pages could not be embedded, and no query finds them": task.page_errors,
            "queries could not be embedded, and find nothing": task.query_errors,
            "judged pages are not among the pages, and count as not found": task.absent,
            "queries have no judged page, and are left out": task.unjudged,
        }
        lines += [f"  {count} {note}." for note, count in notes.items() if count]
    return "\n".join(lines) + "\n"


def _score_lines(scores: Sequence[Score]) -> list[str]:
    """The scores in columns under a header, and an empty line; nothing where there are none."""
    rows = [_row(score) for score in scores]
    if not rows:
        return []
    rows.insert(0, ("", "score", "95% interval", "questions", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, *figures, method in rows:
        columns = "  ".join(
            text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)
        )
        lines.append(f"{name.ljust(widths[0])}  {columns}  {method}".rstrip())
    return [*lines, ""]


def _row(score: Score) -> tuple[str, str, str, str, str]:
    sign = "%" if score.unit == "%" else ""
    value = "-" if score.value is None else f"{score.value:.2f}{sign}"
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"{score.low:.2f} to {score.high:.2f}"
    return score.name, value, interval, str(score.questions), score.interval or ""
