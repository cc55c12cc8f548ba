"""``llavakit read``: pages of many documents, read into JSON Lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from llavakit.cli import options
from llavakit.cli.cluster import read_on_ray
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.terminal import FAILED, Remarks, counted, note, sentence, told_errors, usage_error
from llavakit.errors import ParameterError

if TYPE_CHECKING:
    from llavakit.backend import Backend
    from llavakit.cluster.batch import Done
    from llavakit.documents import Job, Reading, Tally
    from llavakit.documents.tasks import TaskName

_PAGES = "Pages"
_CLUSTER = "Cluster"


@takes_model()
def read(
    files: Annotated[
        list[str],
        typer.Argument(
            help="PDFs, TIFFs, images, URLs and folders; scan.pdf#pages=1-3,7 for some pages."
        ),
    ],
    task: Annotated[
        str, typer.Option("--task", "-t", help="transcribe, describe or extract.")
    ] = "transcribe",
    schema: Annotated[
        Path | None, typer.Option("--schema", help="A JSON schema in a file, for extract.")
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="Other words for the task.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file of JSON Lines; a killed run goes on there."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever is in --out.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Take lines out of --out whose documents are gone."),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try what could not be read once more (with --out)."),
    ] = False,
    pages: Annotated[
        str | None,
        typer.Option("--pages", help="Pages of each file: 1-3,7 or 5-.", rich_help_panel=_PAGES),
    ] = None,
    dpi: Annotated[
        float, typer.Option("--dpi", help="Resolution of PDFs.", rich_help_panel=_PAGES)
    ] = 144,
    max_pixels: Annotated[
        int,
        typer.Option("--max-pixels", help="Larger pages are shrunk.", rich_help_panel=_PAGES),
    ] = 16_000_000,
    tiles: Annotated[
        str | None,
        typer.Option(
            "--tiles",
            help="Cut pages for small print: columns x rows as 2x3, or auto.",
            rich_help_panel=_PAGES,
        ),
    ] = None,
    text_layer: Annotated[
        bool,
        typer.Option("--text-layer", help="Add the PDF's own text.", rich_help_panel=_PAGES),
    ] = False,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Add how sure the model was, of data for each field."),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Keep the images of the pages in this folder, by digest (with --out).",
            rich_help_panel=_PAGES,
        ),
    ] = None,
    page_seconds: Annotated[
        float,
        typer.Option(
            "--page-seconds", help="Longest drawing of a PDF's page.", rich_help_panel=_PAGES
        ),
    ] = 30.0,
    renderers: Annotated[int | None, options.renderers(_PAGES)] = None,
    window: options.Window = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Read with several models on Ray; --out is a folder of Parquet.",
            rich_help_panel=_CLUSTER,
        ),
    ] = False,
    actors: Annotated[
        int | None,
        typer.Option(
            "--actors", min=1, help="So many models, with --ray.", rich_help_panel=_CLUSTER
        ),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(
            "--shard",
            min=1,
            help="Documents of each file of Parquet, with --ray; 64 by default.",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="A Ray cluster that runs; without it, this machine is one.",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    max_tokens: options.MaxTokens = 1024,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    debug: options.Debug = False,
) -> None:
    """Read the pages of documents: their text, what they show, or data of a schema.

    llavakit read scans/ invoice.pdf --out pages.jsonl

    One JSON object a page, in order; a page or file that cannot be read has an error in its
    line, and the rest goes on. A run that was killed goes on when it is started again, and so
    does one whose folders have new or changed files. Passwords are asked for on a terminal.
    Fails (1) only if nothing at all could be read.

    llavakit read scans/ --ray --actors 4 --out pages/
    """
    if "-" in files:
        raise usage_error("Documents are not read from stdin; name files.")
    for name, given in (
        ("--store", store is not None),
        ("--restart", restart),
        ("--prune", prune),
        ("--retry-failed", retry_failed),
    ):
        if given and out is None:
            raise usage_error(f"{name} goes with --out.")
    local = (("--prune", prune), ("--retry-failed", retry_failed), ("--confidence", confidence))
    for name, given in local:
        if given and ray:
            raise usage_error(f"{name} is not for runs on Ray; leave it out.")
    if out == Path("-"):
        raise usage_error("Without --out, lines are printed; leave it out.")
    if ray and out is None:
        raise usage_error("--ray writes Parquet into a folder; name it with --out.")
    for name, value in (("--actors", actors), ("--shard", shard), ("--ray-address", ray_address)):
        if value is not None and not ray:
            raise usage_error(f"{name} is for models on Ray; add --ray.")
    goes_on = "" if out is None else "the same command goes on."
    with told_errors(debug, after_interrupt=goes_on):
        from llavakit.documents import Job, PageStore, Task, Tiles, View, run_job

        job = Job(
            tuple(files),
            Task(
                cast("TaskName", task),
                prompt,
                None if schema is None else _schema(schema),
                max_tokens,
                None if tiles is None else Tiles.parse(tiles),
                confidence,
            ),
            chosen.model,
            pages,
            View(dpi, max_pixels, text_layer, page_seconds, renderers),
            chosen.given("model_base", "conv_mode", "load_4bit", "load_8bit", "base_url"),
        )
        load = chosen.keywords
        earlier = 0
        with ReadingOutput(watched=is_watched(out)) as output:
            if ray and out is not None:
                earlier = read_on_ray(
                    *(job, load, out, store, actors or 1, ray_address, shard),
                    restart=restart,
                    window=window,
                    progress=output.shard,
                ).earlier
            elif out is None:
                _print(job, chosen.load(), window, output)
            else:
                backend = chosen.load()
                kept = None if store is None else PageStore(store)
                tally = run_job(
                    job,
                    backend,
                    out,
                    restart=restart,
                    prune=prune,
                    retry_failed=retry_failed,
                    window=window,
                    store=kept,
                    password=output.password,
                    progress=output,
                )
                earlier = tally.earlier
                output.changes(tally)
        output.summary(earlier)
        if output.failures and not (output.pages or earlier):
            raise typer.Exit(FAILED)


class ReadingOutput(Remarks):
    """What stderr shows of a run: failures, a line that grows on a terminal, and the end."""

    def __init__(self, *, watched: bool) -> None:
        self.pages = 0
        self.failures = 0
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        super().__init__(*columns, watched=watched)
        if self._line is not None:
            self._task = self._line.add_task("Waiting for the first page")

    def __call__(self, reading: Reading) -> None:
        """Takes note of a result."""
        if reading.error is None:
            self.pages += 1
        else:
            self.failures += 1
            self._tell(f"llavakit: {sentence(reading.error)}")
        if self._line is not None:
            at = "" if reading.page is None else f", page {reading.page}"
            done = f"{_read(self.pages)}; {Path(reading.source).name}{at}"
            self._line.update(self._task, description=escape(done))

    def shard(self, done: Done) -> None:
        """Takes note of a shard of documents."""
        self.pages += done.pages
        self.failures += len(done.errors)
        for error in done.errors:
            self._tell(f"llavakit: {error}")
        if self._line is not None:
            self._line.update(self._task, description=_read(self.pages))

    def changes(self, tally: Tally) -> None:
        """What became of documents that had changed, or are gone, since an earlier run."""
        if tally.changed:
            note(f"Read again, because changed: {_names(tally.changed)}.")
        if tally.missing and tally.pruned:
            note(f"Taken out, because gone: {_names(tally.missing)}.")
        elif tally.missing:
            note(f"Gone, and still in the file (--prune takes them out): {_names(tally.missing)}.")

    def summary(self, earlier: int) -> None:
        """The end of the run, where there is something to say that the lines do not show."""
        if self.failures or earlier or self._line is not None:
            was = "was" if earlier == 1 else "were"
            before = f", {counted(earlier, 'line')} {was} there before" if earlier else ""
            failed = f", {self.failures} could not be read" if self.failures else ""
            note(f"{_read(self.pages)}{failed}{before}.")


def _names(sources: Sequence[str]) -> str:
    shown = ", ".join(Path(source).name for source in sources[:5])
    more = f" and {len(sources) - 5:,} more" if len(sources) > 5 else ""
    return f"{counted(len(sources), 'document')} ({shown}{more})"


def _read(pages: int) -> str:
    return f"{counted(pages, 'page')} read"


def is_watched(out: Path | None) -> bool:
    """Return whether stderr is a terminal that does not show the results as well."""
    return sys.stderr.isatty() and (out is not None or not sys.stdout.isatty())


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(f"The schema {path} cannot be read ({reason}).") from error
    if not isinstance(schema, dict):
        raise ParameterError(f"{path} holds no JSON schema: it must be an object.")
    return schema


def _print(job: Job, backend: Backend, window: int | None, output: ReadingOutput) -> None:
    from llavakit.documents import stream_job, to_line
    from llavakit.runs.lines import to_bytes

    for reading in stream_job(job, backend, window=window, password=output.password):
        sys.stdout.write(to_bytes(to_line(reading, job.model)).decode())
        sys.stdout.flush()
        output(reading)
