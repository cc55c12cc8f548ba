"""A question about several named images at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llavakit._checks import checked, members
from llavakit.backend import question_about
from llavakit.errors import ParameterError
from llavakit.questions.answers import Citation, Comparison
from llavakit.questions.asking import ImageAsker, check_question
from llavakit.questions.references import Found, Pictures
from llavakit.questions.threads import find_off_loop

MOST_IMAGES = 8
"""Most images of one comparison."""


@checked
async def compare_images(
    asker: ImageAsker, question: str, images: Iterable[str], pictures: Callable[[], Pictures]
) -> Comparison:
    """Ask about several images at once. Cancelling it frees the model.

    Args:
        asker: the model, and what may be named.
        question: in plain words.
        images: the images' names, in the order in which the model sees them.
        pictures: returns all that may be named; called once, off the event loop.

    Raises:
        ParameterError: no question, fewer than two images, or more than :data:`MOST_IMAGES`.
        InputError: an image that is not there, or that may not or cannot be opened.
        EngineError: the model could not answer.
    """
    check_question(question)
    names = members("images", images, str)
    if not 2 <= len(names) <= MOST_IMAGES:
        raise ParameterError(
            f"images holds {len(names)} names; a comparison takes 2 to {MOST_IMAGES}."
        )

    def find() -> list[Found]:
        known = pictures()
        return [known.find(name) for name in names]

    found = await find_off_loop(names, find)
    completion = await asker.backend_for().agenerate(
        question_about([one.picture for one in found], question),
        asker.params(),
        timeout=asker.timeout,
    )
    return Comparison(
        question,
        completion.text,
        tuple(map(Citation.of, found)),
        asker.model,
        completion.finish_reason,
        completion.usage,
    )
