"""Server-sent events, cut wherever a network may cut them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import RemoteError
from llavakit.remote.lines import MAX_EVENT
from llavakit.remote.sse import EventReader

LINE_ENDS = ("\n", "\r\n", "\r")
lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


def read(pieces: list[bytes]) -> list[str]:
    reader = EventReader()
    told = [event for piece in pieces for event in reader.push(piece)]
    return [*told, *reader.flush()]


@st.composite
def streams(draw):
    """Events, the bytes that carry them, and where these are cut."""
    told = draw(st.lists(st.lists(lines, min_size=1, max_size=3), max_size=5))
    end = draw(st.sampled_from(LINE_ENDS))
    noise = st.sampled_from(["", f": ping{end}", f": ping{end}{end}", f"event: x{end}id: 1{end}"])
    text = "".join(
        draw(noise) + "".join(f"data: {line}{end}" for line in event) + end for event in told
    )
    data = text.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    edges = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    return ["\n".join(event) for event in told], pieces


@given(streams())
def test_events_do_not_depend_on_where_the_bytes_are_cut(stream):
    told, pieces = stream
    assert read(pieces) == told


def test_every_single_cut_of_a_stream_gives_the_same_events():
    data = '\ufeffdata: {"a": "ü€😀\u2028"}\r\n\r\n: ping\r\ndata:x\r\ndata:  y\r\n\r\n'.encode()
    expected = ['{"a": "ü€😀\u2028"}', "x\n y"]
    for cut in range(len(data) + 1):
        assert read([data[:cut], data[cut:]]) == expected
    assert read([data[i : i + 1] for i in range(len(data))]) == expected


@pytest.mark.parametrize("end", ["", "\n", "\r", "\r\n", "\n\n"])
def test_the_last_event_needs_no_blank_line(end):
    assert read([f"data: 1\n\ndata: [DONE]{end}".encode()]) == ["1", "[DONE]"]


def test_an_event_without_end_is_refused():
    reader = EventReader()
    with pytest.raises(RemoteError, match="without end"):
        for _ in range(MAX_EVENT // 2**16 + 2):
            list(reader.push(b"x" * 2**16))


@pytest.mark.parametrize("lines", [[9000], [4500, 4499]])
@pytest.mark.parametrize("cut", [10, 1000, 10**6])
def test_how_long_an_event_may_be_does_not_depend_on_where_it_is_cut(monkeypatch, lines, cut):
    monkeypatch.setattr("llavakit.remote.lines.MAX_EVENT", 10_000)
    event = [b"data: " + b"x" * size + b"\n" for size in lines]
    data = b"".join([*event, b": still working\n" * 1000, b"\n"])
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    assert [len(text) for text in read(pieces)] == [9000]
