"""A file of JSON Lines that survives being killed at any byte.

One process writes it at a time, held by the lock file ``.NAME.lock`` beside it. Every line is
handed to the system whole, and the disk is waited for after a few of them.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from filelock import FileLock, Timeout

from llavakit.errors import ParameterError, SourceFetchError

log = logging.getLogger(__name__)

_GROUP = 8  # lines that a power failure may cost
# Ends of a line for Unicode, though not for JSON: readers that split by them are common.
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


class Lines:
    """The file, open and locked.

    Args:
        path: where; made if it is not there.
        keys: names that every line has; reading stops at a line without them.
        restart: empty it first.

    Raises:
        SourceFetchError: it cannot be opened or written.
        ParameterError: another run is writing it.
    """

    def __init__(self, path: Path, keys: Iterable[str], *, restart: bool = False) -> None:
        self.path = path
        self._keys = frozenset(keys)
        self._unsynced = 0
        self._held = FileLock(
            path.parent / f".{path.name}.lock", blocking=False, thread_local=False
        )
        try:
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise ParameterError(
                    f"{path} is a device or a pipe, and its lines must be read again; name a file."
                )
            self._lock()
            if restart:
                self._file.truncate(0)
        except BaseException:
            self._let_go()
            raise

    @property
    def empty(self) -> bool:
        """Whether there is nothing in the file."""
        return os.fstat(self._file.fileno()).st_size == 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Read the good lines; what is torn behind the last one is cut off.

        Call it only when the file is known to belong to this run. Nothing may be appended before
        all lines are read.
        """
        self._cut_torn_end()
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def append(self, value: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            SourceFetchError: the disk is full or broken.
        """
        line = to_bytes(value)
        try:
            while line:  # a signal or a full disk may cut a write short
                line = line[self._file.write(line) :]
            self._unsynced += 1
            if self._unsynced >= _GROUP:
                self._sync()
        except OSError as error:
            raise self._failed(error) from error

    def replace(self, lines: Iterable[bytes]) -> None:
        """Puts other lines in the place of those that are there, all at once or not at all.

        Args:
            lines: whole ones, each with its end; they may be read from the file meanwhile.

        Raises:
            SourceFetchError: the disk is full or broken.
        """
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            with fresh.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            renewed = fresh.open("a+b", buffering=0)
            old, self._file = self._file, renewed
            fresh.replace(self.path)
            old.close()
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise self._failed(error) from error

    def close(self) -> None:
        """Wait for the disk, and close the file."""
        try:
            self._sync()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def _lock(self) -> None:
        try:
            self._held.acquire()
        except Timeout as error:
            raise ParameterError(
                f"Another run is writing {self.path}; wait for it, or name another file."
            ) from error
        except NotImplementedError:  # what filelock raises on a file system without locks
            log.warning(
                "%s lies on a file system without locks; see that one run at a time writes it",
                self.path,
            )
        except OSError as error:
            raise self._failed(error) from error

    def _let_go(self) -> None:
        self._file.close()
        self._held.release()

    def _cut_torn_end(self) -> None:
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                if not self._is_whole(line):
                    break
                good += len(line)
        if good < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(good)
            os.fsync(self._file.fileno())

    def _is_whole(self, line: bytes) -> bool:
        if not line.endswith(b"\n"):
            return False
        try:
            value = json.loads(line)
        except ValueError:
            return False
        return isinstance(value, dict) and self._keys <= value.keys()

    def _failed(self, error: OSError) -> SourceFetchError:
        return SourceFetchError(
            f"{self.path} cannot be written ({error.strerror}); see to the disk or name another "
            "file."
        )


def to_bytes(value: dict[str, Any]) -> bytes:
    """Serialise a value as one line; equal values are equal bytes."""
    try:
        return (json.dumps(value, ensure_ascii=False).translate(_ESCAPED) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is not Unicode
        return (json.dumps(value) + "\n").encode()
