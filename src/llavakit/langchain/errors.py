"""llavakit's errors in LangChain's tree: each is an error of both.

LangChain itself decides by its classes (``langchain_core.exceptions``, 1.7): the
summarisation middleware shrinks a conversation after a ``ContextOverflowError``, retries are made
where an error ``is_retryable``. The core knows no framework, so that an adapter raises the twin of
what the core raised: a subclass of both, with the same name, message and fields.

::

    ContextLengthError      ContextOverflowError
    InputError, all others  ModelInvalidRequestError   (a failed fetch: retryable)
    RequestTimeoutError     ModelTimeoutError          retryable
    QueueFullError          ModelRateLimitError        retryable
    ModelNotFoundError      ModelNotFoundError
    RemoteError             by the server's status: ModelAuthenticationError (401),
                            ModelPermissionDeniedError (403), ModelNotFoundError (404),
                            ModelTimeoutError (408, retryable),
                            ModelInvalidRequestError (other 4xx), ModelAPIError (5xx, retryable),
                            ModelConnectionError (no answer, retryable)
    EngineClosedError       ModelAPIError              retryable: a fresh engine is loaded
    all others              ModelError
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions as theirs

from llavakit import errors as ours

_THEIRS: tuple[tuple[type[ours.LlavaKitError], type[Exception], bool], ...] = (
    (ours.ContextLengthError, theirs.ContextOverflowError, False),
    (ours.SourceFetchError, theirs.ModelInvalidRequestError, True),
    (ours.InputError, theirs.ModelInvalidRequestError, False),
    (ours.RequestTimeoutError, theirs.ModelTimeoutError, True),
    (ours.QueueFullError, theirs.ModelRateLimitError, True),
    (ours.ModelNotFoundError, theirs.ModelNotFoundError, False),
    (ours.EngineClosedError, theirs.ModelAPIError, True),
    (ours.LlavaKitError, theirs.ModelError, False),
)
"""The first entry whose class fits decides."""

_BY_STATUS = {
    401: theirs.ModelAuthenticationError,
    403: theirs.ModelPermissionDeniedError,
    404: theirs.ModelNotFoundError,
    408: theirs.ModelTimeoutError,
}


def _twin_of(
    kind: type[ours.LlavaKitError], theirs_: type[Exception], retryable: bool, name: str
) -> type[ours.LlavaKitError]:
    body = {"__module__": __name__, "__doc__": kind.__doc__, "is_retryable": retryable}
    # Pickle finds the class by its name in this module.
    globals()[name] = twin = type(name, (kind, theirs_), body)
    return twin


def _all_kinds(kind: type[ours.LlavaKitError]) -> Iterator[type[ours.LlavaKitError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == ours.__name__:
            yield from _all_kinds(below)


def _twin_by_table(kind: type[ours.LlavaKitError]) -> type[ours.LlavaKitError]:
    theirs_, retryable = next((t, r) for k, t, r in _THEIRS if issubclass(kind, k))
    return _twin_of(kind, theirs_, retryable, kind.__name__)


_TWINS = {kind: _twin_by_table(kind) for kind in _all_kinds(ours.LlavaKitError)}
_REMOTE = {
    kind: _twin_of(ours.RemoteError, kind, kind.is_retryable, f"Remote{kind.__name__}")
    for kind in (
        *_BY_STATUS.values(),
        theirs.ModelInvalidRequestError,
        theirs.ModelAPIError,
        theirs.ModelConnectionError,
    )
}


def twin(error: ours.LlavaKitError) -> ours.LlavaKitError:
    """Return the same error as one of LangChain's too.

    An error that is one already is unchanged.
    """
    if isinstance(error, theirs.LangChainException):
        return error
    if isinstance(error, ours.RemoteError):
        kind = _REMOTE[_by_status(error.status)]
    else:
        kind = _TWINS.get(type(error)) or _TWINS[_nearest(type(error))]
    made = kind.__new__(kind, *error.args)
    made.args = error.args
    made.__dict__.update(error.__dict__)
    made.__cause__, made.__suppress_context__ = error.__cause__, True
    return made.with_traceback(error.__traceback__)


@contextmanager
def in_langchains_tree() -> Iterator[None]:
    """Raise llavakit's errors as LangChain's too, within the context."""
    try:
        yield
    except ours.LlavaKitError as error:
        known = twin(error)
        if known is error:
            raise
        raise known from error.__cause__


def _by_status(status: int | None) -> Any:
    if status is None:
        return theirs.ModelConnectionError
    if status >= 500:
        return theirs.ModelAPIError
    return _BY_STATUS.get(status, theirs.ModelInvalidRequestError)


def _nearest(kind: type[ours.LlavaKitError]) -> type[ours.LlavaKitError]:
    """The base in the table, for a class derived from ours in another package."""
    return next(base for base in kind.__mro__ if base in _TWINS)
