"""One command of the command line, as all of them read their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from llavakit.cli.terminal import usage_error


class Command(TyperCommand):
    """A command that takes no empty arguments.

    A script writes one where a variable of it is not set. Read as "not given" it would be
    dropped in silence, and as a path it would be the directory that the script stands in.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        empty = _empty(args)
        if empty is not None:
            raise usage_error(f"{empty} is empty; leave it out, or say what is meant.")
        return super().parse_args(ctx, args)


def _empty(args: Sequence[str]) -> str | None:
    """The first argument without a letter, by its option where it has one."""
    for before, argument in zip(["", *args], args, strict=False):
        name, _, value = argument.partition("=")
        if name.startswith("--") and "=" in argument and not value:
            return name
        if not argument:
            return before if before.startswith("-") and len(before) > 1 else "An argument"
    return None
