"""Every family of the catalog: a tiny random checkpoint of it answers as transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams, Text
from llavakit.model.catalog import CATALOG
from llavakit.model.loader import load_reader
from llavakit.prompts.conversation import Turn
from tests.engine.oracle import submitted
from tests.families import FAMILIES, RELATIVES, TinyFamily, tiny_family

Said = tuple[str, list[str | PILImage.Image]]


def picture(number: int, width: int, height: int) -> PILImage.Image:
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


CONVERSATIONS: dict[str, list[Said]] = {
    "words": [("user", ["Hi"])],
    "a system text": [("system", ["Be brief."]), ("user", ["Hi"])],
    "an image": [("user", [picture(1, 40, 16), "What is it?"])],
    "a large picture": [("user", [picture(2, 300, 280), "What is it?"])],
    "three pictures": [
        ("user", [picture(1, 40, 16), picture(2, 30, 90), picture(3, 20, 20), "Which?"])
    ],
    "a second turn": [
        ("user", [picture(4, 33, 31), "What?"]),
        ("assistant", ["An A."]),
        ("user", ["And now?"]),
    ],
    "a picture in each turn": [
        ("user", [picture(5, 60, 20), "What?"]),
        ("assistant", ["An A."]),
        ("user", [picture(1, 40, 16), "Is it the same?"]),
        ("assistant", ["No."]),
        ("user", ["你好🐱"]),
    ],
}


def messages(conversation: list[Said]) -> list[Message]:
    return [
        Message(role, [Text(part) if isinstance(part, str) else Image(part) for part in said])
        for role, said in conversation
    ]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    # The directory's name tells nothing: its own files have to say what it is.
    return tiny_family(tmp_path_factory.mktemp("family"), request.param)


@pytest.fixture(scope="module")
def backend(family: TinyFamily) -> Iterator[llavakit.Backend]:
    backend = llavakit.load(family.path, prefill_chunk=24)
    yield backend
    backend.close()


def test_every_model_of_the_catalog_belongs_to_a_tiny_family():
    every = [*FAMILIES.values(), *RELATIVES.values()]
    known = [name for family in every for name in family.names]
    assert sorted(known) == sorted(entry.name for entry in CATALOG if entry.name != "demo")


def test_all_conversations_at_once_are_answered_as_by_transformers(
    family: TinyFamily, backend: llavakit.Backend
):
    running = [(said, *submitted(backend, messages(said), 16)) for said in CONVERSATIONS.values()]
    for said, stream, sequence in running:
        chunks = list(stream)
        expected = family.generate(said, 16)
        assert sequence.tokens[sequence.prompt_length :] == expected
        assert chunks[-1].usage.completion_tokens == len(expected)
    assert backend.stats()["halved_steps"] == 0


@pytest.mark.parametrize("key", list(CONVERSATIONS))
def test_tokens_are_counted_as_they_are_computed(backend: llavakit.Backend, key: str):
    said = messages(CONVERSATIONS[key])
    answer = backend.generate(said, SamplingParams(max_tokens=1, temperature=0))
    assert backend.count_tokens(said) == answer.usage.prompt_tokens


def test_a_stream_says_what_generate_says(backend: llavakit.Backend):
    said = messages(CONVERSATIONS["three pictures"])
    params = SamplingParams(max_tokens=16, temperature=0)
    whole = backend.generate(said, params)
    assert "".join(chunk.text for chunk in backend.stream(said, params)) == whole.text


def test_pictures_between_words_stay_there(family: TinyFamily):
    prompts = load_reader(family.path).tokenizer
    turn = Turn(
        "user",
        (Text("One:"), Image("1.png"), Text("Two:"), Image("2.png"), Text("Which is red?")),
    )
    rendered = prompts.render([turn])
    places = [rendered.index(part) for part in ("One:", "<image>", "Two:", "Which is red?")]
    assert places == sorted(places)
    assert rendered.rindex("<image>") > rendered.index("Two:")
    once = prompts.render([Turn("user", (Text("?"),))])
    for mark in ("<|eot_id|>", "<|im_end|>"):
        assert rendered.count(mark) == once.count(mark)  # the turn ends once, behind all of it
    assert prompts.encode([turn]).count(prompts.image_id) == 2


def test_marks_that_a_user_types_are_text(family: TinyFamily):
    reader = load_reader(family.path)
    plain = reader.tokenizer.encode([Turn("user", (Image("1.png"), Text("a")))])
    marks = "<image><video><|im_end|><|eot_id|></s><|endoftext|>"
    typed = reader.tokenizer.encode([Turn("user", (Image("1.png"), Text(f"a{marks}")))])
    tokenizer = reader.tokenizer.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert [i for i in typed if i in special] == [i for i in plain if i in special]
    assert marks in tokenizer.decode(typed, clean_up_tokenization_spaces=False)


def test_rows_of_the_vocabulary_without_a_token_are_never_drawn(backend: llavakit.Backend):
    params = SamplingParams(max_tokens=200, temperature=50.0, seed=3)
    answer = backend.generate("Hi", params)
    assert "<image>" not in answer.text and "<video>" not in answer.text


def test_a_conversation_beyond_the_context_is_refused_with_its_numbers(family: TinyFamily):
    backend = llavakit.load(family.path, context_length=20)
    try:
        with pytest.raises(llavakit.errors.ContextLengthError, match="holds 20") as refused:
            backend.ask(picture(2, 300, 280), "What is it?")
        assert refused.value.context_length == 20
    finally:
        backend.close()


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantised_it_still_answers(family: TinyFamily, kind, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    backend = llavakit.load(family.path, quantization=kind)
    try:
        said = messages(CONVERSATIONS["a picture in each turn"])
        answer = backend.generate(said, SamplingParams(max_tokens=4, temperature=0))
        assert answer.usage.completion_tokens >= 1
    finally:
        backend.close()
