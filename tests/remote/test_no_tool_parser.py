"""Tools on a vLLM that was started without a parser of tool calls."""

import json

import pytest

from llavakit import Image, Message, SamplingParams, Text, Tool
from llavakit.errors import RemoteError
from llavakit.images import open_picture
from tests.remote.scripted import called, refuses, words

pytestmark = pytest.mark.enable_socket

LOOK = Tool(
    "look",
    "Look at a shape.",
    {"type": "object", "properties": {"shape": {"type": "string"}}, "required": ["shape"]},
)
COUNT = Tool("count", "Count shapes.", {"type": "object", "properties": {}})
CALL = '<tool_call>{"name":"look","arguments":{"shape":"circle"}}</tool_call>'
SENTENCES = {
    "auto": '"auto" tool choice requires --enable-auto-tool-choice and '
    "--tool-call-parser to be set",
    "required": 'tool_choice="required" requires --tool-call-parser to be set',
    "look": "tool_choice requires --tool-call-parser to be set",
}
"""What vLLM's frontend says (vllm/entrypoints/openai), and words of the same kind."""


def said(sentence):
    error = {"message": sentence, "type": "BadRequestError", "param": None, "code": 400}
    return refuses(400, {"error": error})


def obeys(grammar, text):
    import llguidance

    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("choice", ["auto", "required", "look"])
def test_it_is_asked_in_our_notation_held_by_a_grammar(peer, remote, choice):
    peer.says(said(SENTENCES[choice]), words("<tool_", CALL[6:]), words(CALL))
    backend = remote()
    options = {"tools": [LOOK, COUNT], "tool_choice": choice}
    answer = backend.generate("Look at the circle.", SamplingParams(max_tokens=50), **options)
    assert [(one.name, one.arguments) for one in answer.tool_calls] == [
        ("look", {"shape": "circle"})
    ]
    assert answer.text == "" and answer.finish_reason == "tool_calls"
    first, second = peer.asked
    assert "tools" in first and "structured_outputs" not in first
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(second)
    told = json.dumps(second["messages"])
    assert "You can call these tools" in told and "Count shapes." in told
    grammar = second["structured_outputs"]["grammar"]
    assert obeys(grammar, CALL)
    assert obeys(grammar, "Just words.") == (choice == "auto")
    assert obeys(grammar, CALL.replace("look", "count")) is False
    backend.generate("Again.", **options)  # it is known now
    assert len(peer.asked) == 3 and "structured_outputs" in peer.asked[2]


def test_words_images_and_other_requests_go_as_before(peer, remote):
    peer.says(said(SENTENCES["auto"]), words("It is", " red."), words("red"))
    backend = remote()
    image = Image(open_picture(_png()))
    question = [Message("user", [image, Text("What colour?")])]
    assert backend.generate(question, tools=[LOOK]).text == "It is red."
    parts = [part for one in peer.asked[1]["messages"] for part in one["content"]]
    assert any(isinstance(part, dict) and part["type"] == "image_url" for part in parts)
    assert backend.generate(question).text == "red"
    assert "structured_outputs" not in peer.asked[2] and "tools" not in peer.asked[2]


def test_a_schema_beside_tools_is_in_the_same_grammar(peer, remote):
    peer.says(said(SENTENCES["auto"]), words('{"sides":4}'))
    params = SamplingParams(json_schema={"type": "object", "required": ["sides"],
                                         "properties": {"sides": {"type": "integer"}}})  # fmt: skip
    assert remote().generate("A square.", params, tools=[LOOK]).text == '{"sides":4}'
    asked = peer.asked[1]
    assert "response_format" not in asked
    assert obeys(asked["structured_outputs"]["grammar"], '{"sides":4}')
    assert not obeys(asked["structured_outputs"]["grammar"], "Just words.")


def test_a_demanded_call_that_does_not_come_is_an_error(peer, remote):
    peer.says(said(SENTENCES["required"]), words("No."))
    with pytest.raises(RemoteError, match="A tool call was demanded"):
        remote().generate("Look.", tools=[LOOK], tool_choice="required")


@pytest.mark.parametrize("choice", ["required", "look"])
@pytest.mark.parametrize("dialect", ["vllm", "sglang", "llamacpp", "lmstudio", "generic"])
def test_a_demanded_call_is_missed_on_every_kind_of_server(peer, remote, dialect, choice):
    peer.says(words("Just words."))
    with pytest.raises(RemoteError, match="was demanded, and the answer has none"):
        remote(dialect=dialect).generate("Look.", tools=[LOOK, COUNT], tool_choice=choice)
    if choice == "look":
        peer.says(called(("count", "{}")))
        with pytest.raises(RemoteError, match="'count' was called"):
            remote(dialect=dialect).generate("Look.", tools=[LOOK, COUNT], tool_choice=choice)


@pytest.mark.parametrize("sentence", ["The model is on fire.", "temperature must be positive"])
def test_other_refusals_are_errors_and_asked_once(peer, remote, sentence):
    peer.says(said(sentence))
    with pytest.raises(RemoteError, match=sentence[:20]):
        remote().generate("Look.", tools=[LOOK])
    assert len(peer.asked) == 1


def test_a_server_that_refuses_the_other_way_too_is_not_asked_for_ever(peer, remote):
    peer.says(said(SENTENCES["auto"]))
    with pytest.raises(RemoteError, match="tool-call-parser"):
        remote().generate("Look.", tools=[LOOK])
    assert len(peer.asked) <= 4


def _png():
    import io

    from PIL import Image as PILImage

    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()
