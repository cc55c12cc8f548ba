"""Files that appear whole or not at all, however many processes write them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from llavakit.errors import SourceFetchError


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        SourceFetchError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(".tmp", ".", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise SourceFetchError(f"{path} cannot be written ({error.strerror}).") from error
