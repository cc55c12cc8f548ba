"""What a type hint allows, as a test of values and as words for messages.

Knows the hints that signatures of this package use. Nothing is converted, copied or consumed:
elements of what can be iterated only once are not looked at.
"""

from __future__ import annotations

import collections.abc
import functools
import os
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a hint allows.

    Attributes:
        holds: whether a value is allowed.
        words: what it must be, alternatives one by one: ``("a string", "None")``.
        several: the same in the plural: ``("strings", "None")``.
    """

    holds: Callable[[Any], bool]
    words: tuple[str, ...]
    several: tuple[str, ...]

    def __str__(self) -> str:
        return _joined(self.words)


@dataclass(frozen=True, slots=True)
class Takes:
    """In an ``Annotated`` hint: the constructor takes this hint, and converts it."""

    hint: Any


@dataclass(frozen=True, slots=True)
class Said:
    """In an ``Annotated`` hint: words for what the value must be."""

    words: str


@functools.cache
def _anything() -> Allowed:
    return Allowed(lambda value: True, ("anything",), ("anything",))


def allowed(hint: Any) -> Allowed:
    """Return what a hint allows.

    Raises:
        TypeError: a hint of an unknown kind; a fault of the signature.
    """
    if hint is Any or hint is object:
        return _anything()
    if hint is None or hint is type(None):
        return Allowed(lambda value: value is None, ("None",), ("None",))
    origin = get_origin(hint)
    if isinstance(hint, TypeVar):
        if hint.__constraints__:
            return _one_of(hint.__constraints__)
        return _anything() if hint.__bound__ is None else allowed(hint.__bound__)
    if origin is Annotated:
        return _annotated(*get_args(hint))
    if origin in (Union, types.UnionType):
        return _one_of(get_args(hint))
    if origin is Literal:
        return _literal(get_args(hint))
    if origin is type:
        return _class_below(*get_args(hint))
    if (origin or hint) is collections.abc.Callable:
        return Allowed(callable, ("a function",), ("functions",))
    kind = origin or hint
    if not isinstance(kind, type):
        raise TypeError(
            f"{hint!r} is not a hint that can be checked; use a class, a union or a Literal."
        )
    if is_typeddict(kind):
        kind = Mapping
    if origin is not None and issubclass(kind, Iterable):
        return _container(kind, get_args(hint))
    return _instance(kind)


def shown(value: object) -> str:
    """Return a wrong value in a few words.

    Of an object only its class is shown, for it may hold anything.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, str, bytes, os.PathLike, *_WALKED)):
        return _SHORT.repr(value)
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}"
    return _a(type(value).__name__)


class _Short(reprlib.Repr):
    """A repr that is short, and quotes no objects."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 2, 80, 80, 40
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 3

    def repr_instance(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, (bool, float, bytes)):
            return self._cut(repr(x))
        if isinstance(x, os.PathLike):
            return self._cut(repr(os.fspath(x)))
        return f"<{type(x).__name__}>"

    def _cut(self, text: str) -> str:
        most = self.maxother
        return text if len(text) <= most else f"{text[: most - 3]}..."


_SHORT = _Short()
_WALKED = (list, tuple, dict, set, frozenset)
"""Types that can be iterated without changing them, and compared by their elements."""

_WORDS: dict[type, tuple[str, str]] = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bytes: ("bytes", "bytes"),
    dict: ("a dict", "dicts"),
    Mapping: ("a dict", "dicts"),
    os.PathLike: ("a path", "paths"),
}


def _instance(kind: type) -> Allowed:
    one, several = _WORDS.get(kind) or (_a(kind.__name__), f"{kind.__name__} objects")
    if kind is int:
        return Allowed(lambda value: _number(value, Integral), (one,), (several,))
    if kind is float:
        return Allowed(lambda value: _number(value, Real), (one,), (several,))
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return _anything()  # missing methods are found when they are called
    return Allowed(lambda value: isinstance(value, kind), (one,), (several,))


def _number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _container(kind: type, hints: tuple[Any, ...]) -> Allowed:
    """A list, dict, tuple, ... of elements."""
    if issubclass(kind, Mapping):
        return _mapping(kind, hints)
    fixed = kind is tuple and hints[-1:] != (...,)
    elements = tuple(map(allowed, hints if fixed else hints[:1]))
    once = issubclass(kind, collections.abc.Iterator)

    def holds(value: Any) -> bool:
        # A string is not its letters, and a dict not its keys.
        if not isinstance(value, kind) or isinstance(value, (str, bytes, bytearray, Mapping)):
            return False
        if once or not isinstance(value, _WALKED):
            return True  # iterating would consume it
        if fixed:
            return len(value) == len(elements) and all(
                one.holds(part) for one, part in zip(elements, value, strict=True)
            )
        return all(map(elements[0].holds, value)) if elements else True

    name = "tuple" if kind is tuple else "set" if issubclass(kind, (set, frozenset)) else "list"
    if fixed:
        words = f"a tuple of {', '.join(map(str, elements))}"
    else:
        words = f"a {name} of {_joined(elements[0].several if elements else ('anything',))}"
    return Allowed(holds, (words,), (f"{name}s",))


def _mapping(kind: type, hints: tuple[Any, ...]) -> Allowed:
    key, value = (allowed(hint) for hint in hints)

    def holds(given: Any) -> bool:
        if not isinstance(given, kind):
            return False
        pairs: Iterable[tuple[Any, Any]] = given.items()  # type: ignore[attr-defined]
        return all(key.holds(name) and value.holds(held) for name, held in pairs)

    return Allowed(holds, (f"a dict of {_joined(value.several)}",), ("dicts",))


def _one_of(hints: tuple[Any, ...]) -> Allowed:
    # A hint that is an alias of alternatives is as good as its alternatives.
    parts = [allowed(hint) for hint in hints]

    def holds(value: Any) -> bool:
        return any(part.holds(value) for part in parts)

    words = dict.fromkeys(word for part in parts for word in part.words)
    several = dict.fromkeys(word for part in parts for word in part.several)
    return Allowed(holds, _none_last(words), _none_last(several))


def _none_last(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(words, key=lambda word: word == "None"))


def _literal(values: tuple[Any, ...]) -> Allowed:
    def holds(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in values)

    words = tuple(map(repr, values))
    return Allowed(holds, words, words)


def _class_below(base: Any) -> Allowed:
    if not isinstance(base, type) or base is object:
        return Allowed(lambda value: isinstance(value, type), ("a class",), ("classes",))
    return Allowed(
        lambda value: isinstance(value, type) and issubclass(value, base),
        (f"a subclass of {base.__name__}",),
        (f"subclasses of {base.__name__}",),
    )


def _annotated(hint: Any, *notes: Any) -> Allowed:
    for note in notes:
        if isinstance(note, Takes):
            hint = note.hint
    known = allowed(hint)
    for note in notes:
        if isinstance(note, Said):
            known = Allowed(known.holds, (note.words,), (note.words,))
    return known


def _joined(words: tuple[str, ...]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"
