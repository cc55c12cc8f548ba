"""The hook that may refuse a question."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from llavakit.errors import InputError, LlavaKitError, ParameterError
from llavakit.values import Message

logger = logging.getLogger(__name__)

Moderation: TypeAlias = Callable[[Sequence[Message]], "str | Awaitable[str | None] | None"]
"""Sees the conversation, the question that is asked now last, and the images in it.

Gives None to let it pass, or the sentence with which it is refused; then the model never sees
it. A coroutine function is awaited; any other function runs in a thread, so it may take its
time, and must bear being called from several threads at once. One that raises refuses.
"""


class RefusedError(InputError):
    """The moderation hook refused the question; the message is its sentence."""


async def judge(moderation: Moderation | None, messages: Sequence[Message]) -> None:
    """Ask the hook.

    Raises:
        RefusedError: it refused, or failed.
    """
    if moderation is None:
        return
    try:
        verdict = await asyncio.to_thread(moderation, messages)
        if inspect.isawaitable(verdict):
            verdict = await verdict
    except Exception as error:
        # A hook that does not answer in time refuses.
        logger.exception("The moderation hook failed")
        raise RefusedError("The question could not be checked; try again later.") from error
    if verdict is not None:
        raise RefusedError(str(verdict).strip() or "The question was refused.")


def load_hook(name: str) -> Moderation:
    """Load the hook that ``package.module:function`` names; the working directory is searched too.

    Raises:
        ParameterError: there is no such function.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ParameterError(f"{name!r} names no function; write package.module:function.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except LlavaKitError:
        raise
    except (ImportError, AttributeError) as error:
        raise ParameterError(f"{name!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ParameterError(f"{name!r} is no function.")
    hook: Moderation = found
    return hook
