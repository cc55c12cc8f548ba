"""Shards of documents, and the Parquet files that come of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.documents import Document, Failure
from llavakit.documents.job import difference
from llavakit.errors import ParameterError, SourceFetchError
from llavakit.runs.atomic import write_atomic
from llavakit.runs.claim import claim
from llavakit.runs.lines import Lines

if TYPE_CHECKING:
    import pyarrow as pa

SHARD = 64
"""Documents of one shard: enough to fill an engine, and what a kill costs each actor at most."""
_RUN = "_run.jsonl"  # readers of folders of Parquet pass over such names


@dataclass(frozen=True, slots=True)
class Shard:
    """Documents that are read together.

    Attributes:
        number: from 0, in the order of the documents.
        documents: consecutive ones.
    """

    number: int
    documents: tuple[Document | Failure, ...]

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"part-{self.number:06d}.parquet"


def shards_of(documents: Sequence[Document | Failure], size: int = SHARD) -> list[Shard]:
    """The shards of documents; the same ones for the same documents.

    Raises:
        ParameterError: a size below 1.
    """
    if size < 1:
        raise ParameterError(f"A shard of {size!r} documents makes no sense; use at least 1.")
    starts = range(0, len(documents), size)
    return [
        Shard(number, tuple(documents[start : start + size])) for number, start in enumerate(starts)
    ]


class ShardFolder:
    """The folder of a run.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def opened(self, restart: bool) -> Lines:
        """The file that is locked while a run writes here; with ``restart``, nothing else is left.

        Raises:
            ParameterError: another run is writing, or the folder is a file.
            SourceFetchError: it cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ParameterError(f"{self.folder} is a file; Parquet goes into a folder.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SourceFetchError(
                f"{self.folder} cannot be made ({error.strerror}); name another folder."
            ) from error
        lines = Lines(self.folder / _RUN, ("shards",), restart=restart)
        for left in self.folder.glob(".part-*.tmp"):  # by actors that were killed
            left.unlink(missing_ok=True)
        if restart:
            for part in self._present():
                part.unlink()
        return lines

    def claim(self, lines: Lines, fingerprint: Mapping[str, Any], shards: int) -> None:
        """Writes down the job, or makes sure that the parts that are there are of this one.

        Raises:
            ParameterError: they are not, or may not be.
        """
        if lines.empty and self._present():
            raise ParameterError(
                f"{self.folder} holds parts of a run that nothing is known of; name another "
                "folder, or begin anew with restart (--restart)."
            )
        new = lines.empty
        claim(lines, fingerprint, difference)
        if new:
            lines.append({"shards": shards})

    def rows(self, shard: Shard) -> int | None:
        """The rows of a shard; None if its file is not there, or is not whole."""
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(self.folder / shard.file).num_rows)
        except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
            return None

    def write(self, shard: Shard, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes a shard's file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(to_table(lines), sink)
        write_atomic(self.folder / shard.file, sink.getvalue().to_pybytes())

    def _present(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))


def to_table(lines: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Lines of :func:`llavakit.documents.to_line` as a table with columns of those names.

    ``data`` is JSON text, since every schema would be another type; ``text_layer`` is null where
    it was not asked for.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    tokens = ("prompt_tokens", "completion_tokens", "image_tokens")
    schema = pa.schema(
        [
            pa.field("source", text, nullable=False),
            ("page", number),
            ("size", pa.list_(number)),
            ("sha256", text),
            ("task", text),
            ("model", text),
            ("text", text),
            ("data", text),
            ("finish_reason", text),
            ("usage", pa.struct([(name, number) for name in tokens])),
            ("error", pa.struct([("type", text), ("message", text)])),
            ("text_layer", text),
        ]
    )
    return pa.Table.from_pylist([_row(line) for line in lines], schema=schema)


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    data = line["data"]
    row = {**line, "data": None if data is None else json.dumps(data, ensure_ascii=False)}
    return {name: _sayable(value) for name, value in row.items()}


def _sayable(value: Any) -> Any:
    """Text that Parquet takes: of file names that are no Unicode, their bytes are spelled out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {name: _sayable(one) for name, one in value.items()}
    return value
