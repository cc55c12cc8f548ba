"""The line of those who wait for the model: bounded, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque

from llavakit.errors import QueueFullError


class Queue:
    """Seats at the model, and a queue before them. Belongs to one event loop.

    The engine batches requests that have a seat. It has a queue of its own, but does not report
    places in it; so requests that would wait there wait here.

    Args:
        seats: how many are served at once.
        places: how many may wait.
    """

    def __init__(self, seats: int, places: int) -> None:
        self._seats = seats
        self._places = places
        self._seated: set[Ticket] = set()
        self._waiting: deque[Ticket] = deque()

    @property
    def seated(self) -> int:
        """Return how many are served now."""
        return len(self._seated)

    @property
    def waiting(self) -> int:
        """Return how many wait now."""
        return len(self._waiting)

    def enter(self) -> Ticket:
        """Take a seat, or the last place in the queue.

        Raises:
            QueueFullError: the queue is full.
        """
        if len(self._seated) >= self._seats and len(self._waiting) >= self._places:
            raise QueueFullError(
                f"Too many are waiting ({len(self._waiting)}); try again in a moment."
            )
        ticket = Ticket(self)
        self._waiting.append(ticket)
        self._move_up()
        return ticket

    def place_of(self, ticket: Ticket) -> int:
        """Return 0 for a ticket with a seat, 1 for the next one; one that left has no place."""
        if ticket in self._seated:
            return 0
        return self._waiting.index(ticket) + 1

    def leave(self, ticket: Ticket) -> None:
        """Give the seat or the place back; safe to call twice."""
        self._seated.discard(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._move_up()

    def _move_up(self) -> None:
        while self._waiting and len(self._seated) < self._seats:
            self._seated.add(self._waiting.popleft())
        for ticket in (*self._seated, *self._waiting):
            ticket.moved.set()


class Ticket:
    """A place in the queue, or a seat; ``moved`` is set whenever the queue has moved."""

    def __init__(self, line: Queue) -> None:
        self._line = line
        self.moved = asyncio.Event()

    @property
    def place(self) -> int:
        """Return 0 with a seat, otherwise the place in the queue, from 1."""
        return self._line.place_of(self)

    def leave(self) -> None:
        """Make room; safe to call twice."""
        self._line.leave(self)
        self.moved.set()
