"""Files that appear complete or not at all, however many processes write them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from llavakit.errors import SourceFetchError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that appears complete or not at all, with the permissions of any new file.

    Raises:
        SourceFetchError: it cannot be written.
    """
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SourceFetchError(
            f"{path} cannot be written ({error.strerror}); see to the disk or name another place."
        ) from error
