"""Tools, calls and results on servers whose chat template may have no place for them."""

import json

import pytest

from llavakit import Message, Tool, ToolCall
from llavakit.errors import ParameterError
from tests.remote.scripted import OLLAMA_END, called, lines, refuses, says_ollama, words

pytestmark = pytest.mark.enable_socket

COUNT = Tool("count", "Count shapes.", {"type": "object", "properties": {}})
BARE = '{"name": "count", "arguments": {}}'
HISTORY = [
    Message("user", "How many?"),
    Message("assistant", "", tool_calls=[ToolCall("call_1", "count", {"shape": "circle"})]),
    Message("tool", "Seven.", tool_call_id="call_1"),
]
PROBES = {"vllm": "/tokenize", "llamacpp": "/props", "ollama": "/api/show"}


def says(kind, text):
    return says_ollama(text) if kind == "ollama" else words(text)


def drops(peer, kind):
    """Let a server say that its template knows no tools."""
    answers = {
        "vllm": {"count": 12},
        "llamacpp": {"chat_template_caps": {"supports_tools": True, "supports_tool_calls": False}},
        "ollama": {"capabilities": ["completion", "vision"]},
    }
    peer.routes[PROBES[kind]] = lambda handler: handler.json(answers[kind])


def counts(peer, *kept):
    """Let a vLLM count the prompt of a template that has a place for these alone."""
    answer = peer.script_for

    def script_for(handler, body):
        if handler.path != "/tokenize":
            return answer(handler, body)
        peer.seen.append((handler.command, handler.path, {}))
        said = [body.get("tools") or ""] if "tools" in kept else []
        for message in body["messages"]:
            said += [message.get("content") or ""] if message["role"] in ("user", *kept) else []
            said += [message.get("tool_calls") or ""] if "calls" in kept else []
        return lambda handler: handler.json({"count": len(json.dumps(said))})

    peer.script_for = script_for


def probes(peer):
    return [path for _, path, _ in peer.seen if path in PROBES.values()]


def in_prompt(asked):
    text = json.dumps(asked["messages"])
    return not {"tools", "tool_choice"} & set(asked) and "You can call these tools" in text


@pytest.mark.parametrize("kind", PROBES)
def test_nothing_is_asked_about_tools_until_a_conversation_has_some(peer, remote, kind):
    drops(peer, kind)
    peer.says(says(kind, "Hello."))
    backend = remote(dialect=kind)
    backend.generate("Hi")
    assert not probes(peer)
    for _ in range(2):
        backend.generate("Hi", tools=[COUNT])
    assert len(probes(peer)) == (2 if kind == "vllm" else 1)
    assert [in_prompt(asked) for asked in peer.asked] == [False, True, True]


@pytest.mark.parametrize("kind", PROBES)
def test_calls_and_results_are_read_though_no_tool_is_offered_any_more(peer, remote, kind):
    drops(peer, kind)
    peer.says(says(kind, "Seven circles."))
    remote(dialect=kind).generate(HISTORY)
    [asked] = peer.asked
    assert {one["role"] for one in asked["messages"]} <= {"user", "assistant"}
    text = json.dumps(asked["messages"])
    assert "count" in text and "circle" in text and "Seven." in text
    assert not {"response_format", "structured_outputs", "tools", "format"} & set(asked)


@pytest.mark.parametrize("kind", PROBES)
def test_tools_are_in_the_prompt_while_the_server_cannot_say_whether_it_shows_them(
    peer, remote, kind
):
    peer.routes[PROBES[kind]] = lambda handler: handler.json({"error": "later"}, 500)
    peer.says(says(kind, "Hello."))
    backend = remote(dialect=kind, max_retries=0)
    backend.generate("Hi", tools=[COUNT])
    assert in_prompt(peer.asked[0])
    knows = {
        "vllm": None,
        "llamacpp": {"chat_template_caps": {"supports_tools": True}},
        "ollama": {"capabilities": ["completion", "tools"]},
    }[kind]
    if kind == "vllm":
        counts(peer, "tools", "calls", "tool")
    else:
        peer.routes[PROBES[kind]] = lambda handler: handler.json(knows)
    backend.generate("Hi", tools=[COUNT])
    assert "tools" in peer.asked[1]


KEPT = ("tools", "calls", "tool")


@pytest.mark.parametrize("kept", [KEPT, KEPT[:2], KEPT[1:], KEPT[::2], ()])
def test_a_vllm_whose_template_drops_any_of_them_reads_all_in_the_prompt(peer, remote, kept):
    counts(peer, *kept)
    peer.says(words("Seven."))
    remote(dialect="vllm").generate(HISTORY, tools=[COUNT])
    assert in_prompt(peer.asked[0]) == (kept != KEPT)


@pytest.mark.parametrize("status", [403, 404, 405, 501])
@pytest.mark.parametrize("kind", PROBES)
def test_a_gateway_that_keeps_the_question_leaves_tools_as_they_are(peer, remote, kind, status):
    peer.routes[PROBES[kind]] = lambda handler: handler.json({"error": "no such path"}, status)
    call = {"function": {"name": "count", "arguments": {}}}
    native = {"message": {"content": "", "tool_calls": [call]}, **OLLAMA_END}
    peer.says(lines(native) if kind == "ollama" else called(("count", "{}")))
    answer = remote(dialect=kind).generate("Count.", tools=[COUNT])
    assert [call.name for call in answer.tool_calls] == ["count"]
    assert "tools" in peer.asked[0]


def test_a_call_is_demanded_of_ollama_by_a_schema_where_the_model_knows_no_tools(peer, remote):
    drops(peer, "ollama")
    peer.says(says_ollama(BARE))
    backend = remote(dialect="ollama")
    answer = backend.generate("Count.", tools=[COUNT], tool_choice="required")
    assert [call.name for call in answer.tool_calls] == ["count"]
    assert in_prompt(peer.asked[0]) and "anyOf" in peer.asked[0]["format"]


def test_ollama_is_asked_otherwise_where_it_refuses_tools(peer, remote):
    sentence = "registry.ollama.ai/library/llava:latest does not support tools"
    peer.says(refuses(400, {"error": sentence}), says_ollama("None."))
    backend = remote(dialect="ollama")
    assert backend.generate("Count.", tools=[COUNT]).text == "None."
    assert "tools" in peer.asked[0] and in_prompt(peer.asked[1])


def test_a_demanded_call_is_refused_where_ollama_shows_tools_itself(peer, remote):
    peer.routes["/api/show"] = lambda handler: handler.json({"capabilities": ["tools"]})
    with pytest.raises(ParameterError, match="tool_choice"):
        remote(dialect="ollama").generate("Count.", tools=[COUNT], tool_choice="required")


IDS = (
    "Jinja Exception: Tool call IDs should be alphanumeric strings with length 9!",
    "Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.",
)


@pytest.mark.parametrize("sentence", IDS)
def test_ids_of_calls_become_as_short_as_the_template_demands(peer, remote, sentence):
    peer.says(refuses(400, {"error": {"message": sentence}}), words("Seven."))
    peer.routes["/props"] = lambda handler: handler.json({})
    backend = remote(dialect="llamacpp")
    assert backend.generate(HISTORY, tools=[COUNT]).text == "Seven."
    backend.generate(HISTORY, tools=[COUNT])
    assert len(peer.asked) == 3  # it is known now
    for asked in peer.asked[1:]:
        _, called_, result = asked["messages"]
        [call] = called_["tool_calls"]
        assert len(call["id"]) == 9 and call["id"].isalnum()
        assert result["tool_call_id"] == call["id"]
    assert peer.asked[0]["messages"][1]["tool_calls"][0]["id"] == "call_1"


LLAMA_CPP = (
    "Unable to generate parser for this template. Automatic parser generation failed: \n"
    "------------\nWhile executing CallExpression at line 52, column 32 in source:\n"
    '...== 0) %}\u21b5            {{- raise_exception("After the optional system message, con...\n'
    "                                           ^\nError: Jinja Exception: {}"
)
ALTERNATE = "After the optional system message, conversation roles must alternate user/assistant"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("vllm", ALTERNATE),
        ("llamacpp", LLAMA_CPP.replace("{}", ALTERNATE)),
        (
            "llamacpp",
            LLAMA_CPP.replace("{}", "This model only supports single tool-calls at once!"),
        ),
    ],
)
def test_what_a_template_has_no_turns_for_is_asked_in_turns_that_alternate(
    peer, remote, kind, sentence
):
    """A result with an image, which goes into a user's message, is such a conversation."""
    peer.says(refuses(400, {"error": {"message": sentence}}), words("Seven."))
    backend = remote(dialect=kind)
    asked = [*HISTORY, Message("user", "Sure?")]
    assert backend.generate(asked, tools=[COUNT]).text == "Seven."
    roles = [one["role"] for one in peer.asked[1]["messages"]]
    assert in_prompt(peer.asked[1]) and roles in (
        ["user", "assistant", "user"],
        ["system", "user", "assistant", "user"],
    )
    backend.generate("Count.", tools=[COUNT])
    assert "tools" in peer.asked[2]  # the next conversation is asked as before
