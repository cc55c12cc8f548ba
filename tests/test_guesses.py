"""Wrong guesses make the next one wait, longer after each, for the client that guessed."""

from __future__ import annotations

import threading

import pytest

from llavakit._guesses import FORGOTTEN, FREE, LONGEST, WrongGuesses, network


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guesses(clock: Clock) -> WrongGuesses:
    return WrongGuesses(clock)


def test_the_wait_doubles_up_to_the_longest(guesses: WrongGuesses, clock: Clock) -> None:
    waits = []
    for _ in range(FREE + 9):
        guesses.wrong("1.2.3.4")
        waits.append(guesses.wait("1.2.3.4"))
        clock.now += waits[-1]
        assert guesses.wait("1.2.3.4") == 0
    assert waits == [0] * FREE + [1, 2, 4, 8, 16, 32, LONGEST, LONGEST, LONGEST]


def test_the_wait_passes_with_time(guesses: WrongGuesses, clock: Clock) -> None:
    for _ in range(FREE + 3):
        guesses.wrong("a")
    assert guesses.wait("a") == 4
    clock.now += 3
    assert guesses.wait("a") == 1


def test_guesses_are_forgotten_after_a_while(guesses: WrongGuesses, clock: Clock) -> None:
    for _ in range(FREE + 20):
        guesses.wrong("a")
    clock.now += FORGOTTEN
    guesses.wrong("a")
    assert guesses.wait("a") == 0


def test_very_many_guesses_do_not_overflow(guesses: WrongGuesses) -> None:
    for _ in range(3000):
        guesses.wrong("a")
    assert guesses.wait("a") == LONGEST


def test_the_same_wrong_key_again_counts_once(guesses: WrongGuesses) -> None:
    for _ in range(FREE + 5):
        guesses.wrong("a", b"old key")
    assert guesses.wait("a") == 0
    assert guesses.is_last("a", b"old key")
    assert not guesses.is_last("a", b"other key")


def test_a_guess_that_was_right_is_taken_back(guesses: WrongGuesses) -> None:
    for _ in range(FREE + 5):
        guesses.wrong("a")
        guesses.undo("a")
    assert guesses.wait("a") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.3.4", "1.2.3.4", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("testclient", "testclient", True),
        ("", "1.2.3.4", False),
    ],
)
def test_a_client_is_its_network(one: str, other: str, same: bool) -> None:
    assert (network(one) == network(other)) is same


def test_the_number_of_remembered_clients_is_bounded(guesses: WrongGuesses) -> None:
    for _ in range(FREE + 1):
        guesses.wrong("old")
    for number in range(5000):
        guesses.wrong(f"10.0.{number >> 8}.{number & 255}")
    assert len(guesses) <= 4096
    assert guesses.wait("old") == 0


def test_guesses_of_many_threads_are_all_counted(guesses: WrongGuesses) -> None:
    def guess() -> None:
        for _ in range(500):
            guesses.wrong("a")
            guesses.undo("a")

    threads = [threading.Thread(target=guess) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(FREE):
        guesses.wrong("a")
    assert guesses.wait("a") == 0
    guesses.wrong("a")
    assert guesses.wait("a") == 1
