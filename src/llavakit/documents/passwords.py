"""Passwords of documents: one for all, one for each by name, or a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from llavakit.errors import ParameterError, PasswordError

Password: TypeAlias = str | Mapping[str, str] | Callable[[str], str | None] | None
"""A password; a mapping from paths or names of files to passwords; or what gives the password of
the document that it is given the name of, None where there is none."""

_Opened = TypeVar("_Opened")
_MOST_ASKED = 3  # calls of a password function for one document


def open_with(password: Password, name: str, attempt: Callable[[str | None], _Opened]) -> _Opened:
    """Open a document, with a password only where it has to have one.

    Args:
        password: see :data:`Password`.
        name: the document's.
        attempt: opens it with a password, or without.

    Raises:
        PasswordError: none opens it.
        ParameterError: what is asked gives no text.
    """
    try:
        return attempt(None)
    except PasswordError as error:
        failed = error
    for one in _offered(password, name):
        try:
            return attempt(one)
        except PasswordError as error:
            failed = error
    raise failed


def for_document(password: Password, name: str) -> Password:
    """Return the password of a document whose bytes are opened, and that is known by a name.

    Args:
        password: see :data:`Password`.
        name: what the document is called where it comes from.
    """
    if password is None or isinstance(password, str):
        return password
    if isinstance(password, Mapping):
        return next(_offered(password, name), None)
    ask = password
    return lambda inner: ask(name)


def encrypted(name: str, password: str | None) -> PasswordError:
    """The error for a document that does not open."""
    if password is None:
        return PasswordError(
            f"{name} is encrypted; give its password (password=), or save it without one."
        )
    return PasswordError(
        f"{name} is encrypted, and the password given does not open it; give another one."
    )


def _offered(password: Password, name: str) -> Iterator[str]:
    if isinstance(password, str):
        yield password
    elif isinstance(password, Mapping):
        for key in (name, Path(name).name):
            if key in password:
                yield password[key]
                return
    elif password is not None:
        for _ in range(_MOST_ASKED):
            given = password(name)
            if given is None:
                return
            if not isinstance(given, str):
                raise ParameterError(
                    f"password gave {type(given).__name__} for {name[-80:]}; it gives a text, or "
                    "None."
                )
            yield given
