"""The pages of a named document, read by a model one after the other.

Drawing a page and answering about another go on at the same time, and a few pages are asked
about at once, so that the engine has something to batch. Nothing is kept of a page but what was
read on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

from llavakit._checks import checked
from llavakit._json import is_whole
from llavakit._threads import off_loop
from llavakit.backend import question_about
from llavakit.documents.ranges import PageRange
from llavakit.documents.tasks import PROMPTS
from llavakit.errors import DocumentError, ParameterError, SchemaError
from llavakit.questions.answers import Citation, PageAnswer, PageAnswers
from llavakit.questions.asking import REPORTED, ImageAsker, check_words
from llavakit.questions.references import Found, FoundDocument, Pictures
from llavakit.questions.threads import opening_pool
from llavakit.values import Completion, SamplingParams

Progress: TypeAlias = Callable[[int, int, str], Awaitable[None]]
"""Called with how many pages are done, of how many, and the name of the last one."""

AT_ONCE = 4
"""Most pages of one reading that the model is asked about at the same time."""
_PAGE_TOKENS = 1024
_MOST_SCHEMA_CHARACTERS = 65_536


@checked
async def read_document(
    asker: ImageAsker,
    image: str,
    pictures: Callable[[], Pictures],
    *,
    pages: str = "",
    prompt: str = "",
    json_schema: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PageAnswers:
    """Read the text of pages, or extract data from them.

    Args:
        asker: the model, and what may be named.
        image: the name of a document or an image; with ``#page=3``, of that page.
        pictures: returns all that may be named; called once, off the event loop.
        pages: which pages, such as ``"1-3,7"``; "" reads all, or the one that the name names.
        prompt: what the model is asked about each page; "" takes the words of
            :data:`llavakit.documents.tasks.PROMPTS`.
        json_schema: what the data of each page must obey; None reads text.
        progress: called after each page.

    Raises:
        ParameterError: a range of pages or a schema that is not one; more pages than
            ``asker.max_pages``.
        SchemaError: a schema that cannot be compiled.
        InputError: nothing of that name, or it may not or cannot be opened.
        EngineError: the model could not answer. A page that it cannot take has an error of its
            own, and the others go on.

    Cancelling it frees the model.
    """
    check_words("prompt", prompt)
    check_words("pages", pages)
    wanted = PageRange.parse(pages) if pages.strip() else None
    params = _params(asker, json_schema)
    words = prompt.strip() or PROMPTS["transcribe" if json_schema is None else "extract"]
    opened = await off_loop(
        opening_pool([image]), lambda: pictures().open(image), FoundDocument.close
    )
    try:
        count = await off_loop(opening_pool(), opened.document.count, _nothing)
        numbers = _numbers(opened, wanted, count, asker.max_pages)
        reading = _Reading(asker, opened, words, params)
        answers: list[PageAnswer] = []
        async with contextlib.aclosing(reading.answers(numbers)) as read:
            async for answer in read:
                answers.append(answer)
                if progress is not None:
                    await progress(len(answers), len(numbers), answer.citation.image)
    finally:
        # Not awaited: a page that is being drawn holds the document, and goes on when cancelled.
        opening_pool().submit(opened.close)
    return PageAnswers(opened.name, count, tuple(answers), asker.model)


class _Reading:
    """The questions about the pages of one open document."""

    def __init__(
        self, asker: ImageAsker, opened: FoundDocument, words: str, params: SamplingParams
    ) -> None:
        self._asker = asker
        self._opened = opened
        self._words = words
        self._params = params

    async def answers(self, numbers: Sequence[int | None]) -> AsyncGenerator[PageAnswer, None]:
        """Give an answer for each page, in their order; closing it cancels what is under way."""
        waiting: deque[asyncio.Task[PageAnswer]] = deque()
        try:
            for number in numbers:
                waiting.append(await self._asked(number))
                if len(waiting) == AT_ONCE:
                    yield await waiting[0]
                    waiting.popleft()
            while waiting:
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()

    async def _asked(self, number: int | None) -> asyncio.Task[PageAnswer]:
        """Draw a page, and begin to ask about it."""
        try:
            found = await off_loop(opening_pool(), lambda: self._opened.found(number), _nothing)
        except REPORTED as error:
            answer = self._failed(number, error)
            task = asyncio.ensure_future(_known(answer))
        else:
            task = asyncio.ensure_future(self._ask(found))
        task.add_done_callback(_retrieve)
        return task

    async def _ask(self, found: Found) -> PageAnswer:
        citation = Citation.of(found)
        asker = self._asker
        try:
            completion = await asker.backend_for().agenerate(
                question_about(found.picture, self._words), self._params, timeout=asker.timeout
            )
        except SchemaError:
            raise  # of the reading, and so of all pages
        except REPORTED as error:
            return PageAnswer(citation, error=str(error))
        if self._params.json_schema is None:
            return _as_text(citation, completion)
        return _as_data(citation, completion)

    def _failed(self, number: int | None, error: Exception) -> PageAnswer:
        name = self._opened.name
        if number is None:
            return PageAnswer(Citation(name), error=str(error))
        return PageAnswer(Citation(f"{name}#page={number}", name, number), error=str(error))


def _params(asker: ImageAsker, schema: Mapping[str, Any] | None) -> SamplingParams:
    params = asker.params()
    if asker.max_tokens is None:
        params = replace(params, max_tokens=_PAGE_TOKENS)
    if schema is None:
        return params
    if not schema:
        raise ParameterError(
            'The JSON schema is empty; write one such as {"type": "object", "properties": {...}}.'
        )
    try:
        length = len(json.dumps(schema))
    except (RecursionError, ValueError) as error:
        raise SchemaError("The JSON schema is nested too deeply; make it flatter.") from error
    if length > _MOST_SCHEMA_CHARACTERS:
        raise SchemaError(
            f"The JSON schema has {length:,} characters, and the most are "
            f"{_MOST_SCHEMA_CHARACTERS:,}; make it smaller."
        )
    return replace(params, json_schema=schema)


def _numbers(
    opened: FoundDocument, wanted: PageRange | None, count: int, most: int
) -> Sequence[int | None]:
    """Return the pages to read; None for an image, which has none."""
    name = opened.name
    if opened.page is not None and wanted is not None:
        raise ParameterError(
            f"{name}#page={opened.page} names a page already; leave pages out, or name {name}."
        )
    if opened.page is not None:
        return [opened.page]
    if opened.document.is_image and wanted is None:
        return [None]
    numbers = range(1, count + 1) if wanted is None else wanted.numbers(count)
    found = list(islice(numbers, most + 1))
    if len(found) > most:
        raise DocumentError(
            f"{name} has {count} pages, and one call reads at most {most}; name some of them, "
            f'such as pages="1-{most}".'
        )
    return found


def _as_text(citation: Citation, completion: Completion) -> PageAnswer:
    return PageAnswer(
        citation,
        completion.text.strip(),
        finish_reason=completion.finish_reason,
        usage=completion.usage,
    )


def _as_data(citation: Citation, completion: Completion) -> PageAnswer:
    answer = _as_text(citation, completion)
    text = answer.text or ""
    if completion.finish_reason != "length" or is_whole(text):
        # Only an answer that was cut is not JSON; what there is of it is left as text.
        with contextlib.suppress(ValueError):
            return replace(answer, text=None, data=json.loads(text))
    return answer


async def _known(answer: PageAnswer) -> PageAnswer:
    return answer


def _retrieve(task: asyncio.Task[PageAnswer]) -> None:
    """Take the error of a page that is no longer awaited; asyncio would log it."""
    if not task.cancelled():
        task.exception()


def _nothing(_: object) -> None:
    """Undo what left nothing behind."""
