"""ViDoRe's files: parquet, in either of its two layouts (https://huggingface.co/vidore).

Version 1 has a row for each pair: ``query``, ``image``, ``image_filename``, and more that is not
read here. Rows without a query only add a page. Versions 2 and 3, and version 1 in the format of
BEIR, have three folders: ``corpus`` (``corpus-id``, ``image``), ``queries`` (``query-id``,
``query``, often ``language``) and ``qrels`` (``query-id``, ``corpus-id``, ``score``); version 3
writes ``query_id`` and ``corpus_id``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavakit._checks import checked
from llavakit.errors import InputError, MissingDependencyError, SourceNotFoundError

_TABLES = ("corpus", "queries", "qrels")
_QUERY_ID = ("query-id", "query_id")
_PAGE_ID = ("corpus-id", "corpus_id")


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a task.

    Attributes:
        text: the query.
        relevance: grades of pages by their ids; empty where none was judged.
        language: as the files name it; empty where they do not.
    """

    text: str
    relevance: dict[str, int]
    language: str = ""


@dataclass(frozen=True, slots=True)
class CorpusPage:
    """A page, as it lies in the files.

    Attributes:
        id: its id; of version 1, the name of its image.
        image: the bytes of its image file; None where the files hold none.
    """

    id: str
    image: bytes | None


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """A data set of ViDoRe.

    Attributes:
        name: the name of its folder.
        queries: all of them.
        ids: ids of all rows of pages, in their order; an id may be there several times.
        files: where the pages are, with their bytes.
        id_column: the name of the column of the pages' ids.
    """

    name: str
    queries: tuple[Query, ...]
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    id_column: str = field(repr=False)

    def pages(self) -> Iterator[CorpusPage]:
        """Read the pages, a few of them at a time."""
        for path in self.files:
            for row in _rows(path, [self.id_column, "image"], batch=16):
                yield CorpusPage(str(row[self.id_column]), _image_bytes(path, row["image"]))


@checked
def read_tasks(folder: Path) -> list[RetrievalTask]:
    """Read queries and judgements of a data set, or of all that lie in a folder.

    Raises:
        InputError: files are missing or damaged, or do not fit together.
        SourceNotFoundError: there is no such folder.
        MissingDependencyError: pyarrow is not installed.
    """
    if not folder.is_dir():
        raise SourceNotFoundError(f"{folder} is not a folder; name the one of ViDoRe's data sets.")
    folder = folder.resolve()
    found = [folder] if _holds_task(folder) else sorted(filter(_holds_task, folder.iterdir()))
    if not found:
        raise InputError(
            f"{folder} holds no data set of ViDoRe: neither the folders {', '.join(_TABLES)} nor "
            "parquet files, nor folders with them; download one, such as "
            "vidore/docvqa_test_subsampled, with all its files."
        )
    return [_beir(one) if _is_beir(one) else _pairs(one) for one in found]


def _holds_task(folder: Path) -> bool:
    return folder.is_dir() and (_is_beir(folder) or bool(_pair_files(folder)))


def _is_beir(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in _TABLES)


def _pair_files(folder: Path) -> list[Path]:
    places = (folder, folder / "data", folder / "default", folder / "default" / "test")
    return next((files for place in places if (files := sorted(place.glob("*.parquet")))), [])


def _beir(folder: Path) -> RetrievalTask:
    relevance: dict[str, dict[str, int]] = {}
    for path in _split(folder, sorted((folder / "qrels").rglob("*.parquet"))):
        query_id, page_id = _column(path, *_QUERY_ID), _column(path, *_PAGE_ID)
        for row in _rows(path, [query_id, page_id, _column(path, "score")]):
            grades = relevance.setdefault(str(row[query_id]), {})
            grades[str(row[page_id])] = _grade(path, row["score"])
    queries: list[Query] = []
    known: set[tuple[str, str]] = set()
    for path in _split(folder, sorted((folder / "queries").rglob("*.parquet"))):
        query_id = _column(path, *_QUERY_ID)
        wanted = [query_id, _column(path, "query")]
        if "language" in _columns(path):
            wanted.append("language")
        for row in _rows(path, wanted):
            key = str(row[query_id]), str(row.get("language") or "")
            if key in known:
                raise InputError(f"{path}: the query {key[0]} is there twice.")
            known.add(key)
            text = _text(path, row["query"], f"the query {key[0]}")
            queries.append(Query(text, relevance.get(key[0], {}), key[1]))
    files = _split(folder, sorted((folder / "corpus").rglob("*.parquet")))
    return _task(folder, queries, files, _column(files[0], *_PAGE_ID))


def _pairs(folder: Path) -> RetrievalTask:
    """Version 1. As its own code does, equal queries are one, whose last row says which page."""
    files = _split(folder, _pair_files(folder))
    pages: dict[str, str] = {}
    for path in files:
        _column(path, "query")
        for row in _rows(path, ["query", _column(path, "image_filename")]):
            if row["query"] is not None:
                query = _text(path, row["query"], "a query")
                pages[query] = str(row["image_filename"])
    queries = [Query(text, {page: 1}) for text, page in pages.items()]
    return _task(folder, queries, files, "image_filename")


def _task(
    folder: Path, queries: Sequence[Query], files: Sequence[Path], id_column: str
) -> RetrievalTask:
    ids: list[str] = []
    for path in files:
        _column(path, "image")
        ids += [str(row[id_column]) for row in _rows(path, [_column(path, id_column)])]
    if not any(query.relevance for query in queries):
        raise InputError(f"{folder}: no query has a judged page; its files do not fit together.")
    if not ids:
        raise InputError(f"{folder}: there are no pages.")
    return RetrievalTask(folder.name, tuple(queries), tuple(ids), tuple(files), id_column)


def _split(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The files of the split ``test``, or of the only one: ``test-00000-of-00001.parquet`` (as
    data sets are uploaded) or ``test/0000.parquet`` (as the hub converts them).
    """
    splits: dict[str, list[Path]] = {}
    for path in files:
        name, _, part = path.stem.partition("-")
        split = name if part else path.parent.name if path.stem.isdigit() else path.stem
        splits.setdefault(split, []).append(path)
    if "test" in splits:
        return splits["test"]
    if len(splits) != 1:
        found = f"the splits {', '.join(splits)} and none named test" if splits else "none"
        raise InputError(
            f"{folder} must hold parquet files of one split, or of one named test; there are "
            f"{found}."
            if splits
            else f"{folder} lacks parquet files in one of its folders; "
            "download it again, with all its files."
        )
    return next(iter(splits.values()))


def _columns(path: Path) -> list[str]:
    opened = _open(path)
    with _reading(path):
        return list(opened.schema_arrow.names)


def _column(path: Path, *names: str) -> str:
    """The first of these names that is a column of a file."""
    there = _columns(path)
    for name in names:
        if name in there:
            return name
    raise InputError(
        f"{path} has no column {' or '.join(names)}, only {', '.join(there)}; take the files of "
        "a data set of ViDoRe."
    )


def _rows(path: Path, columns: Sequence[str], batch: int = 4096) -> Iterator[dict[str, Any]]:
    opened = _open(path)
    with _reading(path):
        for table in opened.iter_batches(batch_size=batch, columns=list(columns)):
            yield from table.to_pylist()


def _open(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependencyError(
            'Reading ViDoRe\'s parquet files needs pyarrow; run: pip install "llavakit[eval]"'
        ) from error
    with _reading(path):
        return ParquetFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever pyarrow raises for a damaged file into an error of ours."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException, ValueError) as error:  # bytes that are not text, too
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} cannot be read as parquet ({reason}); download it again."
        ) from error


def _text(path: Path, value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{path}: {what} is not text.")
    return value


def _grade(path: Path, value: Any) -> int:
    """A judged grade; some files hold whole numbers as floats."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
        return int(value)
    raise InputError(f"{path}: the score {value!r} is not a whole number.")


def _image_bytes(path: Path, value: Any) -> bytes | None:
    """Bytes of an image column of datasets, which holds ``bytes`` and the file's former path."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None or isinstance(value, bytes):
        return value
    raise InputError(f"{path}: the column image holds {type(value).__name__} and no images.")
