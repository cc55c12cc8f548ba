"""An answer that goes on with words that are there: what is told is what is new."""

from __future__ import annotations

import pytest

from llavakit.engine.detokenizer import Detokenizer
from llavakit.values import Message, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.mark.parametrize("begun", ["Hello!", "Hello! How", "There is a "])
def test_what_is_new_follows_the_words_as_they_are(demo_backend, begun):
    asked = [Message("user", "hello"), Message("assistant", begun)]
    new = demo_backend.generate(asked, GREEDY, continue_final_message=True).text
    chunks = list(demo_backend.stream(asked, GREEDY, continue_final_message=True))
    assert "".join(chunk.text for chunk in chunks) == new
    assert new and begun not in new
    assert new.startswith(" ") or begun.endswith(" ")


def test_its_prompt_is_counted_as_it_is_read(demo_backend):
    asked = [Message("user", "hello"), Message("assistant", "There is a")]
    for continues in (True, False):
        options = {"continue_final_message": continues}
        usage = demo_backend.generate(asked, SamplingParams(max_tokens=1), **options).usage
        assert demo_backend.count_tokens(asked, **options) == usage.prompt_tokens
    assert demo_backend.count_tokens(asked) > demo_backend.count_tokens(
        asked, continue_final_message=True
    )


def test_the_space_that_a_tokenizer_takes_from_first_words_is_told(demo_backend):
    tokenizer = demo_backend._get_reader().tokenizer.tokenizer
    ids = tokenizer.encode("The circle is red", add_special_tokens=False)
    before, new = ids[:-1], ids[-1:]
    words = Detokenizer(tokenizer, before)
    told = "".join(words.push(token) for token in new) + words.flush()
    assert tokenizer.decode(before) + told == "The circle is red"


def test_a_grammar_holds_for_what_is_new(demo_backend):
    asked = [Message("user", "hello"), Message("assistant", "The circle is")]
    params = SamplingParams(temperature=0, max_tokens=24, grammar="(red|blue)")
    new = demo_backend.generate(asked, params, continue_final_message=True).text
    assert new.strip() in ("red", "blue")
