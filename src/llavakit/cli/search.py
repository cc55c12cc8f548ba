"""``llavakit search``: the pages of an index that answer a question, and the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.retriever import Adapter, open_embedder
from llavakit.cli.terminal import FAILED, Remarks, Waiting, note, told_errors, usage_error
from llavakit.errors import ParameterError

if TYPE_CHECKING:
    from llavakit.retrieval import Hit
    from llavakit.retrieval.answers import FoundAnswer
    from llavakit.retrieval.index import SearchMode


@takes_model("base_url")
def search(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Made by llavakit index.")],
    question: Annotated[str, typer.Argument(help="In plain words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Most pages.")] = 4,
    mode: Annotated[
        str, typer.Option("--mode", help="pixels, text (full text) or hybrid (both).")
    ] = "pixels",
    answer: Annotated[
        bool, typer.Option("--answer", help="Answer from the pages that were found.")
    ] = False,
    answer_model: Annotated[
        str | None,
        typer.Option(
            "--answer-model",
            help="What answers.",
            show_default="--model",
            rich_help_panel="Model",
        ),
    ] = None,
    max_tokens: options.MaxTokens = 512,
    heatmap: Annotated[
        Path | None,
        typer.Option(
            "--heatmap", help="An image file for the first page, with where the model looked."
        ),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of lines.")
    ] = False,
    adapter: Adapter = None,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    debug: options.Debug = False,
) -> None:
    """Search an index of pages, and answer from them.

    llavakit search index/ "What did the pump cost?" --answer

    Pages are printed with their scores, the best first; with --answer the answer comes first, and
    then the pages that it was given from.
    """
    if answer_model is not None and not answer:
        raise usage_error("--answer-model is for --answer; add it.")
    with told_errors(debug):
        import llavakit
        from llavakit.retrieval import PageIndex
        from llavakit.retrieval.answers import answer_from

        _check_image(heatmap)
        waiting = Waiting(f"Waiting for {chosen.model}")

        def password(name: str) -> str | None:
            waiting.over()
            return Remarks(watched=False).password(name)

        found: FoundAnswer | None = None
        try:
            with PageIndex(
                folder, open_embedder(chosen, adapter), must_exist=True, password=password
            ) as index:
                hits = index.search(question, k, cast("SearchMode", mode))
                if answer and hits:
                    other = answer_model is not None and answer_model != chosen.model
                    backend = llavakit.load(answer_model) if other else chosen.load()  # type: ignore[arg-type]
                    found = answer_from(backend, hits, question, max_tokens=max_tokens)
                if heatmap is not None and hits:
                    _save(hits[0], heatmap)
        finally:
            waiting.over()
        print(_as_json(question, mode, hits, found) if json_output else _as_lines(hits, found))
        if not hits:
            note("llavakit: no page was found.")
            raise typer.Exit(FAILED)


def _as_lines(hits: list[Hit], found: FoundAnswer | None) -> str:
    lines = [] if found is None else [found.text, ""]
    shown = hits if found is None else [hit for hit in hits if hit.reference in found.references]
    for rank, hit in enumerate(shown, 1):
        lines.append(f"{rank}. {_place(hit)}  {hit.score:.4g}")
    return "\n".join(lines)


def _place(hit: Hit) -> str:
    return f"{hit.reference.source}, page {hit.reference.number}"


def _as_json(question: str, mode: str, hits: list[Hit], found: FoundAnswer | None) -> str:
    whole: dict[str, Any] = {
        "question": question,
        "mode": mode,
        "pages": [
            {
                "source": hit.reference.source,
                "page": hit.reference.number,
                "sha256": hit.reference.sha256,
                "score": hit.score,
                "ranks": hit.ranks,
            }
            for hit in hits
        ],
    }
    if found is not None:
        whole["answer"] = {
            "text": found.text,
            "finish_reason": found.finish_reason,
            "citations": [
                {
                    "source": one.reference.source,
                    "page": one.reference.number,
                    "boxes": [list(box) for box in one.boxes],
                }
                for one in found.citations
            ],
        }
    return json.dumps(whole, ensure_ascii=False)


def _check_image(path: Path | None) -> None:
    from PIL import Image

    if path is not None and path.suffix.lower() not in Image.registered_extensions():
        raise ParameterError(f"--heatmap {path} is not the name of an image; write out.png.")


def _save(hit: Hit, path: Path) -> None:
    drawn = hit.heatmap()
    try:
        drawn.save(path)
    except OSError as error:
        reason = error.strerror or error
        raise ParameterError(f"--heatmap {path} cannot be written ({reason}).") from error
    note(f"{path} shows where the model looked on {_place(hit)}.")
