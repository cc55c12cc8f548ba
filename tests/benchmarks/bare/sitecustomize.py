"""Hides from this interpreter what a bare machine lacks; is imported by every one that starts.

There are torch, transformers, accelerate, triton, torchvision, pytest and pillow, with what they
need, and no llavakit but the source.
"""

import re
import sys
from importlib import metadata
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from typing import Any

ROOTS = ("torch", "transformers", "accelerate", "triton", "torchvision", "pytest", "pillow")
ABSENT = ("llavakit", "llguidance", "bitsandbytes", "typer")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> set[str]:
    """Names of the packages that are there."""
    found: set[str] = set()
    left = list(ROOTS)
    while left:
        name = plain(left.pop())
        if name in found or name in ABSENT:
            continue
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        left += [re.split(r"[^\w.-]", one)[0] for one in wanted if "extra ==" not in one]
    return found


THERE = needed()
MODULES = {
    module
    for module, owners in metadata.packages_distributions().items()
    if THERE & {plain(owner) for owner in owners}
}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = super().find_spec(name, path, target)
        if spec is None or name.partition(".")[0] in MODULES | sys.stdlib_module_names:
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or [])]
        return None if any("site-packages" in place for place in places) else spec

    @classmethod
    def find_distributions(cls, *context: Any) -> Any:
        for found in PathFinder.find_distributions(*context):
            if plain(found.metadata["Name"]) in THERE:
                yield found


sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Bare]
