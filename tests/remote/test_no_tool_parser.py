"""Tools on a vLLM that was started without a parser of tool calls."""

import json

import pytest
from jsonschema import Draft202012Validator

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


CITY = Tool(
    "city",
    "Name a city.",
    {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/Name"}},
        "required": ["name"],
        "$defs": {"Name": {"enum": ["Oslo", "Rome"]}},
    },
)
NO_TOOLS = {"chat_template_caps": {"supports_tools": False}}


@pytest.fixture
def llama(peer, remote):
    """A llama-server whose template knows no tools."""
    peer.routes["/props"] = lambda handler: handler.json(NO_TOOLS)
    return lambda: remote(dialect="llamacpp")


@pytest.mark.parametrize("choice", ["required", "city"])
def test_llama_cpp_is_asked_for_json_of_a_call_where_its_template_knows_no_tools(
    peer, llama, choice
):
    peer.says(words('{"name": "city", ', '"arguments": {"name": "Oslo"}}'))
    answer = llama().generate("Where?", tools=[LOOK, CITY], tool_choice=choice)
    assert [(one.name, one.arguments) for one in answer.tool_calls] == [("city", {"name": "Oslo"})]
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    [asked] = peer.asked
    assert "You can call these tools" in json.dumps(asked["messages"])
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(asked)
    schema = asked["response_format"]["json_schema"]["schema"]
    allowed = Draft202012Validator(schema)
    assert allowed.is_valid({"name": "city", "arguments": {"name": "Rome"}})
    assert not allowed.is_valid({"name": "city", "arguments": {"name": "Bonn"}})
    assert not allowed.is_valid({"name": "count", "arguments": {}})
    look = {"name": "look", "arguments": {"shape": "circle"}}
    assert allowed.is_valid(look) == (choice == "required")


def test_llama_cpp_may_call_a_tool_or_not_where_its_template_knows_none(peer, llama):
    peer.says(words("Just words."), words("So: ", CALL), words("<tool_call>no</tool_call>"))
    backend = llama()
    assert backend.generate("Look.", tools=[LOOK]).text == "Just words."
    assert [call.name for call in backend.generate("Look.", tools=[LOOK]).tool_calls] == ["look"]
    with pytest.raises(RemoteError, match="began a tool call"):
        backend.generate("Look.", tools=[LOOK])
    assert not any("response_format" in asked or "tools" in asked for asked in peer.asked)


@pytest.mark.parametrize("text", ["Just words.", '{"name": "look", "arguments": {"shape": 1}}'])
def test_what_is_no_call_is_an_error_where_llama_cpp_was_asked_for_one(peer, llama, text):
    peer.says(words(text))
    with pytest.raises(RemoteError):
        llama().generate("Look.", tools=[LOOK], tool_choice="required")


def test_llama_cpp_without_jinja_is_asked_otherwise(peer, remote):
    refused = {"error": {"code": 500, "message": "tools param requires --jinja flag"}}
    peer.says(refuses(500, refused), words('{"name": "count", "arguments": {}}'))
    backend = remote(dialect="llamacpp", max_retries=0)
    answer = backend.generate("Count.", tools=[COUNT], tool_choice="required")
    assert [call.name for call in answer.tool_calls] == ["count"]
    assert "tools" in peer.asked[0] and "tools" not in peer.asked[1]


def test_llama_cpp_is_sent_tools_where_its_template_knows_them(peer, remote):
    caps = {"chat_template_caps": {"supports_tools": True}}
    peer.routes["/props"] = lambda handler: handler.json(caps)
    peer.says(called(("count", "{}")))
    backend = remote(dialect="llamacpp")
    assert backend.generate("Count.", tools=[COUNT]).tool_calls[0].name == "count"
    assert "tools" in peer.asked[0]


def test_usage_comes_also_where_one_call_at_most_is_asked_for(peer, remote):
    peer.says(said(SENTENCES["required"]), words(CALL))
    options = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False}
    assert remote().generate("Look.", **options).usage.completion_tokens == 3


def test_the_grammar_of_words_needs_no_intersection(peer, remote):
    """The xgrammar of vLLM 0.32 refuses intersections and complements of terminals."""
    peer.says(said(SENTENCES["auto"]), words("Just words."))
    remote().generate("Look.", tools=[LOOK])
    grammar = peer.asked[1]["structured_outputs"]["grammar"]
    assert "&" not in grammar and "~" not in grammar
    assert obeys(grammar, "a < b <tool <tool_cal <<tool_call") and not obeys(grammar, "<tool_call>")


def _png():
    import io

    from PIL import Image as PILImage

    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()
