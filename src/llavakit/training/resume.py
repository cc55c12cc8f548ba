"""The checkpoint that a run goes on from: which one it is, and whether it can be read."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from llavakit.errors import CheckpointError, LlavaKitError
from llavakit.model.json_files import read_json

TRAINED = "trained.safetensors"
"""In a checkpoint to go on from: the trained weights, under the names of the modules."""


def last_checkpoint(folder: Path, notify: Callable[[str], object]) -> str | None:
    """The last checkpoint that was written to its end; the trainer's state is written last.

    Args:
        folder: where a trainer's checkpoints are.
        notify: is called with a remark about each one that is passed over.

    Raises:
        CheckpointError: a file of it is damaged; the message names the one before it.
    """
    for path in _checkpoints(folder):
        try:
            read_json(path / "trainer_state.json")
        except CheckpointError:
            notify(f"{path} was not written to its end, and is passed over.")
            continue
        _check_readable(path)
        return str(path)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by their steps, the last one first."""
    found = {
        int(one.name.rpartition("-")[2]): one
        for one in folder.glob("checkpoint-*")
        if one.name.rpartition("-")[2].isdigit()
    }
    return [path for _, path in sorted(found.items(), reverse=True)]


def _check_readable(path: Path) -> None:
    """Read the directories of all archives of a checkpoint, which are at their beginning or end."""
    from safetensors import safe_open

    for file in sorted(path.iterdir()):
        if file.suffix == ".safetensors":
            with loading(file), safe_open(file, "pt") as opened:
                opened.keys()
        elif file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
            raise _damaged(file, "it is cut off")


@contextlib.contextmanager
def loading(path: Path | str | None) -> Iterator[None]:
    """Name the file or checkpoint that cannot be read, and the checkpoint before it."""
    try:
        yield
    except LlavaKitError:
        raise
    except Exception as error:  # of safetensors, torch, pickle and zip archives
        if path is None:
            raise
        first = (str(error).splitlines() or [""])[0]
        raise _damaged(Path(path), f"{type(error).__name__}: {first}") from error


def _damaged(file: Path, why: str) -> CheckpointError:
    path = file if file.name.startswith("checkpoint-") else file.parent
    older = _checkpoints(path.parent)
    older = older[older.index(path) + 1 :] if path in older else older
    then = f"goes on from {older[0].name}" if older else "begins anew, because it is the only one"
    return CheckpointError(
        f"{file} is damaged ({why}); remove {path.name}, and resume (--resume) {then}."
    )
