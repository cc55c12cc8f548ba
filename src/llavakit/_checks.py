"""Checks of arguments: valid ones pass, others are refused in one sentence.

:func:`checked` checks arguments against the hints of a signature. Ranges are for
:func:`check_integer` and :func:`check_number`: every setting that is a number goes through here,
so that a value of a wrong type ("3", True, 1.5, NaN) is refused where it is given. Found later, in
the engine's own thread, it would end a step that serves every request.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from llavakit._hints import Allowed, Said, Takes, allowed, shown
from llavakit.errors import ParameterError

__all__ = [
    "Said",
    "Takes",
    "check_instance",
    "check_integer",
    "check_number",
    "checked",
    "known",
    "members",
    "plain",
    "refused",
    "strings",
]

Called = TypeVar("Called", bound=Callable[..., Any])

_SECRETS = frozenset({"api_key", "api_keys"})


def checked(called: Called) -> Called:
    """Check the arguments of a function, or of a class's constructor, against its type hints.

    >>> @checked
    ... def open_files(sources: str, *, pages: str | None = None) -> None: ...
    >>> open_files("a.pdf", pages=3)
    Traceback (most recent call last):
    llavakit.errors.ParameterError: pages is 3; it must be a string or None.

    They are checked and passed on unchanged, for generators too: at the call, not at the first
    element. Signature, name and docs stay. A hint is read at the first call, and its names must
    exist at runtime; without a hint, or with ``Any``, there is no check.

    Args:
        called: the function, or a class, whose ``__init__`` is checked.
    """
    if isinstance(called, type):
        called.__init__ = checked(called.__init__)  # type: ignore[misc]
        return cast("Called", called)
    arguments = _CheckedArguments(called)
    if inspect.iscoroutinefunction(called):

        @functools.wraps(called)
        async def checked_later(*args: Any, **kwargs: Any) -> Any:
            arguments.check(args, kwargs)
            return await called(*args, **kwargs)

        return cast("Called", checked_later)

    @functools.wraps(called)
    def checked_first(*args: Any, **kwargs: Any) -> Any:
        arguments.check(args, kwargs)
        return called(*args, **kwargs)

    return cast("Called", checked_first)


class _CheckedArguments:
    """The arguments of a function, and their hints."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        self._allowed: dict[str, Allowed] | None = None

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that are not as the hints say.

        Raises:
            ParameterError: an argument of a wrong type.
            TypeError: a missing argument, or an unknown one.
        """
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self._function.__qualname__}: {error}.") from None
        if self._allowed is None:
            self._allowed = self._read()
        for name, what in self._allowed.items():
            if name not in given:
                continue
            value = given[name]
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                self._check_all(dict.fromkeys((name,), value), what)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                self._check_all({key: (one,) for key, one in value.items()}, what)
            elif not what.holds(value):
                raise refused(name, value, str(what))

    def _check_all(self, given: Mapping[str, Iterable[Any]], what: Allowed) -> None:
        for name, values in given.items():
            for value in values:
                if not what.holds(value):
                    raise refused(name, value, str(what))

    def _read(self) -> dict[str, Allowed]:
        names = vars(sys.modules[self._function.__module__])
        hints = {
            name: one.annotation
            for name, one in self._signature.parameters.items()
            if one.annotation is not inspect.Parameter.empty
        }
        read = {
            name: eval(hint, names) if isinstance(hint, str) else hint  # our own source, no input
            for name, hint in hints.items()
        }
        return {name: allowed(hint) for name, hint in read.items() if hint is not Any}


def check_integer(
    name: str, value: Any, *, least: int | None = None, most: int | None = None
) -> int:
    """Return ``value`` as an int; numpy's are taken too, bools and floats are not.

    Args:
        name: the setting's name.
        value: the value that was given.
        least: the smallest that is allowed.
        most: the largest that is allowed.

    Raises:
        ParameterError: it is not a whole number, or out of range.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if is_integer and (least is None or value >= least) and (most is None or value <= most):
        return int(value)
    if least is not None and most is not None:
        raise refused(name, value, f"a whole number from {least} to {most}")
    bounds = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    raise refused(name, value, " of ".join(["a whole number", *bounds]))


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Return ``value`` if it is a finite number; bools are not numbers here.

    Args:
        name: the setting's name.
        value: the value that was given.
        above: it must be larger than this.
        least: it must be this or larger.
        below: it must be smaller than this.
        most: it must be this or smaller.

    Raises:
        ParameterError: it is not a number, infinite, NaN or out of range.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if (
        is_number
        and (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        return value if isinstance(value, (int, float)) else float(value)
    words = {"above": above, "of at least": least, "below": below, "at most": most}
    bounds = [f"{word} {bound}" for word, bound in words.items() if bound is not None]
    raise refused(name, value, f"a number {' and '.join(bounds)}".strip())


def strings(name: str, value: Any, *, secret: bool = False) -> tuple[str, ...]:
    """Return one string or several as a tuple, none of them empty; None gives an empty one.

    Args:
        name: the setting's name.
        value: the value that was given.
        secret: whether the error must not show it.

    Raises:
        ParameterError: it is anything else.
    """
    given = (value,) if isinstance(value, str) else () if value is None else value
    listed = isinstance(given, Iterable) and not isinstance(given, (bytes, Mapping))
    found = tuple(given) if listed else ()
    if listed and all(isinstance(one, str) and one for one in found):
        return found
    if secret:
        raise ParameterError(f"{name} must be a non-empty string or several.")
    raise refused(name, value, "a non-empty string or several")


def members(name: str, values: Iterable[Any], hint: Any) -> list[Any]:
    """Return the elements as a list, also those of a generator.

    Args:
        name: the argument's name.
        values: what was given for it.
        hint: what each must be.

    Raises:
        ParameterError: one is something else.
    """
    what = allowed(hint)
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping, type)):
        raise refused(name, values, f"a list, and each element {what}")
    found = list(values)
    for one in found:
        if not what.holds(one):
            raise ParameterError(f"{name} holds {shown(one)}; each must be {what}.")
    return found


def plain(name: str, value: Any) -> None:
    """Refuse a value that JSON cannot hold."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ParameterError(f"{name} must be what JSON can hold ({reason}).") from None


def check_instance(name: str, value: Any, kinds: type | tuple[type, ...], words: str) -> None:
    """Refuse a value that is not an instance of these types; ``words`` say what it must be."""
    if not isinstance(value, kinds):
        raise refused(name, value, words)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def refused(name: str, value: object, allowed: str) -> ParameterError:
    """Return the error about an argument that has no acceptable value."""
    if name in _SECRETS:
        return ParameterError(f"{name} must be {allowed}.")
    return ParameterError(f"{name} is {shown(value)}; it must be {allowed}.")


def known(
    arguments: Mapping[str, Any],
    names: Sequence[str],
    subject: str,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Refuse an argument that is not among ``names``, with the nearest name as advice.

    Args:
        arguments: the arguments that were given.
        names: the names that are known.
        subject: what took them; begins the sentence.
        aliases: other names for some of ``names``, for the advice.

    Raises:
        ParameterError: an unknown argument.
    """
    unknown = sorted(set(arguments) - set(names))
    if not unknown:
        return
    real_names = dict(zip(names, names, strict=True)) | dict(aliases or {})
    near = get_close_matches(unknown[0], list(real_names), n=1)
    advice = f"did you mean {real_names[near[0]]!r}?" if near else f"it knows {', '.join(names)}."
    raise ParameterError(f"{subject} does not know the argument {unknown[0]!r}; {advice}")
