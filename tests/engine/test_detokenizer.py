from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.engine.detokenizer import Detokenizer, StopStrings
from llavakit.model.loader import load_reader
from tests.tiny import TinyModel


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab 你好🐱é\n", max_size=30))
def test_pieces_make_up_the_text_and_split_no_character(tiny: TinyModel, text: str):
    tokenizer = tiny.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids] + [detokenizer.flush()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_broken_character_at_the_end_is_told_as_broken(tiny: TinyModel):
    tokenizer = tiny.processor.tokenizer
    ids = tokenizer.encode("好", add_special_tokens=False)[:2]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in ids] == ["", ""]
    assert "\ufffd" in detokenizer.flush()


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(pieces, stops):
    whole = "".join(pieces)
    holder = StopStrings(stops)
    told = ""
    for piece in pieces:
        told += holder.push(piece)
        if holder.hit is not None:
            break
        assert not any(stop in told for stop in stops)
    if holder.hit is None:
        told += holder.flush()
        assert told == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(told + holder.hit)
        assert not any(stop in told for stop in stops)


@pytest.mark.parametrize("stops", [("end", "stop"), ("stop", "end")])
def test_the_earliest_stop_string_ends_the_text_and_not_the_one_that_is_listed_first(stops):
    holder = StopStrings(stops)
    assert holder.push("go, stop and then end") == "go, "
    assert holder.hit == "stop"


def test_text_is_told_as_soon_as_no_stop_string_can_begin_in_it():
    holder = StopStrings(["</s>"])
    assert [holder.push(piece) for piece in ("a<", "b", "</", "s")] == ["a", "<b", "", ""]
    assert holder.flush() == "</s"


@pytest.mark.parametrize("stops", [(), ("zzz",)])
def test_without_a_stop_string_nothing_is_lost(stops):
    holder = StopStrings(stops)
    assert holder.push("hello z") + holder.flush() == "hello z"


def test_bytes_that_make_no_character_are_given_up_and_not_decoded_again_and_again(demo_dir):
    tokenizer = load_reader(demo_dir).tokenizer.tokenizer
    broken = tokenizer.convert_tokens_to_ids("<0xC5>")
    word = tokenizer.encode("circle", add_special_tokens=False)
    ids = [*[broken] * 100, *word]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(one) for one in ids]
    assert len(detokenizer._window) < 40
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)
