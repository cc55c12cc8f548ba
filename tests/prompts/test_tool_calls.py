from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.prompts.tool_calls import NotACallError, ToolCallReader
from llavakit.prompts.tools import CALL_START, format_tool_call

arguments = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\{}[]<>/你', max_size=8),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=4,
    ),
    max_size=3,
)
calls = st.lists(st.tuples(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), arguments), max_size=3)
cuts = st.lists(st.integers(0, 300), max_size=10)


def pieces_of(reader, answer, cuts):
    places = sorted({0, len(answer), *(cut % (len(answer) + 1) for cut in cuts)})
    return [reader.push(answer[a:b]) for a, b in itertools.pairwise(places)]


@given(text=st.text(alphabet="ab <>_tol", max_size=12), made=calls, cuts=cuts)
def test_calls_and_text_are_found_however_the_answer_comes_in(text, made, cuts):
    answer = text + "".join(format_tool_call(name, given) for name, given in made)
    reader = ToolCallReader()
    pieces = [*pieces_of(reader, answer, cuts), reader.flush(cut=False)]
    assert "".join(piece.text for piece in pieces) == text
    assert [(c.name, c.arguments) for piece in pieces for c in piece.calls] == made
    assert reader.count == len(made)


@given(made=calls.filter(bool), cuts=cuts, end=st.integers(0, 300))
def test_of_an_answer_that_ends_anywhere_no_call_has_other_arguments_than_were_written(
    made, cuts, end
):
    answer = "".join(format_tool_call(name, given) for name, given in made)
    answer = answer[: end % (len(answer) + 1)]
    reader = ToolCallReader()
    pieces = [*pieces_of(reader, answer, cuts), reader.flush(cut=True)]
    told = [(c.name, c.arguments) for piece in pieces for c in piece.calls]
    assert told == made[: len(told)]
    cut = [c for piece in pieces for c in piece.cut]
    begun = answer.count(CALL_START) if all(CALL_START not in str(m) for m in made) else None
    assert begun is None or len(told) + len(cut) == begun
    for one in cut:
        name, arguments = made[len(told)]
        assert name.startswith(one.name)
        written = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        assert written.startswith(one.arguments) and written != one.arguments


def test_nothing_of_a_call_is_told_before_it_is_whole():
    reader = ToolCallReader()
    assert reader.push('<tool_call>{"name":"pay","arguments":{"amount":345').calls == ()
    assert reader.push("6}").calls == ()
    (call,) = reader.push("}</tool_call>").calls
    assert (call.name, call.arguments) == ("pay", {"amount": 3456})


def test_whole_arguments_are_a_call_although_the_notation_around_them_was_cut():
    reader = ToolCallReader()
    reader.push('<tool_call>{"name":"pay","arguments":{"amount":3456}')
    assert reader.flush(cut=True).calls[0].arguments == {"amount": 3456}


def test_what_was_written_between_the_marks_of_a_call_and_is_none_is_an_error():
    with pytest.raises(NotACallError, match="pay 3456"):
        ToolCallReader().push("<tool_call>pay 3456</tool_call>")
    reader = ToolCallReader()
    reader.push('<tool_call>{"name":"pay"')
    with pytest.raises(NotACallError):
        reader.flush(cut=False)


def test_text_that_only_looks_like_a_call_is_text():
    reader = ToolCallReader()
    pieces = [reader.push("a <tool"), reader.push("box>"), reader.flush(cut=True)]
    assert "".join(piece.text for piece in pieces) == "a <toolbox>"
