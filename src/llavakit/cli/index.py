"""``llavakit index``: pages of documents into an index that finds them by what they show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.read import is_watched
from llavakit.cli.retriever import Adapter, open_embedder
from llavakit.cli.terminal import FAILED, Remarks, counted, note, told_errors

if TYPE_CHECKING:
    from llavakit.retrieval import IndexChanges, IndexProgress

_INDEX = "Index"


@takes_model("base_url")
def index(
    documents: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...",
            help="Folders, PDFs, TIFFs, images and URLs; scan.pdf#pages=1-3,7 for some pages.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder of the index; a killed run goes on.")
    ],
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Index documents anew of which a page is missing."),
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="lance or qdrant.", show_default="lance", rich_help_panel=_INDEX
        ),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(
            "--pool",
            min=1,
            help="How many alike vectors of a page become one.",
            show_default="3",
            rich_help_panel=_INDEX,
        ),
    ] = None,
    dpi: Annotated[
        float | None,
        typer.Option(
            "--dpi", help="Resolution of PDFs.", show_default="144", rich_help_panel=_INDEX
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, help="Pages that are embedded at once.", rich_help_panel=_INDEX
        ),
    ] = 8,
    renderers: Annotated[int | None, options.renderers(_INDEX)] = None,
    adapter: Adapter = None,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    debug: options.Debug = False,
) -> None:
    """Index pages of documents by what they show.

    llavakit index scans/ --out index/

    What is new or has changed is indexed, and what is gone leaves the index; the rest is not
    read again. A run that is killed goes on where it was. The index keeps no pixels: the documents
    stay where they are.
    """
    with told_errors(debug, after_interrupt="the same command goes on."):
        from llavakit.documents import View
        from llavakit.retrieval import PageIndex

        view = None if dpi is None else View(dpi)
        settings: dict[str, Any] = {"store": store, "pool": pool, "view": view}
        with (
            IndexOutput(watched=is_watched(out)) as output,
            PageIndex(
                out, open_embedder(chosen, adapter), password=output.password, **settings
            ) as pages,
        ):
            changes = pages.update(
                documents,
                retry_failed=retry_failed,
                batch=batch,
                renderers=renderers,
                progress=output,
            )
        output.summary(changes, out)
        if changes.failures and not changes.pages:
            raise typer.Exit(FAILED)


class IndexOutput(Remarks):
    """What stderr shows of an update: failures, a line that grows on a terminal, and the end."""

    def __init__(self, *, watched: bool) -> None:
        self._pages = 0
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        super().__init__(*columns, watched=watched)
        if self._line is not None:
            self._task = self._line.add_task("Waiting for the first pages")

    def __call__(self, progress: IndexProgress) -> None:
        """Take note of a page, or of a failure."""
        from llavakit.retrieval import IndexFailure

        item = progress.item
        if isinstance(item, IndexFailure):
            self._tell(f"llavakit: {' '.join(item.message.split())}")
        else:
            self._pages += 1
            if self._line is not None:
                done = (
                    f"{counted(self._pages, 'page')} indexed, {progress.documents:,} of "
                    f"{counted(progress.of, 'document')}; {Path(item.source).name}, "
                    f"page {item.number}"
                )
                self._line.update(self._task, description=escape(done))

    def summary(self, changes: IndexChanges, out: Path) -> None:
        """The end of the run."""
        parts = [f"{counted(changes.added, 'page')} indexed"]
        if changes.failures:
            parts.append(f"{len(changes.failures):,} could not be indexed")
        for number, words in (
            (len(changes.changed), "changed"),
            (len(changes.removed), "removed"),
            (changes.kept, "as before"),
        ):
            if number:
                parts.append(f"{counted(number, 'document')} {words}")
        note(f"{', '.join(parts)}; {out} holds {counted(changes.pages, 'page')}.")
        if changes.without_text:
            note(
                f"{counted(changes.without_text, 'page')} without a text layer: only --mode pixels "
                "and hybrid can find them."
            )
