"""The decorator that holds arguments to their hints, and what it says."""

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import pytest

from llavakit._checks import Said, Takes, checked, members, plain
from llavakit._hints import allowed
from llavakit.errors import ParameterError

Bound = TypeVar("Bound", bound=int)


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "words"),
    [
        (int, [1, 0], [True, 1.0, "1", None], "a whole number"),
        (float, [1, 1.5], [True, "1.5"], "a number"),
        (bool, [True], [1, None], "True or False"),
        (str | None, ["", None], [b"", 1], "a string or None"),
        (None | str, [None], [1], "a string or None"),
        (str | os.PathLike[str], ["a"], [None, b"a"], "a string or a path"),
        (list[int], [[], [1]], ["1", (1,), [True]], "a list of whole numbers"),
        (Sequence[str], [["a"], ("a",), []], ["a", b"a", {"a"}, [1]], "a list of strings"),
        (Iterable[str], [{"a"}, iter([1])], ["a", {"a": 1}, 3, [1]], "a list of strings"),
        (tuple[int, str], [(1, "a")], [(1,), ("a", 1), [1, "a"]], "a tuple of a whole number, a"),
        (tuple[int, ...], [(), (1, 2)], [(None,)], "a tuple of whole numbers"),
        (Mapping[str, int], [{}, {"a": 1}], [[], {1: 1}, {"a": "b"}], "a dict of whole numbers"),
        (Literal["a", 1], ["a", 1], ["b", True, []], "'a' or 1"),
        (Callable[[int], None], [print, int], [None, 3], "a function"),
        (type[int], [int, bool], [str, 3], "a subclass of int"),
        (Bound, [1], ["a"], "a whole number"),
        (Annotated[int, Takes(int | str)], [1, "a"], [None], "a whole number or a string"),
        (Annotated[int, Said("the number of a page")], [1], [None], "the number of a page"),
        (Any, [None, ...], [], "anything"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hint_takes_what_it_says_and_nothing_else(hint, right, wrong, words):
    what = allowed(hint)
    assert all(map(what.holds, right))
    assert not any(map(what.holds, wrong))
    assert str(what).startswith(words)


def test_a_hint_of_an_unknown_kind_is_a_fault_of_the_signature():
    with pytest.raises(TypeError, match="not a hint that can be checked"):
        allowed(3)


@checked
def drawn(pages: Iterable[int], *more: int, name: str | None = None, **rest: int) -> list[int]:
    """Draws pages."""
    return [*pages, *more]


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((None,), {}, "pages is None; it must be a list of whole numbers."),
        (("12",), {}, "pages is '12'; it must be a list of whole numbers."),
        (([object()],), {}, "pages is [<object>]; it must be a list of whole numbers."),
        (([], "x"), {}, "more is 'x'; it must be a whole number."),
        (([],), {"name": 3}, "name is 3; it must be a string or None."),
        (([],), {"dpi": "x"}, "dpi is 'x'; it must be a whole number."),
        ((int,), {}, "pages is the class int; it must be a list of whole numbers."),
        ((drawn,), {}, "pages is the function drawn; it must be a list of whole numbers."),
    ],
)
def test_a_wrong_argument_is_told_by_name_and_value(arguments, options, sentence):
    with pytest.raises(ParameterError) as told:
        drawn(*arguments, **options)
    assert str(told.value) == sentence


def test_a_long_value_is_told_shortly_and_a_key_not_at_all():
    @checked
    def opened(data: int = 0, *, api_key: str = "") -> None: ...

    with pytest.raises(ParameterError) as told:
        opened("A" * 1_000_000)
    assert len(str(told.value)) < 200
    with pytest.raises(ParameterError) as told:
        opened(api_key=b"secret")
    assert str(told.value) == "api_key must be a string."


def test_a_missing_argument_and_one_that_there_is_not_are_told_by_name():
    with pytest.raises(TypeError, match=r"^drawn: missing a required argument: 'pages'\.$"):
        drawn()

    @checked
    def shown(page: int) -> None: ...

    with pytest.raises(TypeError, match="unexpected keyword argument 'pagse'"):
        shown(1, pagse=2)


def test_arguments_are_passed_on_as_they_are():
    given = iter([1, 2])
    assert drawn(given, 3) == [1, 2, 3]


def test_a_checked_function_looks_like_itself():
    assert drawn.__name__ == "drawn" and drawn.__doc__ == "Draws pages."
    assert list(inspect.signature(drawn).parameters) == ["pages", "more", "name", "rest"]


def test_a_generator_refuses_at_the_call_and_not_at_the_first_element():
    @checked
    def numbers(last: int) -> Iterable[int]:
        yield from range(last)

    assert list(numbers(2)) == [0, 1]
    with pytest.raises(ParameterError, match="last is '2'"):
        numbers("2")


def test_a_coroutine_function_stays_one():
    @checked
    async def number(last: int) -> int:
        return last

    assert inspect.iscoroutinefunction(number) and asyncio.run(number(2)) == 2
    with pytest.raises(ParameterError, match="last is None"):
        asyncio.run(number(None))


def test_a_checked_dataclass_is_checked_also_where_it_is_replaced():
    @checked
    @dataclass(frozen=True, slots=True)
    class Range:
        first: int
        last: Annotated[int, Takes(int | str)] = 0

    assert replace(Range(1), last="2").last == "2"
    with pytest.raises(ParameterError, match="first is None"):
        Range(None)
    with pytest.raises(ParameterError, match="last is None"):
        replace(Range(1), last=None)


def test_members_are_looked_at_one_by_one_also_those_of_a_generator():
    assert members("pages", iter([1, 2]), int) == [1, 2]
    with pytest.raises(ParameterError, match="pages holds 'a'; each must be a whole number"):
        members("pages", iter([1, "a"]), int)
    with pytest.raises(ParameterError, match="pages is 'ab'"):
        members("pages", "ab", str)


def test_what_json_cannot_hold_is_refused():
    plain("settings", {"a": [1, None]})
    with pytest.raises(ParameterError, match="settings must be what JSON can hold"):
        plain("settings", {"a": object()})


def test_the_checks_need_no_library():
    script = (
        "import sys; sys.modules['pydantic'] = None\n"
        "import llavakit, llavakit.documents\n"
        "try: llavakit.documents.open_files(None)\n"
        "except llavakit.errors.ParameterError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.stdout.startswith("sources is None; it must be"), told.stderr
