"""``llavakit eval``: the benchmarks of LLaVA's papers, asked and scored; and ViDoRe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.terminal import FAILED, Remarks, note, told_errors
from llavakit.errors import ParameterError
from llavakit.evaluation import (
    BENCHMARKS,
    VIDORE,
    Data,
    RunProgress,
    evaluate,
    evaluate_retrieval,
    open_benchmark,
    read_tasks,
    to_retrieval_table,
    to_table,
)

_DATA = "Data"
_RETRIEVAL = "Retrieval (vidore)"
_MOST_SHOWN = 5  # errors that stderr shows one by one


@takes_model()
def run_benchmark(
    benchmark: Annotated[str, typer.Argument(help=f"One of {', '.join((*BENCHMARKS, VIDORE))}.")],
    data: Annotated[
        Path,
        typer.Option("--data", help="The benchmark's folder, as docs/evaluation.md lays it out."),
    ],
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help="Another question file.", rich_help_panel=_DATA),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Another folder of images.", rich_help_panel=_DATA),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="Other annotations.", rich_help_panel=_DATA),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The folder of results, eval/BENCHMARK/MODEL by default; a killed run goes on.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Ask only the first so many questions.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever is in --out.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what had an error.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON instead of a table.")
    ] = False,
    window: options.Window = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "--max_new_tokens",
            "--max-tokens",
            min=1,
            help="The longest answer; the benchmark's own by default.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            help="A retrieval adapter of a LLaVA; the one that came with it by default.",
            rich_help_panel=_RETRIEVAL,
        ),
    ] = None,
    pool: Annotated[
        int,
        typer.Option(
            "--pool",
            min=1,
            help="Pool the vectors of a page by this factor.",
            rich_help_panel=_RETRIEVAL,
        ),
    ] = 1,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    debug: options.Debug = False,
) -> None:
    """Ask a benchmark's questions, and score the answers.

    llavakit eval pope --data playground/data/eval/pope --model liuhaotian/llava-v1.5-7b

    Answers are greedy. The table goes to stdout; answers, results and the files for benchmarks that
    are scored elsewhere lie in --out. A question that cannot be answered (a missing image) counts
    as answered wrongly, and the table says how many there are. Fails (1) only if nothing at all
    could be answered.

    vidore asks nothing: every query is compared with every page of each data set in --data, by a
    LLaVA with a retrieval adapter or by a published retriever.
    """
    with told_errors(debug, after_interrupt="the same command goes on."):
        if benchmark == VIDORE:
            _refuse(
                "for vidore",
                {
                    "--questions": questions,
                    "--images": images,
                    "--annotations": annotations,
                    "--limit": limit,
                    "--max-tokens": max_tokens,
                    "--window": window,
                    "--base-url": chosen.base_url,
                },
            )
            _compare(data, out, chosen, adapter, pool, restart, retry_errors, json_output)
            return
        _refuse("but for vidore", {"--adapter": adapter, "--pool": None if pool == 1 else pool})
        read = open_benchmark(benchmark, Data(data, questions, images, annotations))
        backend = chosen.load()
        folder = out or Path("eval") / benchmark / _as_name(chosen.model)
        with EvaluationOutput() as output:
            results = evaluate(
                read,
                backend,
                folder,
                model=chosen.model,
                limit=limit,
                max_tokens=max_tokens,
                restart=restart,
                retry_errors=retry_errors,
                window=window,
                settings={name: value for name, value in chosen.of_checkpoint.items() if value},
                progress=output,
            )
        _show(results, to_table, json_output)
        output.summary(folder)
        if results.errors == results.questions:
            raise typer.Exit(FAILED)


def _show(results: Any, table: Callable[[Any], str], json_output: bool) -> None:
    """Print results, as a table or as one line of JSON."""
    if json_output:
        print(json.dumps(results.to_dict(), ensure_ascii=False))
    else:
        print(table(results), end="")


def _refuse(where: str, options: dict[str, Any]) -> None:
    """Refuse options that were given and would be dropped."""
    for name, value in options.items():
        if value is not None:
            raise ParameterError(f"{name} has no effect {where}; leave it out.")


def _compare(
    data: Path,
    out: Path | None,
    chosen: ModelArguments,
    adapter: Path | None,
    pool: int,
    restart: bool,
    retry_errors: bool,
    json_output: bool,
) -> None:
    """Run ViDoRe."""
    from llavakit.retrieval.embedder import load_embedder

    tasks = read_tasks(data)
    embedder = load_embedder(chosen.model, adapter=adapter, **chosen.keywords)
    folder = out or Path("eval") / VIDORE / _as_name(chosen.model)
    with EvaluationOutput("Pages", "pages.jsonl") as output:
        results = evaluate_retrieval(
            tasks,
            embedder,
            folder,
            model=chosen.model,
            pool=pool,
            restart=restart,
            retry_errors=retry_errors,
            settings={name: value for name, value in chosen.of_checkpoint.items() if value},
            progress=output,
        )
    _show(results, to_retrieval_table, json_output)
    output.summary(folder)
    if all(task.page_errors == task.pages for task in results.tasks):
        raise typer.Exit(FAILED)


def _as_name(model: str) -> str:
    """A model's name as the name of a folder: the last part of a path or hub id."""
    last = model.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last).strip(".") or "model"


class EvaluationOutput(Remarks):
    """The output of a run on stderr: a bar on a terminal, the first errors, and the end.

    Args:
        what: what is counted, for people.
        file: where all errors are.
    """

    def __init__(self, what: str = "Questions", file: str = "answers.jsonl") -> None:
        self._what = what
        self._done = "answers" if what == "Questions" else what.lower()
        self._file = file
        self._errors = 0
        self._earlier: int | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, watched=sys.stderr.isatty())
        if self._line is not None:
            self._task = self._line.add_task(what, total=None)

    def __call__(self, progress: RunProgress) -> None:
        """Note how far the run is."""
        if self._earlier is None:
            self._earlier = progress.done
        if progress.error is not None:
            self._errors += 1
            if self._errors <= _MOST_SHOWN:
                self._tell(f"llavakit: {progress.error}")
            elif self._errors == _MOST_SHOWN + 1:
                self._tell(f"llavakit: further errors are in {self._file} only.")
        if self._line is not None:
            failed = f", {progress.errors} errors" if progress.errors else ""
            self._line.update(
                self._task,
                completed=progress.done,
                total=progress.total,
                description=f"{self._what}{failed}",
            )

    def summary(self, folder: Path) -> None:
        """Print where the results are, and how many answers were there before."""
        before = f"; {self._earlier} {self._done} were there before" if self._earlier else ""
        note(f"Results are in {folder}{before}.")
