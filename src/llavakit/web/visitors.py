"""Who is here: one visit a tab, held a while after the tab is gone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from llavakit.errors import InputError, QueueFullError
from llavakit.web.answering import AnswerTask
from llavakit.web.conversation import WebConversation
from llavakit.web.maps import ShownMap
from llavakit.web.settings import WebSettings

_SILENT = 3600.0
"""Seconds for which a visit is held that never opened a page (a program, not a browser)."""


class Visit:
    """One tab.

    Attributes:
        token: what the tab shows to find its conversation again after it was reloaded.
        conversation: what was said.
        answering: the answer that is on its way.
        looking: the map that is on its way (see :class:`~llavakit.web.maps.PageMaps`).
        present: whether the tab is open.
        opening: whether the images of a question are opened just now.
        seen: when it was last heard of.
        owner: the browser that it belongs to (see :class:`~llavakit.web.pictures.Uploads`).
    """

    def __init__(self, now: float) -> None:
        self.token = secrets.token_urlsafe(16)
        self.conversation = WebConversation()
        self.answering: AnswerTask | None = None
        self.looking: asyncio.Task[ShownMap] | None = None
        self.owner = ""
        self.present = False
        self.opening = False
        self.seen = now

    @property
    def busy(self) -> bool:
        """Return whether an answer is on its way, or the images of a question are opened."""
        return self.opening or (self.answering is not None and not self.answering.over)

    def stop(self) -> None:
        """Cancel the answer and the map, if there are any."""
        if self.answering is not None:
            self.answering.stop()
        self.look(None)

    def look(self, task: asyncio.Task[ShownMap] | None) -> None:
        """Wait for another map, or for none; the one before it is cancelled."""
        if self.looking is not None:
            self.looking.cancel()
        self.looking = task

    def free(self) -> None:
        """Raise if an answer is on its way."""
        if self.busy:
            raise InputError("An answer is still on its way; wait for it, or stop it.")


class Visitors:
    """All visits, by the name that the browser's tab has. Belongs to one event loop.

    Args:
        settings: how many there may be, and how long they are held.
        clock: seconds.
    """

    def __init__(self, settings: WebSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._visits: dict[str, Visit] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def of(self, tab: str) -> Visit:
        """Return the visit of a tab, begun if it is new.

        Raises:
            QueueFullError: there are too many visitors.
        """
        self.sweep()
        visit = self._visits.get(tab)
        if visit is None:
            if len(self._visits) >= self._settings.max_visitors:
                raise QueueFullError("There are too many visitors; try again later.")
            visit = self._visits[tab] = Visit(self._clock())
        visit.seen = self._clock()
        return visit

    def enter(self, tab: str, token: str) -> Visit:
        """Return the visit of a page that was opened or loaded again, or a new one.

        A token whose tab is still here is that of a copied tab, which gets a visit of its own.
        """
        here = self.of(tab)
        for old, visit in list(self._visits.items()):
            if visit.present or not secrets.compare_digest(visit.token, token):
                continue
            del self._visits[old]
            visit.present, visit.owner = here.present, here.owner or visit.owner
            self._visits[tab] = visit
        return self.of(tab)

    def with_token(self, token: str, owner: str) -> Visit | None:
        """Return the visit of a token, if this browser has it."""
        for visit in self._visits.values():
            same = secrets.compare_digest(visit.token.encode(), token.encode())
            if same and owner and secrets.compare_digest(visit.owner.encode(), owner.encode()):
                return visit
        return None

    def came(self, tab: str, owner: str) -> None:
        """Note that the tab opened its connection."""
        visit = self.of(tab)
        visit.present, visit.owner = True, owner

    def left(self, tab: str) -> Visit | None:
        """Note that the tab is gone: cancel its answer, hold its conversation for a while."""
        visit = self._visits.get(tab)
        if visit is not None:
            visit.stop()
            visit.present, visit.seen = False, self._clock()
        return visit

    def has(self, owner: str) -> bool:
        """Return whether a tab of this browser is open."""
        return any(visit.present and visit.owner == owner for visit in self._visits.values())

    def sweep(self) -> None:
        """Forget visitors that left long ago."""
        now = self._clock()
        for tab, visit in list(self._visits.items()):
            limit = self._settings.linger if visit.owner else _SILENT
            if not visit.present and not visit.busy and now - visit.seen > limit:
                del self._visits[tab]
