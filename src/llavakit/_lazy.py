"""Names of a package that are imported when they are first used, because they need an extra."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from llavakit.errors import MissingDependencyError


def lazy_names(
    package: str, places: Mapping[str, str], packages: Collection[str], *, what: str, extra: str
) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` (https://peps.python.org/pep-0562/).

    Args:
        package: the module's own name.
        places: the submodule of each name.
        packages: the extra's packages, whose absence is reported as such.
        what: what needs the extra, as a sentence begins.
        extra: the extra's name.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(f"{package}.{places[name]}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in packages:
                raise
            raise MissingDependencyError(
                f'{what} needs an extra: pip install "llavakit[{extra}]".'
            ) from error
        return getattr(module, name)

    return get
