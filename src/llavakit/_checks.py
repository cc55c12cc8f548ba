"""What callers set by name: taken if it is what it should be, refused in one sentence if not.

Every setting that is a number goes through here, so that a value of a wrong type ("3", True,
1.5, NaN) is refused where it is given. Found later, in the engine's own thread, it would end a
step that is taken for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from llavakit.errors import ParameterError


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """``value`` as an int; numpy's are taken too, bools and floats are not.

    Args:
        name: of the setting.
        value: what was given for it.
        least: the smallest that is right.
        most: the largest that is right.

    Raises:
        ParameterError: it is no whole number, or out of range.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if is_whole and (least is None or value >= least) and (most is None or value <= most):
        return int(value)
    if least is not None and most is not None:
        raise refused(name, value, f"a whole number from {least} to {most}")
    bounds = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    raise refused(name, value, " of ".join(["a whole number", *bounds]))


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """``value``, a finite number; bools are none.

    Args:
        name: of the setting.
        value: what was given for it.
        above: it must be larger than this.
        least: it must be this or larger.
        below: it must be smaller than this.
        most: it must be this or smaller.

    Raises:
        ParameterError: it is no number, infinite, NaN or out of range.
    """
    is_real = isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if (
        is_real
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
    """One string or several, none of them empty; None is none. A string is not its letters.

    Args:
        name: of the setting.
        value: what was given for it.
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


def kind(name: str, value: Any, kinds: type | tuple[type, ...], words: str) -> None:
    """Refuses a value that is none of these kinds; ``words`` tell what it must be."""
    if not isinstance(value, kinds):
        raise refused(name, value, words)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def refused(name: str, value: object, allowed: str) -> ParameterError:
    """The sentence about a setting that cannot be taken."""
    return ParameterError(f"{name} is {value!r}; it must be {allowed}.")


def known(
    arguments: Mapping[str, Any],
    names: Sequence[str],
    who: str,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Refuses an argument that is not among ``names``, with the nearest name as advice.

    Args:
        arguments: what was given.
        names: what there is.
        who: took them; begins the sentence.
        aliases: names that others use for some of ``names``, for the advice.

    Raises:
        ParameterError: an argument that nobody knows.
    """
    unknown = sorted(set(arguments) - set(names))
    if not unknown:
        return
    real_names = dict(zip(names, names, strict=True)) | dict(aliases or {})
    near = get_close_matches(unknown[0], list(real_names), n=1)
    advice = f"did you mean {real_names[near[0]]!r}?" if near else f"it knows {', '.join(names)}."
    raise ParameterError(f"{who} does not know the argument {unknown[0]!r}; {advice}")
