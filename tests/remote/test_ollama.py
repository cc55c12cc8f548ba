"""A server that answers in Ollama's own notation, as its documentation and its source say."""

import base64
import logging

import pytest
from PIL import Image as PILImage

from llavakit import Image, Message, SamplingParams, Tool, ToolCall, Video
from llavakit.errors import ContextLengthError, ModelNotFoundError, ParameterError, RemoteError
from llavakit.langchain import ChatLLaVA
from tests.remote.scripted import OLLAMA_END, lines, models, refuses, says_ollama
from tests.videos import video

pytestmark = pytest.mark.enable_socket

LOOK = Tool(
    "look", "Look.", {"type": "object", "properties": {"shape": {"enum": ["circle", "star"]}}}
)


@pytest.fixture
def ollama(peer, remote):
    peer.routes["/api/version"] = lambda handler: handler.json({"version": "0.30.1"})
    peer.routes["/api/show"] = lambda handler: handler.json({"capabilities": ["vision", "tools"]})
    peer.says(says_ollama("It is", " red."))
    return lambda **settings: remote(**{"dialect": "ollama", **settings})


def picture(colour):
    return Image(PILImage.new("RGB", (4, 4), colour))


def event(**message):
    return {"message": {"role": "assistant", "content": "", **message}, "done": False}


def test_a_prompt_may_not_be_shortened_and_every_sampling_setting_is_said(peer, ollama):
    answer = ollama().generate("What is it?")
    assert (answer.text, answer.finish_reason) == ("It is red.", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    [asked] = peer.asked
    assert (asked["truncate"], asked["shift"], asked["stream"]) == (False, False, True)
    defaults = SamplingParams()
    assert asked["options"] == {
        "num_predict": defaults.max_tokens,
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    assert set(asked) == {"model", "messages", "stream", "truncate", "shift", "options"}


def test_settings_have_ollamas_names(peer, ollama):
    params = SamplingParams(
        9, temperature=0.5, top_p=0.8, top_k=5, min_p=0.1, repetition_penalty=1.2, seed=3,
        stop=("##",), presence_penalty=0.4, frequency_penalty=0.6,
    )  # fmt: skip
    ollama(context_length=8192).generate("Hi", params)
    assert peer.asked[0]["options"] == {
        "num_predict": 9,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 5,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "seed": 3,
        "stop": ["##"],
        "presence_penalty": 0.4,
        "frequency_penalty": 0.6,
        "repeat_last_n": 1 << 18,
        "num_ctx": 8192,
    }


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (400, "the input length exceeds the context length"),
        (500, "request (4302 tokens) exceeds the available context size (4096 tokens)"),
    ],
)
def test_a_prompt_that_does_not_fit_is_an_error(peer, ollama, status, sentence):
    peer.says(refuses(status, {"error": sentence}))
    kind = ContextLengthError if status == 400 else RemoteError
    with pytest.raises(kind, match="exceeds"):
        ollama(max_retries=0).generate("word " * 5000)
    assert all(asked["truncate"] is False for asked in peer.asked)


def test_images_keep_their_place_among_the_words(peer, ollama):
    red, blue = picture("red"), picture("blue")
    ollama().generate(
        [
            Message("system", "Be brief."),
            Message("user", [red, blue, "Both?"]),
            Message("assistant", "Yes."),
            Message("user", ["First ", red, " then ", blue, " and [im", "g]?"]),
        ]
    )
    system, both, yes, *last = peer.asked[0]["messages"]
    assert (system, yes) == (
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Yes."},
    )
    assert both["content"] == "Both?" and len(both["images"]) == 2
    pixels = [base64.b64decode(image, validate=True)[:4] for image in both["images"]]
    assert pixels == [b"\x89PNG"] * 2
    shown = [(one["content"], [both["images"].index(i) for i in one.get("images", ())])
             for one in last]  # fmt: skip
    # The mark would take the next image's place, so that it stands where no image is.
    assert shown == [("First ", []), (" then ", [0]), (" and [im", [1]), ("g]?", [])]
    assert {one["role"] for one in last} == {"user"}


def test_a_video_is_refused_before_anything_is_sent(peer, ollama):
    frames = Video(video())
    with pytest.raises(ParameterError, match="no videos"):
        ollama().generate([Message("user", [frames, "What happens?"])])
    assert peer.asked == []


def test_tools_calls_and_results_have_ollamas_shape(peer, ollama):
    call = {"function": {"name": "look", "arguments": {"shape": "star"}}}
    peer.says(lines(event(tool_calls=[call]), event(tool_calls=[call]), {**event(), **OLLAMA_END}))
    asked_before = [
        Message("user", "Which?"),
        Message("assistant", "", tool_calls=[ToolCall("c1", "look", {"shape": "circle"})]),
        Message("tool", "A circle.", tool_call_id="c1"),
        Message("user", "And now?"),
    ]
    answer = ollama().generate(asked_before, tools=[LOOK])
    assert [(one.name, one.arguments) for one in answer.tool_calls] == [
        ("look", {"shape": "star"})
    ] * 2
    assert len({one.id for one in answer.tool_calls}) == 2
    assert answer.finish_reason == "tool_calls"
    [asked] = peer.asked
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["look"]
    assert not {"tool_choice", "parallel_tool_calls"} & set(asked)
    _, called, result, _ = asked["messages"]
    assert called["tool_calls"] == [
        {"id": "c1", "function": {"index": 0, "name": "look", "arguments": {"shape": "circle"}}}
    ]
    assert result == {
        "role": "tool",
        "content": "A circle.",
        "tool_call_id": "c1",
        "tool_name": "look",
    }


def test_a_schema_is_the_format(peer, ollama):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    peer.says(says_ollama('{"n": ', "4}"))
    ollama().generate("How many?", SamplingParams(json_schema=schema))
    assert peer.asked[0]["format"] == schema
    ollama().generate("How many?", SamplingParams(json_schema=True))
    assert peer.asked[1]["format"] == "json"
    assert "response_format" not in peer.asked[0]
    peer.says(says_ollama('{"n": "four"}'))
    with pytest.raises(RemoteError, match="schema"):
        ollama().generate("How many?", SamplingParams(json_schema=schema))


def test_log_probabilities_are_read(peer, ollama):
    top = [{"token": "It", "logprob": -0.5}, {"token": "A", "logprob": -1.5}]
    told = {**event(content="It"), "logprobs": [{**top[0], "top_logprobs": top}]}
    peer.says(lines(told, {**event(), **OLLAMA_END}))
    answer = ollama().generate("Hi", SamplingParams(logprobs=2))
    [token] = answer.logprobs
    assert (token.token, token.logprob, len(token.top)) == ("It", -0.5, 2)
    assert (peer.asked[0]["logprobs"], peer.asked[0]["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([event(content="It")], "broke off"),
        ([event(content="It"), {"error": "the model runner has stopped"}], "has stopped"),
        ([["no", "event"]], "no event"),
        ([{**event(content="It"), **OLLAMA_END, "done_reason": "unload"}], "unload"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(peer, ollama, told, words):
    peer.says(lines(*told))
    with pytest.raises(RemoteError, match=words):
        ollama(max_retries=0).generate("Hi")


def test_lines_are_read_wherever_they_were_cut(peer, ollama):
    def script(handler):
        handler.begin("application/x-ndjson")
        text = '{"message": {"content": "größe\u2028☃"}, "done": false}\n{"done": true}'
        for byte in text.encode():
            handler.raw(bytes([byte]))
        handler.end()

    peer.says(script)
    answer = ollama().generate("Hi")
    assert (answer.text, answer.finish_reason) == ("größe\u2028☃", "stop")


def test_a_length_that_is_reached_is_reported(peer, ollama):
    peer.says(says_ollama("It", done_reason="length"))
    assert ollama().generate("Hi", SamplingParams(max_tokens=1)).finish_reason == "length"


def test_fields_of_the_program_go_where_ollama_reads_them(peer, ollama):
    extra = {"keep_alive": "5m", "options": {"num_gpu": 20}, "reasoning_effort": "none"}
    ollama(extra_body=extra).generate("Hi")
    [asked] = peer.asked
    assert (asked["keep_alive"], asked["think"]) == ("5m", False)
    assert asked["options"]["num_gpu"] == 20 and asked["options"]["top_k"] == 0
    with pytest.raises(ParameterError, match="'temperature' to 2"):
        ollama(extra_body={"options": {"temperature": 2}}).generate("Hi")
    assert len(peer.asked) == 1


def test_a_model_that_is_not_there_is_named(peer, ollama):
    peer.routes["/v1/models"] = models({"id": "llava:7b", "owned_by": "library"})
    peer.says(refuses(404, {"error": "model 'lava' not found"}))
    with pytest.raises(ModelNotFoundError, match="its models: llava:7b"):
        ollama().generate("Hi")


def test_the_context_is_the_one_that_was_given_to_the_loaded_model(peer, remote):
    running = []
    peer.routes["/v1/models"] = models({"id": "m:latest", "owned_by": "library"})
    peer.routes["/api/version"] = lambda handler: handler.json({"version": "0.30.1"})
    peer.routes["/api/ps"] = lambda handler: handler.json({"models": running})

    def loads(handler):
        running.append({"name": "m:latest", "context_length": 4096})
        handler.json({"done": True, "done_reason": "load"})

    peer.says(loads)
    backend = remote(dialect=None, context_length=None)
    assert backend.info.context_length == 4096
    assert peer.asked[0]["messages"] == []
    assert backend.info.context_length == 4096 and len(peer.asked) == 1


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize(("version", "warns"), [("0.12.5", True), ("0.12.6", False)])
def test_an_ollama_that_cannot_be_told_to_keep_a_prompt_whole_is_warned_of(
    peer, remote, caplog, version, warns, found
):
    peer.routes["/v1/models"] = models({"id": "served", "owned_by": "library"})
    peer.routes["/api/version"] = lambda handler: handler.json({"version": version})
    peer.says(says_ollama("hi"))
    with caplog.at_level(logging.WARNING, "llavakit"):
        backend = remote(dialect=None if found else "ollama")
        backend.generate("Hi")
        backend.generate("Hi")
    told = [one for one in caplog.messages if "takes the beginning of a prompt away" in one]
    assert len(told) == warns and all(version in one for one in told)


def test_langchain_streams_and_binds_tools(peer, ollama):
    ollama()
    chat = ChatLLaVA(model="llava:7b", base_url=peer.url, dialect="ollama", temperature=0)
    assert "".join(chunk.text for chunk in chat.stream("What is it?")) == "It is red."
    bound = chat.bind_tools([{"name": "look", "description": "Look.", "parameters": {}}])
    assert bound.invoke("Look.").text == "It is red."
    assert peer.asked[-1]["tools"][0]["function"]["name"] == "look"
