"""Addresses: one spelling, and nothing in them that does not belong there."""

from __future__ import annotations

import pytest

from llavakit.errors import ParameterError
from llavakit.remote.address import is_loopback, normalized


@pytest.mark.parametrize(
    "spelled",
    [
        "http://localhost:8000",
        "http://localhost:8000/",
        "http://localhost:8000/v1",
        "http://localhost:8000/v1/",
        "HTTP://LOCALHOST:8000/v1/chat/completions",
        " http://localhost:8000/v1 ",
    ],
)
def test_one_server_has_one_address(spelled):
    assert normalized(spelled) == "http://localhost:8000"


@pytest.mark.parametrize(
    ("spelled", "address"),
    [
        ("https://host/openai/v1", "https://host/openai"),
        ("https://host:443/v1", "https://host"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://10.0.0.1/v2", "http://10.0.0.1/v2"),
    ],
)
def test_the_rest_of_an_address_is_kept(spelled, address):
    assert normalized(spelled) == address


@pytest.mark.parametrize(
    "spelled",
    [
        "localhost:8000",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://user:hush@host",
        "http://host?key=hush",
        "http://host/#hush",
        "http://host:99999",
        "http://ho st",
        "http://host\\@other",
        "",
    ],
)
def test_what_is_no_address_is_refused_and_not_quoted(spelled):
    with pytest.raises(ParameterError, match="base_url") as caught:
        normalized(spelled)
    assert "hush" not in str(caught.value)


def test_this_machine_is_known_by_its_names():
    here = ["http://localhost:1", "http://127.0.0.9", "http://[::1]:5", "http://a.localhost"]
    assert all(map(is_loopback, here))
    assert not any(map(is_loopback, ["http://10.0.0.1", "https://localhost.example.org"]))
