"""Penalties and biases: sent to servers that know them, and refused by name for all others."""

from __future__ import annotations

import pytest

from llavakit import SamplingParams
from llavakit.backend import to_request
from llavakit.errors import ParameterError
from llavakit.remote.dialects import DIALECTS
from llavakit.remote.request_fields import to_fields

NAMES = ("presence_penalty", "frequency_penalty", "logit_bias")


def fields(name: str, **params):
    return to_fields(DIALECTS[name], to_request("q", SamplingParams(**params)))


@pytest.mark.parametrize("name", DIALECTS)
def test_neutral_values_are_not_sent(name):
    sent = fields(name, presence_penalty=0, frequency_penalty=0.0, logit_bias={})
    assert not set(NAMES) & set(sent)


@pytest.mark.parametrize("name", ["llavakit", "vllm", "sglang"])
def test_servers_that_know_all_are_sent_all_in_openais_notation(name):
    sent = fields(name, presence_penalty=1, frequency_penalty=-0.5, logit_bias={"9": 1, 5: -2})
    assert [sent[name] for name in NAMES] == [1, -0.5, {"5": -2.0, "9": 1.0}]


@pytest.mark.parametrize(
    ("name", "params", "sent"),
    [
        ("generic", {"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ("generic", {"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
        ("transformers", {"logit_bias": {3: 7}}, {"logit_bias": {"3": 7.0}}),
    ],
)
def test_others_are_sent_what_they_know(name, params, sent):
    assert sent.items() <= fields(name, **params).items()


@pytest.mark.parametrize(
    ("name", "params", "what"),
    [
        ("generic", {"logit_bias": {3: 1}}, "logit_bias"),
        ("transformers", {"presence_penalty": 1}, "presence_penalty"),
        ("transformers", {"frequency_penalty": 1}, "frequency_penalty"),
    ],
)
def test_what_a_server_does_not_know_is_refused_by_name(name, params, what):
    with pytest.raises(ParameterError, match=f"cannot honour {what}"):
        fields(name, **params)
