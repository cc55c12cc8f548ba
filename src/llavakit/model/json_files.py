"""Settings of checkpoints: JSON files that hold one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: it cannot be read, or is no object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no settings but a {type(found).__name__}.")
    return found
