"""What each kind of server is sent, and what it cannot honour."""

from __future__ import annotations

import json

import pytest

from llavakit import Message, SamplingParams, Tool
from llavakit.backend import to_request
from llavakit.errors import ParameterError
from llavakit.remote.dialects import DIALECTS
from llavakit.remote.request_fields import to_fields

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
    sent = to_fields(DIALECTS[name], to_request([Message("user", "q")]))
    assert not {"continue_final_message", "add_generation_prompt"} & set(sent)


def test_llama_cpp_has_its_own_names():
    sent = fields("llamacpp", top_k=5, min_p=0.1, repetition_penalty=1.2, seed=3)
    assert (sent["top_k"], sent["min_p"], sent["repeat_penalty"]) == (5, 0.1, 1.2)
    assert sent["repeat_last_n"] >= 200_000 and sent["seed"] == 3  # it refuses -1
    assert "repetition_penalty" not in sent
    neutral = fields("llamacpp")
    assert (neutral["top_k"], neutral["min_p"], neutral["repeat_penalty"]) == (0, 0.0, 1.0)
    assert "repeat_last_n" not in neutral
    assert fields("llamacpp", logit_bias={3: -100})["logit_bias"] == [[3, -100.0]]


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_llama_cpps_penalties_look_at_the_whole_text(name):
    assert fields("llamacpp", **{name: 1.5})["repeat_last_n"] >= 200_000


def test_a_new_turn_behind_the_assistants_is_refused_where_that_would_be_continued():
    begun = [Message("user", "q"), Message("assistant", "It is")]
    with pytest.raises(ParameterError, match="would continue"):
        to_fields(DIALECTS["llamacpp"], to_request(begun))
    assert to_fields(DIALECTS["vllm"], to_request(begun))
    going_on = to_request(begun, continue_final_message=True)
    assert to_fields(DIALECTS["llamacpp"], going_on)["continue_final_message"] is True


@pytest.mark.parametrize(("asked", "sent"), [(0, 1), (1, 1), (4, 4)])
def test_llama_cpp_is_asked_for_an_alternative_or_it_sends_no_logprobs(asked, sent):
    told = fields("llamacpp", logprobs=asked)
    assert (told["logprobs"], told["top_logprobs"]) == (True, sent)


def test_lm_studio_takes_schemas_alone():
    form = fields("lmstudio", json_schema=True)["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == {"type": "object"}
    sent = fields("lmstudio", top_k=5, repetition_penalty=1.2)
    assert (sent["top_k"], sent["repeat_penalty"]) == (5, 1.2) and "min_p" not in sent


@pytest.mark.parametrize(
    ("name", "params", "what"),
    [
        ("llamacpp", {"grammar": "a+"}, "grammar"),
        ("ollama", {"logit_bias": {1: 2}}, "logit_bias"),
        ("lmstudio", {"min_p": 0.1}, "min_p"),
        ("lmstudio", {"logprobs": 1}, "logprobs"),
        ("lmstudio", {"grammar": LARK}, "grammar"),
    ],
)
def test_what_servers_of_laptops_cannot_honour_is_refused(name, params, what):
    with pytest.raises(ParameterError, match=what):
        fields(name, **params)


@pytest.mark.parametrize("choice", ["required", "look"])
def test_ollama_ignores_a_demand_for_a_call_so_it_is_refused(choice):
    request = to_request("q", SamplingParams(), tools=[Tool("look")], tool_choice=choice)
    with pytest.raises(ParameterError, match="tool_choice"):
        to_fields(DIALECTS["ollama"], request)
    assert to_fields(DIALECTS["llamacpp"], request)["tool_choice"]
