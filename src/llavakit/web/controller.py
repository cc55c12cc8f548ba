"""What visitors can do, without a word of how it looks: ask, stop, ask again, edit, vote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from llavakit.errors import InputError, ParameterError
from llavakit.values import SamplingParams
from llavakit.web.answering import AnswerTask, WebQuestion, sentence
from llavakit.web.conversation import WebTurn
from llavakit.web.examples import PageExample
from llavakit.web.log import ConversationLog, LogPosition
from llavakit.web.maps import PageMaps, ShownMap
from llavakit.web.model_cache import ModelCache
from llavakit.web.moderation import Moderation
from llavakit.web.pictures import Opened, Uploads, shown_picture
from llavakit.web.queue import Queue
from llavakit.web.settings import WebSettings
from llavakit.web.visitors import Visit, Visitors


@dataclass(frozen=True, slots=True)
class Wish:
    """How a visitor wants to be answered.

    Attributes:
        model: the name of an offer.
        params: how the answer is drawn.
        system: a system text; "" takes the template's own.
        pages: which pages to take of documents; "" takes all.
    """

    model: str
    params: SamplingParams
    system: str = ""
    pages: str = ""


class Controller:
    """One page: its models, its visitors, the queue between them. Belongs to one event loop."""

    def __init__(
        self,
        settings: WebSettings,
        model_cache: ModelCache,
        uploads: Uploads,
        *,
        examples: Sequence[PageExample] = (),
        log: ConversationLog | None = None,
        moderation: Moderation | None = None,
    ) -> None:
        self.settings = settings
        self.model_cache = model_cache
        self.uploads = uploads
        self.examples = tuple(examples)
        self.log = log
        self.visitors = Visitors(settings)
        self.line = Queue(settings.seats, settings.places)
        self.maps = PageMaps(model_cache, settings.answer_timeout)
        self._moderation = moderation

    def wish(
        self,
        model: str,
        temperature: float,
        top_p: float,
        max_tokens: float,
        seed: str,
        system: str,
        pages: str,
    ) -> Wish:
        """Return a wish from the values of the page's controls.

        Raises:
            ParameterError: a value that makes no sense.
        """
        if len(system) > self.settings.max_text:
            raise ParameterError(f"A system text has at most {self.settings.max_text} characters.")
        if max_tokens > self.settings.most_tokens:
            raise ParameterError(f"An answer has at most {self.settings.most_tokens} tokens here.")
        params = SamplingParams(
            max_tokens=int(max_tokens),
            temperature=float(temperature),
            top_p=float(top_p),
            seed=_seed(seed),
        )
        return Wish(model, params, system, pages)

    async def send(
        self, visit: Visit, text: str, files: Sequence[str], wish: Wish
    ) -> AsyncIterator[None]:
        """Ask a question about files that were uploaded, and what was shown before.

        Comes back whenever the conversation looks different. A file that cannot be opened
        fails the turn, with a sentence in it.

        Raises:
            InputError: there is nothing to ask, or not now; the conversation is as before.
        """
        visit.free()
        text = self._checked(visit, text)
        self.uploads.claim(visit.owner, files)
        visit.opening = True
        try:
            opened = await asyncio.to_thread(self.uploads.open, files, wish.pages)
        except Exception as error:
            visit.conversation.fail(text, sentence(error))
            yield
            return
        finally:
            visit.opening = False
            self.uploads.release(visit.owner, files)
        async for _ in self._asked(visit, text, opened, wish):
            yield

    async def example(self, visit: Visit, number: int, wish: Wish) -> AsyncIterator[None]:
        """Ask the question of an example.

        Raises:
            InputError: there is no such example, or not now.
        """
        visit.free()
        if not 0 <= number < len(self.examples):
            raise InputError("There is no such example.")
        example = self.examples[number]
        text = self._checked(visit, example.question)
        data = example.file.read_bytes()
        policy = self.settings.policy(example.file.parent)
        opened = Opened((shown_picture(data, example.file.name, policy),))
        async for _ in self._asked(visit, text, opened, wish):
            yield

    async def again(self, visit: Visit, wish: Wish) -> AsyncIterator[None]:
        """Answer the last question anew.

        Raises:
            InputError: nothing was asked, or not now.
        """
        visit.free()
        async for _ in self._answered(visit, visit.conversation.again(), wish):
            yield

    async def edit(self, visit: Visit, index: int, text: str, wish: Wish) -> AsyncIterator[None]:
        """Ask an earlier question in other words; what was said after it is forgotten.

        Raises:
            InputError: there is no such question, or not now.
        """
        visit.free()
        turn = visit.conversation.edit(index, self._checked(visit, text))
        async for _ in self._answered(visit, turn, wish):
            yield

    def clear(self, visit: Visit) -> None:
        """Forget the conversation; a running answer is stopped."""
        visit.stop()
        visit.conversation.clear()

    def restore(self, visit: Visit, turns: Sequence[WebTurn]) -> None:
        """Replace the conversation by a saved one.

        Raises:
            InputError: an answer is on its way.
        """
        visit.free()
        visit.conversation.replace(turns)

    async def vote(self, visit: Visit, index: int, feedback: str | None) -> None:
        """Keep a visitor's vote on the answer of a turn.

        Raises:
            InputError: there is no such answer, or no log.
        """
        turns = visit.conversation.turns
        if self.log is None or not 0 <= index < len(turns):
            raise InputError("There is nothing to vote on.")
        turns[index].answer.feedback = feedback
        place = LogPosition(visit.conversation.name, index + 1)
        await asyncio.to_thread(self.log.feedback, place, feedback)

    async def look(
        self, visit: Visit, chat: str, index: int, number: int | None = None, word: str = ""
    ) -> ShownMap:
        """Return where the model looked for the answer of a turn.

        Args:
            visit: whose answer it is.
            chat: the conversation's name, so that a page that shows an older one notices.
            index: the turn, from 0.
            number: the image, from 0, among those that the model was shown; None takes the one
                that matches the question best.
            word: a word of the question; "" takes all together.

        Raises:
            InputError: there is no such answer, image or word.
            QueueFullError: too many visitors wait for maps.
        """
        conversation = visit.conversation
        if chat != conversation.name or not 0 <= index < len(conversation.turns):
            raise InputError("That answer is gone; close this and look at the chat.")
        turn = conversation.turns[index]
        images = conversation.shown_for(index, self.settings.max_images)
        return await self.maps.show(images, turn.text, turn.answer.model, number, word)

    def left(self, tab: str) -> None:
        """Cancel a tab's request; with the last tab of its browser, the uploads go, too."""
        visit = self.visitors.left(tab)
        if visit is not None and not self.visitors.has(visit.owner):
            self.uploads.release(visit.owner)
        asyncio.get_running_loop().call_later(self.settings.linger + 0.1, self.sweep)

    def sweep(self) -> None:
        """Forget visitors that left, and uploads of browsers that never opened the page."""
        self.visitors.sweep()
        self.uploads.forgotten(self.visitors.has)

    def _checked(self, visit: Visit, text: str) -> str:
        text = text.strip()
        if not text:
            raise InputError("Write a question, or press one of the buttons above.")
        if len(text) > self.settings.max_text:
            raise InputError(f"A question has at most {self.settings.max_text} characters.")
        if len(visit.conversation.turns) >= self.settings.max_turns:
            raise InputError("This chat is long enough; begin a new one.")
        return text

    async def _asked(
        self, visit: Visit, text: str, opened: Opened, wish: Wish
    ) -> AsyncIterator[None]:
        added = sum(shown.size for shown in opened.pictures)
        if visit.conversation.kept_bytes + added > self.settings.max_kept_bytes:
            visit.conversation.fail(
                text, "This chat holds too many images; begin a new one for these."
            )
            yield
            return
        turn = visit.conversation.ask(text, opened.pictures, opened.notes)
        async for _ in self._answered(visit, turn, wish):
            yield

    async def _answered(self, visit: Visit, turn: WebTurn, wish: Wish) -> AsyncIterator[None]:
        conversation = visit.conversation
        question = WebQuestion(conversation.messages(wish.system), wish.params, wish.model)
        answering = visit.answering = AnswerTask(
            question,
            turn.answer,
            line=self.line,
            model_cache=self.model_cache,
            moderation=self._moderation,
            timeout=self.settings.answer_timeout,
        )
        if (log := self.log) is not None:
            place = LogPosition(conversation.name, len(conversation.turns))

            async def keep() -> None:
                await asyncio.to_thread(log.answer, place, turn, wish.params, wish.system)

            answering.then(keep)
        yield
        async for _ in answering.looks():
            yield


def _seed(typed: str) -> int | None:
    if not typed.strip():
        return None
    try:
        return int(typed)
    except ValueError as error:
        raise ParameterError("A seed is a whole number; leave it empty for none.") from error
