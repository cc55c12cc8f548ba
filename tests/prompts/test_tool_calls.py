from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from llavakit.prompts.tool_calls import ToolCallReader
from llavakit.prompts.tools import format_tool_call

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


@given(
    text=st.text(alphabet="ab <>_tol", max_size=12),
    made=calls,
    cuts=st.lists(st.integers(0, 300), max_size=10),
)
def test_calls_and_text_are_found_wherever_the_answer_is_cut(text, made, cuts):
    answer = text + "".join(format_tool_call(name, given) for name, given in made)
    reader = ToolCallReader()
    places = sorted({0, len(answer), *(cut % (len(answer) + 1) for cut in cuts)})
    pieces = [reader.push(answer[a:b]) for a, b in itertools.pairwise(places)] + [reader.flush()]
    assert "".join(piece.text for piece in pieces) == text
    for piece in pieces:
        assert len({c.index for c in piece.calls}) == len(piece.calls)
    names = {c.index: c.name for piece in pieces for c in piece.calls if c.name}
    found = [
        (
            names[index],
            json.loads("".join(c.arguments for p in pieces for c in p.calls if c.index == index)),
        )
        for index in range(reader.count)
    ]
    assert found == made


def test_arguments_stream_before_the_call_is_complete():
    reader = ToolCallReader()
    first = reader.push('<tool_call>{"name":"add","arguments":{"a":1')
    assert [(c.name, c.arguments) for c in first.calls] == [("add", '{"a":1')]
    assert reader.count == 0


def test_text_that_only_looks_like_a_call_is_text():
    reader = ToolCallReader()
    pieces = [reader.push("a <tool"), reader.push("box>"), reader.flush()]
    assert "".join(piece.text for piece in pieces) == "a <toolbox>"
