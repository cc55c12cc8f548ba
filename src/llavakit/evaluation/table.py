"""Results as a table of plain text."""

from __future__ import annotations

from llavakit._checks import checked
from llavakit.evaluation.run import Results
from llavakit.evaluation.scores import Score


@checked
def to_table(results: Results) -> str:
    """Format the table that a run ends with: scores, 95% intervals, and notes."""
    lines = [f"{results.title}, {results.model}", ""]
    rows = [_row(score) for score in results.scores]
    if rows:
        rows.insert(0, ("", "score", "95% interval", "questions", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            name, *figures, method = row
            columns = "  ".join(
                text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)
            )
            lines.append(f"{name.ljust(widths[0])}  {columns}  {method}".rstrip())
        lines.append("")
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


def _row(score: Score) -> tuple[str, str, str, str, str]:
    sign = "%" if score.unit == "%" else ""
    value = "-" if score.value is None else f"{score.value:.2f}{sign}"
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"{score.low:.2f} to {score.high:.2f}"
    return score.name, value, interval, str(score.questions), score.interval or ""
