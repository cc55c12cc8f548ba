"""What a forked child finds of its parent's locks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable

import pytest

from llavakit._forks import ForkLock, in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def exit_status(child: Callable[[], bool]) -> int:
    """0 if a forked child finds it so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which is what this is about
        number = os.fork()
    if number == 0:
        try:
            os._exit(0 if child() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def enters(lock: ForkLock) -> bool:
    done = threading.Event()

    def work() -> None:
        with lock:
            done.set()

    threading.Thread(target=work, daemon=True).start()
    return done.wait(5)


def test_a_lock_that_another_thread_held_is_free_in_the_child() -> None:
    lock, held, over = ForkLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    assert exit_status(lambda: enters(lock)) == 0
    over.set()
    thread.join()
    assert enters(lock)


def test_a_thread_that_forks_within_a_lock_leaves_it_in_both_processes() -> None:
    lock = ForkLock()

    with lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        number = os.fork()
    if number == 0:
        os._exit(0 if enters(lock) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
    assert enters(lock)


def test_a_lock_is_held_by_one_thread_at_a_time() -> None:
    lock = ForkLock()
    with lock:
        thread = threading.Thread(target=enters, args=(lock,), daemon=True)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(5)
    assert not thread.is_alive()


def test_what_was_registered_runs_in_the_child_alone() -> None:
    ran: list[int] = []
    in_child(lambda: ran.append(os.getpid()))
    assert exit_status(lambda: ran == [os.getpid()]) == 0
    assert ran == []
