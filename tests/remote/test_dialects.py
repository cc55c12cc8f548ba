"""What each kind of server is sent, and what it cannot honour."""

from __future__ import annotations

import json

import pytest

from llavakit import Message, SamplingParams, Tool
from llavakit.backend import to_request
from llavakit.errors import ParameterError
from llavakit.remote.dialects import DIALECTS, to_fields

LARK = "start: /red|blue/"


def fields(name: str, tools=(), **params):
    return to_fields(DIALECTS[name], to_request("q", SamplingParams(**params), tools=tools))


@pytest.mark.parametrize("name", ["llavakit", "vllm", "sglang"])
def test_neutral_values_are_sent_because_the_checkpoint_may_have_others(name):
    sent = fields(name)
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert fields(name, top_k=5)["top_k"] == 5


def test_transformers_is_told_to_sample_or_not_to():
    greedy = json.loads(fields("transformers", temperature=0)["generation_config"])
    assert greedy == {"do_sample": False, "repetition_penalty": 1.0}
    drawn = json.loads(fields("transformers", top_k=5, min_p=0.1)["generation_config"])
    assert drawn == {"do_sample": True, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("name", "params", "what"),
    [
        ("generic", {"top_k": 5}, "top_k"),
        ("generic", {"min_p": 0.1}, "min_p"),
        ("generic", {"repetition_penalty": 1.1}, "repetition_penalty"),
        ("generic", {"grammar": "a+"}, "grammar"),
        ("sglang", {"grammar": LARK}, "grammar in Lark"),
        ("transformers", {"grammar": "a+"}, "grammar"),
        ("transformers", {"logprobs": 1}, "logprobs"),
    ],
)
def test_what_a_server_cannot_honour_is_refused(name, params, what):
    with pytest.raises(ParameterError, match=what) as caught:
        fields(name, **params)
    assert ("dialect=" in str(caught.value)) == (name == "generic")


@pytest.mark.parametrize(
    ("name", "grammar", "sent"),
    [
        ("vllm", "a+", {"structured_outputs": {"regex": "a+"}}),
        ("vllm", LARK, {"structured_outputs": {"grammar": LARK}}),
        ("llavakit", LARK, {"structured_outputs": {"grammar": LARK}}),
        ("sglang", "a+", {"regex": "a+"}),
    ],
)
def test_grammars_are_sent_in_the_servers_notation(name, grammar, sent):
    assert sent.items() <= fields(name, grammar=grammar).items()


@pytest.mark.parametrize("name", ["llavakit", "vllm", "sglang", "generic"])
def test_any_json_and_json_of_a_schema_are_response_formats(name):
    assert fields(name, json_schema=True)["response_format"] == {"type": "json_object"}
    schema = {"type": "integer"}
    assert fields(name, json_schema=schema)["response_format"]["json_schema"]["schema"] == schema


def test_the_transformers_server_is_sent_nothing_that_it_would_ignore():
    sent = fields("transformers", tools=[Tool("t")], json_schema=True, stop=("x",), seed=1)
    assert set(sent) == {
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stream",
        "generation_config",
    }


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_an_answer_that_goes_on_is_asked_for_where_servers_know_it(name):
    begun = [Message("user", "q"), Message("assistant", "It is")]
    request = to_request(begun, continue_final_message=True)
    if not DIALECTS[name].continues:
        with pytest.raises(ParameterError, match="cannot honour continue_final_message"):
            to_fields(DIALECTS[name], request)
        return
    sent = to_fields(DIALECTS[name], request)
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_nothing_is_said_of_an_answer_that_is_a_turn_of_its_own(name):
    sent = to_fields(DIALECTS[name], to_request([Message("user", "q"), Message("assistant", "a")]))
    assert not {"continue_final_message", "add_generation_prompt"} & set(sent)
