"""Who may use the page: names and passwords of a file."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from llavakit.errors import ParameterError


def read_accounts(path: Path) -> tuple[tuple[str, str], ...]:
    """Read accounts from a file: ``name:password`` a line; empty and ``#`` lines are left out.

    Raises:
        ParameterError: it cannot be read, or a line is no account. The message holds no
            password.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ParameterError(f"The accounts in {path} cannot be read ({reason}).") from None
    accounts = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, password = line.strip().partition(":")
        if not (name and password):
            raise ParameterError(f"Line {number} of {path} is no account; write name:password.")
        accounts[name] = password
    if not accounts:
        raise ParameterError(f"{path} holds no account; write name:password, one a line.")
    return tuple(accounts.items())


def checking(accounts: Sequence[tuple[str, str]]) -> Callable[[str, str], bool]:
    """Return a check of a name and a password against accounts.

    It takes as long for any name and password, whether the name exists or not.
    """
    digests = [_digest(name, password) for name, password in accounts]

    def check(name: str, password: str) -> bool:
        shown = _digest(name, password)
        return sum(hmac.compare_digest(shown, digest) for digest in digests) > 0

    return check


def _digest(name: str, password: str) -> bytes:
    # The name's length keeps "a" with "b:c" apart from "a:b" with "c".
    pair = f"{len(name)}:{name}:{password}".encode("utf-8", "surrogatepass")
    return sha256(pair).digest()
