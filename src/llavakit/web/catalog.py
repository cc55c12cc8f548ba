"""The list of models: names, and the memory that they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llavakit._checks import strings
from llavakit.errors import ParameterError
from llavakit.model.catalog import CATALOG, CatalogEntry, context_length, of_repository, resolve

Bits = Literal[16, 8, 4]
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model of the list.

    Attributes:
        name: what ``llavakit.load`` takes.
        label: what the list says.
        memory: bytes that it needs, or None where it is not known.
        context: tokens that it can hold, or None where it is not known.
    """

    name: str
    label: str
    memory: int | None = None
    context: int | None = None


def listed_models(
    named: Sequence[str],
    folders: Sequence[Path] = (),
    *,
    catalog: bool = False,
    bits: Bits = 16,
    remote: bool = False,
) -> tuple[ListedModel, ...]:
    """Return the list, each name once.

    Args:
        named: models that the operator named; the first is the page's default.
        folders: directories whose subdirectories with a checkpoint are offered too.
        catalog: offer all models of the catalog as well.
        bits: how the weights are held.
        remote: the models run on another server: nothing is known of their memory.

    Raises:
        ParameterError: no model, or a folder that is none.
    """
    names = dict.fromkeys(strings("The models", named))
    if not names:
        raise ParameterError("Name a model.")
    for folder in folders:
        names.update(dict.fromkeys(_checkpoints(folder)))
    if catalog:
        names.update(dict.fromkeys(entry.name for entry in CATALOG))
    if remote:
        return tuple(ListedModel(name, name) for name in names)
    return tuple(_listed(name, bits) for name in names)


def _checkpoints(folder: Path) -> Iterable[str]:
    if not folder.is_dir():
        raise ParameterError(f"{folder} is no directory.")
    inside = sorted(path for path in folder.iterdir() if (path / "config.json").is_file())
    return [str(path) for path in inside]


def _listed(name: str, bits: Bits) -> ListedModel:
    path = Path(name).expanduser()
    if path.is_dir():
        label, memory = path.resolve().name, _directory_memory(path, bits)
    else:
        entry = resolve(name)
        label, memory = name, None if entry is None else entry.memory(bits)
    needs = "" if memory is None else f" · needs {size(memory)}"
    return ListedModel(name, label + needs, memory, context_length(name))


def _directory_memory(path: Path, bits: Bits) -> int | None:
    entry: CatalogEntry | None = of_repository(path.resolve().name)
    if entry is not None:
        return entry.memory(bits)
    for pattern in _WEIGHTS:
        # Checkpoints are 16 bit, nearly all of them.
        weights = sum(file.stat().st_size for file in path.glob(pattern))
        if weights:
            return weights * bits // 16
    return None


def size(count: float) -> str:
    """Return bytes in words."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
