"""What is asked of real servers: each conversation checks what must hold, and returns what came.

The servers run tiny models of random weights: what they say means nothing, but everything around
it is theirs. A conversation runs in three ways: when it is recorded (``tests/remote/record.py``),
replayed (``test_recorded.py``), and on the servers themselves, where they are built.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image as PILImage

import llavakit
from llavakit import Completion, Image, Message, SamplingParams, Tool, ToolCall
from llavakit.backend import Backend
from llavakit.errors import (
    ContextLengthError,
    ModelNotFoundError,
    ParameterError,
    RemoteError,
)

MODEL = "small"
KEY = "a-key-of-the-test"
RED_TEXT = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQ"
    "c1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk"
    "pKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAQABgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAA"
    "AAT/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFgEBAQEAAAAAAAAAAAAAAAAAAAQF/8QAFBEBAAAAAAAAAAAAAAAA"
    "AAAAAP/aAAwDAQACEQMRAD8AhATtgAB//9k="
)
RED = b64decode(RED_TEXT)
"""A JPEG of 24 times 16 pixels."""
SHORT = SamplingParams(temperature=0, max_tokens=6)
LONG = SamplingParams(temperature=0, max_tokens=80)
SHAPE = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"enum": [1, 2]}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "get_weather",
    "Get the weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"City": {"enum": ["Oslo", "Rome"]}},
    },
)
NOW = Tool("now", "Get the time.", {"type": "object", "properties": {}})
TOOLS = [WEATHER, NOW]


@dataclass(frozen=True)
class Peer:
    """A server to talk to.

    Attributes:
        url: of the server.
        backend: the remote backend; the dialect is found out.
    """

    url: str
    backend: Backend

    def generate(self, *messages: Message | str, **options: Any) -> Completion:
        asked = [Message("user", one) if isinstance(one, str) else one for one in messages]
        options = {"params": SHORT, **options}
        return self.backend.generate(asked, **options)


Conversation = Callable[[Peer], Any]
BY_SERVER: dict[str, dict[str, Conversation]] = {}
"""The conversations that are held with each kind of server."""
EVERY = ("llamacpp", "vllm")


def on(*servers: str) -> Callable[[Conversation], Conversation]:
    def register(conversation: Conversation) -> Conversation:
        for server in servers:
            BY_SERVER.setdefault(server, {})[conversation.__name__] = conversation
        return conversation

    return register


def outcome(answer: Completion) -> dict[str, Any]:
    """What must be read out of the same bytes again; ids of calls may be ours."""
    calls = [[call.name, dict(call.arguments)] for call in answer.tool_calls]
    cut = [[call.name, call.arguments] for call in answer.cut_calls]
    usage = answer.usage
    return {
        "text": answer.text,
        "finish": answer.finish_reason,
        "tokens": [usage.prompt_tokens, usage.completion_tokens],
        **({"calls": calls} if calls else {}),
        **({"cut": cut} if cut else {}),
    }


def shown(question: str = "What is this?") -> Message:
    return Message("user", [Image(RED), question])


def drawn() -> Image:
    image = PILImage.new("RGB", (20, 10), "blue")
    image.putpixel((3, 4), (255, 255, 0))
    return Image(image)


@on(*EVERY)
def an_image_is_seen(peer: Peer) -> Any:
    without, jpeg = peer.generate("What is this?"), peer.generate(shown())
    pixels = peer.generate(Message("user", [drawn(), "What is this?"]))
    for seen in (jpeg, pixels):
        assert seen.usage.prompt_tokens > without.usage.prompt_tokens + 500
        assert (seen.finish_reason, seen.usage.completion_tokens) == ("length", 6)
    return [outcome(without), outcome(jpeg), outcome(pixels)]


@on(*EVERY)
def a_stream_comes_token_by_token(peer: Peer) -> Any:
    chunks = list(peer.backend.stream("Hello", SHORT))
    texts = [chunk.text for chunk in chunks if chunk.text]
    assert len(texts) > 2
    assert "".join(texts) == peer.generate("Hello").text
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 6
    return texts


@on(*EVERY)
def questions_are_asked_at_once(peer: Peer) -> Any:
    questions = ["Count to one", "Count to two", "Count to three"]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(peer.generate, questions))
    return [outcome(answer) for answer in answers]


@on(*EVERY)
def a_conversation_goes_on(peer: Peer) -> Any:
    conversation = [
        Message("system", "Be short."),
        shown(),
        Message("assistant", "Red."),
        Message("user", "Really?"),
    ]
    return outcome(peer.generate(*conversation))


@on(*EVERY)
def an_answer_is_continued(peer: Peer) -> Any:
    begun = [Message("user", "What is it?"), Message("assistant", "It is")]
    answer = peer.generate(*begun, continue_final_message=True)
    assert not answer.text.startswith("It is")
    counted = peer.backend.count_tokens(begun, continue_final_message=True)
    assert counted == answer.usage.prompt_tokens
    return outcome(answer)


@on("llamacpp")
def a_new_turn_behind_the_assistants_is_refused(peer: Peer) -> Any:
    with pytest.raises(ParameterError, match="ends with the assistant") as caught:
        peer.generate("What is it?", Message("assistant", "It is"))
    return str(caught.value)


@on(*EVERY)
def sampling_has_its_effect(peer: Peer) -> Any:
    def asked(**settings: Any) -> str:
        wild = {"temperature": 2.0, "max_tokens": 6, "seed": 7}
        return peer.generate("Hi", params=SamplingParams(**wild, **settings)).text

    def greedily(**settings: Any) -> str:
        greedy = {"temperature": 0, "max_tokens": 6}
        return peer.generate("Hi", params=SamplingParams(**greedy, **settings)).text

    free, again, plain = asked(), asked(), greedily()
    assert free == again != plain
    assert asked(top_k=1) == asked(min_p=0.9999) == asked(top_p=1e-6)
    token = 300
    assert len(set(greedily(logit_bias={token: 100.0}).split())) == 1
    shifted = greedily(repetition_penalty=1.9), greedily(presence_penalty=2, frequency_penalty=2)
    return [free, plain, *shifted]


@on(*EVERY)
def log_probabilities_come(peer: Peer) -> Any:
    found = []
    for most in (0, 2):
        params = SamplingParams(temperature=0, max_tokens=2, logprobs=most)
        answer = peer.generate("Hi", params=params)
        assert len(answer.logprobs) == 2
        for token in answer.logprobs:
            assert token.logprob < 0 and len(token.top) == most
            assert not most or token.top[0] == (token.token, token.logprob)
        found.append([[one.token, one.logprob] for one in answer.logprobs])
    return found


@on(*EVERY)
def a_stop_string_ends_the_answer(peer: Peer) -> Any:
    whole = peer.generate("Hi").text
    stop = whole[5:8]
    answer = peer.generate("Hi", params=SamplingParams(temperature=0, max_tokens=6, stop=(stop,)))
    assert answer.text == whole[: whole.index(stop)] and answer.finish_reason == "stop"
    return outcome(answer)


@on(*EVERY)
def json_obeys_a_schema(peer: Peer) -> Any:
    params = SamplingParams(temperature=0, max_tokens=60, json_schema=SHAPE)
    whole = peer.generate("Hi", params=params)
    assert whole.finish_reason == "stop"
    assert set(json_object(whole.text)) == {"colour", "count"}
    cut = peer.generate("Hi", params=SamplingParams(temperature=0, max_tokens=3, json_schema=SHAPE))
    assert cut.finish_reason == "length"
    return [outcome(whole), outcome(cut)]


@on("vllm")
def grammars_are_obeyed(peer: Peer) -> Any:
    answers = []
    for grammar in ("(red|blue)", 'start: "red" | "blue"'):
        params = SamplingParams(temperature=0, max_tokens=30, grammar=grammar)
        answers.append(peer.generate("Hi", params=params))
        assert answers[-1].text in ("red", "blue")
    return [outcome(answer) for answer in answers]


WITH_PARSER = "vllm with a parser", "vllm with a parser and a template without tools"


@on("llamacpp", "llamacpp without jinja", "vllm", *WITH_PARSER)
def a_demanded_tool_is_called(peer: Peer) -> Any:
    found = []
    for choice in ("required", "get_weather"):
        options = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
        answer = peer.generate("Weather in Oslo?", params=LONG, **options)
        assert [call.name for call in answer.tool_calls] in (["get_weather"], ["now"])
        assert choice == "required" or answer.tool_calls[0].name == choice
        assert (answer.text, answer.finish_reason) == ("", "tool_calls")
        assert answer.usage.completion_tokens
        found.append(outcome(answer))
    return found


@on("llamacpp", "vllm")
def a_call_that_is_cut_is_reported_as_cut(peer: Peer) -> Any:
    options = {"tools": TOOLS, "tool_choice": "get_weather", "parallel_tool_calls": False}
    params = SamplingParams(temperature=0, max_tokens=14)
    answer = peer.generate("Weather?", params=params, **options)
    assert (answer.finish_reason, answer.tool_calls) == ("length", ())
    return outcome(answer)


@on("llamacpp", "vllm", *WITH_PARSER)
def a_tool_may_be_offered_and_its_result_given(peer: Peer) -> Any:
    offered = peer.generate("Hello", tools=TOOLS)
    forbidden = peer.generate("Hello", tools=TOOLS, tool_choice="none")
    call = ToolCall("call_1", "get_weather", {"city": "Oslo"})
    given = peer.generate(
        Message("user", "Weather?"),
        Message("assistant", "", tool_calls=[call]),
        Message("tool", "Rain.", tool_call_id="call_1"),
        tools=TOOLS,
    )
    return [outcome(answer) for answer in (offered, forbidden, given)]


@on("llamacpp", "vllm", *WITH_PARSER)
def calls_and_results_are_read_where_no_tool_is_offered(peer: Peer) -> Any:
    def used(city: str, result: str) -> int:
        call = ToolCall("call_1", "get_weather", {"city": city})
        answer = peer.generate(
            Message("user", "Weather?"),
            Message("assistant", "", tool_calls=[call]),
            Message("tool", result, tool_call_id="call_1"),
        )
        return answer.usage.prompt_tokens

    found = [used("Oslo", "Rain."), used("Oslo " * 20, "Rain."), used("Oslo", "Rain. " * 20)]
    assert found[1] > found[0] + 20 and found[2] > found[0] + 20
    return found


@on("llamacpp", "vllm", *WITH_PARSER)
def tools_are_in_the_prompt_and_counted(peer: Peer) -> Any:
    answer = peer.generate("Hello", tools=TOOLS)
    assert answer.usage.prompt_tokens > peer.generate("Hello").usage.prompt_tokens + 50
    counted = peer.backend.count_tokens("Hello", tools=TOOLS)
    assert counted == answer.usage.prompt_tokens
    return counted


@on(*EVERY)
def tokens_are_counted(peer: Peer) -> Any:
    asked = [Message("system", "Be short."), Message("user", "Hello"), Message("assistant", "Hi")]
    asked.append(Message("user", "What is it?"))
    counted = peer.backend.count_tokens(asked)
    assert counted == peer.generate(*asked).usage.prompt_tokens
    with pytest.raises(RemoteError, match="does not count the tokens of images"):
        peer.backend.count_tokens([shown()])
    return counted


@on(*EVERY)
def the_context_is_reported(peer: Peer) -> Any:
    length = peer.backend.info.context_length
    assert length == 1024
    return length


@on("vllm")
def a_model_that_is_not_there_is_named(peer: Peer) -> Any:
    with pytest.raises(ModelNotFoundError, match="its models: small") as caught:
        llavakit.load("nothing", base_url=peer.url).generate("Hi", SHORT)
    return str(caught.value).replace(peer.url, "")


@on(*EVERY)
def a_prompt_that_does_not_fit_is_refused(peer: Peer) -> Any:
    found = []
    for asked in (Message("user", "word " * 1500), Message("user", [Image(RED), drawn(), "Both?"])):
        with pytest.raises(ContextLengthError) as caught:
            peer.generate(asked)
        error = caught.value
        assert error.context_length == 1024 and error.prompt_tokens > 1024
        found.append([error.prompt_tokens, error.context_length])
    return found


@on(*EVERY)
def more_tokens_than_the_context_has_are_cut(peer: Peer) -> Any:
    params = SamplingParams(temperature=0, max_tokens=100_000, stop=(" ",))
    answer = peer.generate("Hi", params=params)
    assert answer.finish_reason == "stop"
    return outcome(answer)


@on("llamacpp")
def odd_images_are_seen(peer: Peer) -> Any:
    wide = PILImage.new("RGB", (300, 2), "red")
    return [
        outcome(peer.generate(Message("user", [Image(image), "What is this?"])))
        for image in (PILImage.new("RGB", (1, 1)), wide)
    ]


@on(*EVERY)
def a_stream_may_be_left(peer: Peer) -> Any:
    params = SamplingParams(temperature=0, max_tokens=900)
    with peer.backend.stream("Tell me everything.", params) as stream:
        first = next(stream)
    assert first.text
    return [first.text, outcome(peer.generate("Hello"))]


@on(*EVERY)
def langchain_talks_to_it(peer: Peer) -> Any:
    from langchain_core.messages import HumanMessage
    from pydantic import BaseModel

    from llavakit.langchain import ChatLLaVA

    class Shape(BaseModel):
        """A shape."""

        colour: bool
        filled: bool

    model = ChatLLaVA(model=MODEL, base_url=peer.url, temperature=0, max_tokens=6)
    image = {"type": "image", "source_type": "base64", "mime_type": "image/jpeg"}
    image["data"] = RED_TEXT
    asked = [HumanMessage([{"type": "text", "text": "What is this?"}, image])]
    whole = model.invoke(asked)
    streamed = list(model.stream(asked))
    assert "".join(chunk.text for chunk in streamed) == whole.text
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] == 6
    batched = [one.text for one in model.batch(["One", "Two"])]
    form = ChatLLaVA(model=MODEL, base_url=peer.url, temperature=0, max_tokens=60)
    shape = form.with_structured_output(Shape, method="json_schema").invoke("A shape, please.")
    assert isinstance(shape, Shape)
    return [whole.text, batched, shape.model_dump()]


@on(*EVERY)
def llama_index_talks_to_it(peer: Peer) -> Any:
    from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock

    from llavakit.llama_index import LLaVA

    model = LLaVA(model=MODEL, base_url=peer.url, temperature=0, max_tokens=6)
    blocks = [TextBlock(text="What is this?"), ImageBlock(image=RED, image_mimetype="image/jpeg")]
    asked = [ChatMessage(role="user", blocks=blocks)]
    whole = model.chat(asked).message.content
    assert list(model.stream_chat(asked))[-1].message.content == whole
    return [whole, model.complete("Hello").text]


@on("llamacpp with a key")
def a_key_is_sent_and_a_missing_one_reported(peer: Peer) -> Any:
    answer = llavakit.load(MODEL, base_url=peer.url, api_key=KEY).generate("Hi", SHORT)
    with pytest.raises(RemoteError) as caught:
        llavakit.load(MODEL, base_url=peer.url, api_key="another").generate("Hi", SHORT)
    assert caught.value.status == 401 and "another" not in str(caught.value)
    return outcome(answer)


def hold(url: str, conversation: Conversation) -> Any:
    """Hold a conversation with a server; gives its outcome."""
    backend = llavakit.load(MODEL, base_url=url)
    try:
        return conversation(Peer(url, backend))
    finally:
        backend.close()


def json_object(text: str) -> Mapping[str, Any]:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value
