"""Which answers that a limit of tokens ended are whole."""

import pytest

from llavakit._json import is_whole


@pytest.mark.parametrize("text", ['{"a": 1}', ' {"a": [1]}\n', "[22]", '"22"', "true", "null"])
def test_json_that_ends_by_itself_is_whole(text):
    assert is_whole(text)


@pytest.mark.parametrize(
    "text", ["", " ", '{"a": 1', '{"a": 1}, {', "[22", '"22', "tru", "22", "-2.5", "1e9"]
)
def test_json_that_may_go_on_is_not_whole(text):
    assert not is_whole(text)


def test_json_too_deep_to_be_read_is_not_whole():
    assert not is_whole("[" * 100_000)
