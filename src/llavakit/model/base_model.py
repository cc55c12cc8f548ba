"""Whether the base model that is given for an adapter is the one that it was trained on."""

from __future__ import annotations

import logging
import os
from pathlib import Path, PurePath
from typing import Literal

from llavakit.errors import CheckpointError
from llavakit.model import catalog
from llavakit.model.locate import looks_like_hub_id

log = logging.getLogger(__name__)

FORCE = "LLAVAKIT_ANY_BASE"
"""Set to 1 in the environment, it lets an adapter be put over any base that has its layers."""


def check_base(path: Path, named: object, given: Path) -> None:
    """Refuse a base that is known to be another one than an adapter's.

    Sums with another model's weights have the right shapes and mean nothing. Directories may have
    been renamed and copied, so that only what is certain is refused; a doubt is logged.

    Args:
        path: the adapter's directory.
        named: what its ``adapter_config.json`` calls the base; anything but a text says nothing.
        given: directory of the base that is to be taken.

    Raises:
        CheckpointError: it is another one, and :data:`FORCE` is not set.
    """
    if not isinstance(named, str) or not named:
        return
    trained_on, taken = _known(named), _known(str(given))
    if trained_on == taken or PurePath(named).name == given.name:
        return
    certain = trained_on is not None and taken is not None and trained_on[0] == taken[0]
    if certain and trained_on is not None and trained_on[0] == "directory":
        found = _compared(Path(named), given)
        if found == "same":
            return  # a copy
        certain = found == "other"  # else one may be the other in another type, or packed
    finding = f"The LoRA in {path} was trained on {named}, and its base is to be {given}"
    if not certain:
        log.warning("%s; answers are poor if that is another model", finding)
    elif os.environ.get(FORCE) != "1":
        raise CheckpointError(
            f"{finding}, which is another model; name the right one with model_base=, or set "
            f"{FORCE}=1 in the environment to take this one."
        )


def _known(name: str) -> tuple[str, str] | None:
    """What a name stands for: a model of the catalog, a hub id, or a directory that is here."""
    if Path(name).is_dir():
        cached = next((one for one in PurePath(name).parts if one.startswith("models--")), None)
        if cached is None:
            return "directory", os.path.realpath(name)
        name = cached.removeprefix("models--").replace("--", "/", 1)
    if (entry := catalog.resolve(name)) is not None:
        return "hub", (entry.hf_id or entry.name).lower()
    return ("hub", name.lower()) if looks_like_hub_id(name) else None


def _compared(one: Path, other: Path) -> Literal["same", "other", "unlike"]:
    """Whether two directories hold the same weights, others in the same files, or other files."""
    mine, theirs = (
        {file.name: file for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern)}
        for path in (one, other)
    )
    pairs = [(mine[name], theirs[name]) for name in mine.keys() & theirs.keys()]
    alike = all(a.stat().st_size == b.stat().st_size for a, b in pairs)
    if not pairs or mine.keys() != theirs.keys() or not alike:
        return "unlike"
    return "same" if all(_same(a, b) for a, b in pairs) else "other"


def _same(one: Path, other: Path) -> bool:
    """Whether two files of one size are equal in five places."""
    size = one.stat().st_size
    step = 1 << 20
    with one.open("rb") as first, other.open("rb") as second:
        for at in {0, size // 4, size // 2, 3 * size // 4, max(0, size - step)}:
            first.seek(at)
            second.seek(at)
            if first.read(step) != second.read(step):
                return False
    return True
