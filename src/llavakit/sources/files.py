"""Reading one regular file, without being led astray.

The file is opened first and judged by its descriptor, so that it cannot be swapped between
the check and the read.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from llavakit.errors import (
    LlavaKitError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.sources.inline import check_length, shown
from llavakit.sources.policy import SourcePolicy

_BAD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EILSEQ)
_LONGEST = 4096  # Linux' PATH_MAX; resolving far longer ones costs seconds
_KERNEL = ("/proc", "/sys")  # regular by their mode, but made up by the kernel, even endless
# Non-blocking: opening a pipe without a writer would wait for ever. Flags that a platform
# lacks are left out.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


def read(path: str | Path, policy: SourcePolicy) -> bytes:
    """See :func:`llavakit.sources.read_file`."""
    if not policy.allow_files:
        raise SourceNotAllowedError(
            f"{shown(path)} is a local file, and SourcePolicy(allow_files=False) forbids them; "
            "pass its bytes."
        )
    length = len(os.fspath(path))
    if not 0 < length <= _LONGEST:
        raise SourceNotFoundError(f"A path of {length} characters names no file.")
    try:
        # Judged before it is opened as well: opening a device may already do something.
        check_place(path, os.path.realpath(path), policy)
        _check_kind(path, Path(path).stat())
        descriptor = os.open(path, _FLAGS)
        try:
            status = os.fstat(descriptor)
            _check_kind(path, status)
            check_place(path, _real_path(descriptor, status, path), policy)
            check_length(status.st_size, policy.max_bytes)
            return _read_all(descriptor, policy.max_bytes)
        finally:
            os.close(descriptor)
    except LlavaKitError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(f"There is no file {shown(path)}.") from error
    except PermissionError as error:
        raise SourceFetchError(
            f"{shown(path)} may not be read by this process; check its permissions."
        ) from error
    except OSError as error:
        if error.errno in _BAD_NAME:
            raise SourceNotFoundError(f"{shown(path)} is not a possible file name.") from error
        raise SourceFetchError(f"{shown(path)} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL inside
        raise SourceNotFoundError(f"{shown(path)} is not a possible file name.") from error


def check_place(path: str | Path, real: str, policy: SourcePolicy) -> None:
    """Refuses a path that really (links followed) lies where ``policy`` does not allow it."""
    if any(_below(real, kernel) for kernel in _KERNEL):
        raise SourceNotAllowedError(f"{shown(path)} is a file of the kernel, not an image.")
    if policy.roots is not None and not any(
        _below(real, os.path.realpath(root)) for root in policy.roots
    ):
        raise SourceNotAllowedError(
            f"{shown(path)} is not below a directory that SourcePolicy(roots=...) allows."
        )


def _below(real: str, root: str) -> bool:
    real, root = os.path.normcase(real), os.path.normcase(root)
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def _check_kind(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
    raise SourceNotAllowedError(f"{shown(path)} is {kind}, not a file; name an image file.")


def _real_path(descriptor: int, status: os.stat_result, path: str | Path) -> str:
    """Where the opened file really lies."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:  # no Linux: look again, and insist that it is still the opened file
        real = os.path.realpath(path)
        if not os.path.samestat(status, Path(real).stat()):
            raise SourceFetchError(f"{shown(path)} was replaced while it was read.") from None
        return real


def _read_all(descriptor: int, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := os.read(descriptor, 2**20):
        size += len(chunk)
        check_length(size, max_bytes)  # it may grow while it is read
        chunks.append(chunk)
    return b"".join(chunks)
