"""A file of JSON Lines that survives being killed at any byte.

One process writes it at a time, which a lock sees to where the system has one. Every line is
handed to the system whole, and the disk is waited for after a few of them.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from llavakit.errors import ParameterError, SourceFetchError

_GROUP = 8  # lines that a power failure may cost
# Ends of a line for Unicode, though not for JSON: readers that split by them are common.
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


class Lines:
    """The file, open and locked.

    Args:
        path: where; made if it is not there.
        keys: what every line has; a line without them is none of this file's.
        restart: empty it first.

    Raises:
        SourceFetchError: it cannot be opened or written.
        ParameterError: another run is writing it.
    """

    def __init__(self, path: Path, keys: Iterable[str], *, restart: bool = False) -> None:
        self.path = path
        self._keys = frozenset(keys)
        self._unsynced = 0
        try:
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise ParameterError(
                    f"{path} is a device or a pipe, and lines are read again; name a file."
                )
            self._lock()
            if restart:
                self._file.truncate(0)
        except BaseException:
            self._file.close()
            raise

    @property
    def empty(self) -> bool:
        """Whether there is nothing in the file."""
        return os.fstat(self._file.fileno()).st_size == 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines that are there, once what is torn behind the last good one is cut off.

        Whoever calls it knows that the file is its own. Nothing may be appended before all
        lines are read.
        """
        self._cut_torn_end()
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def append(self, value: dict[str, Any]) -> None:
        """Adds a line.

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
            self._lock()
            fresh.replace(self.path)
            old.close()
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits for the disk, and lets go of the file."""
        try:
            self._sync()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._file.close()

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
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ParameterError(
                f"Another run is writing {self.path}; wait for it, or name another file."
            ) from error
        except OSError:  # a file system without locks
            return

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
    """A value as one line; equal values are equal bytes."""
    try:
        return (json.dumps(value, ensure_ascii=False).translate(_ESCAPED) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is no Unicode
        return (json.dumps(value) + "\n").encode()
