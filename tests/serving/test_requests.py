"""What a request may say, and how it is told what it may not."""

import pytest

from llavakit.errors import (
    ContextLengthError,
    EngineClosedError,
    EngineError,
    OutOfMemoryError,
    QueueFullError,
    RemoteError,
    RequestTimeoutError,
)
from llavakit.images import Picture
from llavakit.testing import FakeBackend
from llavakit.values import Completion, TokenLogprob, ToolCall
from tests.serving.conftest import CHAT, Neighbourly, data_uri, draw, picture_block, saying

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def user(*blocks):
    return [{"role": "user", "content": list(blocks)}]


def at(url):
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"max_token": 3}, "max_token", "did you mean 'max_tokens'?"),
        ({"guided_json": {}}, "guided_json", "structured_outputs"),
        ({"functions": []}, "functions", "send tools"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", ""),
        ({"presence_penalty": -2.5}, "presence_penalty", ""),
        ({"modalities": ["audio"]}, "modalities[0]", "text"),
        ({"service_tier": "flex"}, "service_tier", ""),
        ({"verbosity": "high"}, "verbosity", "medium"),
        ({"cache_salt": "x"}, "cache_salt", "leave it out"),
        ({"web_search_options": {}}, "web_search_options", "nothing is searched"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs", ""),
        ({"temperature": "hot"}, "temperature", ""),
        ({"temperature": -0.1}, "temperature", ""),
        ({"top_p": 0}, "top_p", ""),
        ({"max_tokens": 0}, "max_tokens", ""),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"n": 0}, "n", ""),
        ({"n": 17}, "n", "at most 16"),
        ({"seed": 2**63}, "seed", ""),
        ({"stop": [""]}, "stop[0]", "at least 1"),
        ({"stop": 3}, "stop", "stop is a number; it must be a string or a list of strings"),
        ({"stop": {"a": 1}}, "stop", "is an object"),
        ({"tool_choice": 1}, "tool_choice", "it must be 'none', 'auto' or 'required' or an obj"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice", "one of 'function', 'allowed_tools'"),
        ({"tool_choice": {"name": "look"}}, "tool_choice", "tool_choice.type is missing"),
        ({"tool_choice": {"type": "function", "name": "a"}}, "tool_choice.function", "missing"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "see"}}],
                    },
                },
            },
            "tool_choice.allowed_tools.tools",
            "'see', which is not among the tools",
        ),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ""),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", ""),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", ""),
        ({"tools": [TOOL, TOOL]}, "tools", "two tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "see"}}},
            "tool_choice",
            "look",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", ""),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"grammar": "a|b"}}, "structured_outputs.grammar", "start"),
        ({"structured_outputs": {"regex": "start: a"}}, "structured_outputs.regex", "[s]tart"),
        ({"messages": []}, "messages", ""),
        ({"messages": "hello"}, "messages", ""),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]", "robot"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0].content",
            "content is null; it must be a string or a list of content blocks",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0]", "messages[0].role is missing"),
        ({"messages": ["x"]}, "messages[0]", "is a string; it must be an object"),
        ({"messages": user("x")}, "messages[0].content[0]", "with a field 'type'"),
        ({"messages": user({"type": 3})}, "messages[0].content[0]", "type is a number"),
        (
            {"messages": user({"type": "image_url", "image_url": 3})},
            "messages[0].content[0].image_url",
            "an object with a url or a string",
        ),
        (
            {"messages": user({"type": "image_url", "image_url": {"link": "x"}})},
            "messages[0].content[0].image_url.url",
            "missing",
        ),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", ""),
        ({"messages": user({"type": "input_audio"})}, "messages[0].content[0]", "input_audio"),
        (
            {"messages": user({"type": "file", "file": {}})},
            "messages[0].content[0].file.file_data",
            "missing",
        ),
        ({"messages": user({"type": "text"})}, "messages[0].content[0].text", "missing"),
        ({"messages": user({"type": "image"})}, "messages[0].content[0]", "exactly one"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "a", "content": "x"}]},
            "messages[0]",
            "no assistant message",
        ),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_its_name(client, change, param, words):
    app = client()
    answer = await app.post(CHAT, json=saying() | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words.lower() in error["message"].lower()
    assert error["type"] == "invalid_request_error" and error["code"]
    assert app.backend.requests == []


async def test_harmless_arguments_are_taken_and_change_nothing(client):
    app = client()
    harmless = {
        "user": "u1",
        "store": False,
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "service_tier": "auto",
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "modalities": ["text"],
        "reasoning_effort": "high",
        "verbosity": "medium",
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_retention": "24h",
        "chat_template_kwargs": {},
        "stop_token_ids": [],
        "best_of": 1,
        "min_tokens": 0,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "functions": None,
        "audio": None,
        "n": 1,
        "stop": None,
        "tools": None,
        "stream": False,
    }
    for body in (saying(), saying(**harmless)):
        answer = await app.post(CHAT, json=body)
        assert answer.status_code == 200, answer.text
    plain, adorned = app.backend.requests
    assert plain == adorned


async def test_every_setting_reaches_the_backend(client):
    app = client(request_timeout=9)
    settings = {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "seed": 5,
        "stop": "x",
        "logprobs": True,
        "top_logprobs": 2,
    }
    await app.post(CHAT, json=saying(**settings, n=2))
    first, second = app.backend.requests
    params = first.params
    assert (params.max_tokens, params.temperature, params.top_p) == (7, 0.5, 0.25)
    assert (params.top_k, params.min_p, params.repetition_penalty) == (3, 0.125, 1.5)
    assert (params.seed, params.stop, params.logprobs) == (5, ("x",), 2)
    assert second.params.seed == 6
    assert first.timeout == 9


async def test_tools_and_schemas_reach_the_backend(client):
    app = client()
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = saying(tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    await app.post(CHAT, json=body | {"response_format": form})
    asked = app.backend.requests[0]
    assert [tool.name for tool in asked.tools] == ["look"]
    assert (asked.tool_choice, asked.parallel_tool_calls) == ("auto", False)
    assert asked.params.json_schema == schema


async def test_words_and_pictures_keep_their_order(client):
    app = client()
    red, blue = picture_block("red"), picture_block("blue")
    texts = [{"type": "text", "text": word} for word in ("first", "then")]
    await app.post(CHAT, json=saying() | {"messages": user(texts[0], red, texts[1], blue)})
    parts = app.backend.requests[0].messages[0].content
    assert [type(part).__name__ for part in parts] == ["Text", "Image", "Text", "Image"]
    assert parts[1].source == Picture(draw("red")) and parts[3].source == Picture(draw("blue"))


async def test_a_developer_speaks_as_the_system(client):
    app = client()
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    await app.post(CHAT, json=saying() | {"messages": messages})
    assert [message.role for message in app.backend.requests[0].messages] == ["system", "user"]


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "~/picture.png",
        "../picture.png",
        "ftp://example.org/a.png",
        "http://example.org/a.png",
        "https://127.0.0.1/a.png",
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_paths_and_addresses_are_refused(client, url, path):
    app = client()
    block = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "fake", "messages": user(block)}
    answer = await app.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "source_not_allowed")
    assert error["param"] == "messages[0].content[0]"
    assert app.backend.requests == []


async def test_paths_are_refused_even_where_addresses_are_allowed(client, tmp_path):
    path = tmp_path / "red.png"
    draw().save(path)
    app = client(allow_urls=True)
    for url in (str(path), f"file://{path}"):
        answer = await app.post(
            CHAT, json=saying() | {"messages": user({"type": "image", "url": url})}
        )
        assert answer.json()["error"]["code"] == "source_not_allowed"


@pytest.mark.enable_socket
async def test_allowed_addresses_are_public_ones_only(client, server):
    app = client(allow_urls=True)
    answer = await app.post(CHAT, json={"model": "fake", "messages": user(at(server.url()))})
    assert answer.json()["error"]["code"] == "source_unreachable", answer.text
    assert server.connections == 0


@pytest.mark.enable_socket
async def test_counting_takes_the_addresses_that_answering_takes_and_no_others(client, server):
    body = {"model": "fake", "messages": user(at(server.url()))}
    for app, code in (
        (client(allow_urls=True), "source_unreachable"),
        (client(kind=Neighbourly, allow_urls=False), "source_not_allowed"),
    ):
        for path in ("/tokenize", CHAT):
            told = await app.post(path, json=body)
            assert (told.status_code, told.json()["error"]["code"]) == (400, code)
    assert server.connections == 0

    app = client(kind=Neighbourly, allow_urls=True)
    for path in ("/tokenize", CHAT):
        assert (await app.post(path, json=body)).status_code == 200


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64,AAAA", "data:image/png;base64,%%%", "data:text/plain,hello"]
)
async def test_a_damaged_picture_is_the_clients_fault(client, uri):
    block = {"type": "image_url", "image_url": {"url": uri}}
    answer = await client().post(CHAT, json=saying() | {"messages": user(block)})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_image")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":NaN}', b"[" * 5000, b"\x00"]
)
async def test_a_body_that_is_no_object_of_json_is_told_so(client, body):
    headers = {"Content-Type": "application/json"}
    answer = await client().post(CHAT, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "", "application/jsonx"])
async def test_another_content_type_is_refused(client, kind):
    answer = await client().post(CHAT, content=b"{}", headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/embeddings", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1//chat/completions", 404, "not_found"),
    ],
)
async def test_wrong_paths_and_methods_are_told_in_the_same_form(
    client, method, path, status, code
):
    answer = await client().request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextLengthError("Too long."), 400, "context_length_exceeded"),
        (QueueFullError("Full."), 429, "queue_full"),
        (RequestTimeoutError("Slow."), 504, "timeout"),
        (OutOfMemoryError("No room."), 500, "out_of_memory"),
        (EngineClosedError("Closed."), 503, "engine_closed"),
        (EngineError("Failed."), 500, "internal_error"),
        (RemoteError("Bad.", status=500), 502, "upstream_error"),
    ],
)
async def test_errors_of_the_backend_keep_their_meaning(client, error, status, code):
    answer = await client([error]).post(CHAT, json=saying())
    told = answer.json()["error"]
    assert (answer.status_code, told["code"], told["message"]) == (status, code, str(error))
    assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_a_bug_is_not_told_in_detail(client):
    answer = await client([KeyError("secret detail")]).post(CHAT, json=saying())
    assert answer.status_code == 500
    assert "secret" not in answer.text and answer.json()["error"]["type"] == "server_error"


async def test_a_call_and_its_text_have_the_form_of_openai(client):
    call = ToolCall("call_1", "look", {"shape": "circle"})
    app = client([Completion("", (call,)), Completion("I look.", (call,))])
    bare, spoken = [
        (await app.post(CHAT, json=saying(tools=[TOOL]))).json()["choices"][0] for _ in range(2)
    ]
    function = {"name": "look", "arguments": '{"shape":"circle"}'}
    expected = {"id": "call_1", "type": "function", "function": function}
    assert bare["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [expected],
    }
    assert spoken["message"]["content"] == "I look."
    assert bare["finish_reason"] == spoken["finish_reason"] == "tool_calls"


async def test_arguments_of_earlier_calls_must_be_json_of_an_object(client):
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "[1]"}}
    called = {"role": "assistant", "tool_calls": [call]}
    body = saying() | {"messages": [called, {"role": "user", "content": "x"}]}
    answer = await client().post(CHAT, json=body)
    assert answer.json()["error"]["param"] == "messages[0]"


def test_impossible_tokens_and_parts_of_characters_are_json():
    from llavakit.serving.answers import Envelope

    tokens = (TokenLogprob("é", float("-inf"), (("\ufffd", -1.0),)),)
    whole = Envelope("m", None).whole([Completion("é", logprobs=tokens)], logprobs=True)
    told = whole["choices"][0]["logprobs"]["content"][0]
    assert (told["logprob"], told["bytes"]) == (-9999.0, [0xC3, 0xA9])
    assert told["top_logprobs"][0]["bytes"] is None


async def test_tokenize_counts_messages_and_prompts(client):
    app = client(FakeBackend(context_length=100))
    counted = await app.post("/tokenize", json={"model": "fake", "prompt": "one two three"})
    assert counted.json() == {"count": 3, "max_model_len": 100}
    body = {"messages": user({"type": "text", "text": "one two"}, picture_block())}
    assert (await app.post("/tokenize", json=body)).json()["count"] == 66
    with_tools = await app.post("/tokenize", json=body | {"tools": [TOOL]})
    assert with_tools.json()["count"] == 66 + 16
    assert app.backend.requests == []


@pytest.mark.parametrize(
    "body", [{}, {"prompt": "a", "messages": user({"type": "text", "text": "b"})}]
)
async def test_tokenize_takes_one_of_both(client, body):
    answer = await client().post("/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


async def test_the_default_name_of_a_directory_is_its_last_part(client):
    app = client(FakeBackend(name="/models/llava-1.5-7b-hf"))
    listed = (await app.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == ["llava-1.5-7b-hf"]


async def test_a_picture_of_another_form_is_the_same(client):
    app = client()
    image = draw("blue", 64)
    blocks = [
        {"type": "input_image", "image_url": data_uri(image, form)} for form in ("PNG", "BMP")
    ]
    await app.post(CHAT, json=saying() | {"messages": user(*blocks)})
    first, second = app.backend.requests[0].messages[0].images
    assert first.source == second.source == Picture(image)
