"""Retrieved documents become a prompt: pixels of pages, text of the rest, and what did not fit."""

import base64
import io
import json
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from PIL import Image as PILImage

from llavakit.errors import (
    ContextLengthError,
    DocumentError,
    ParameterError,
    SourceNotAllowedError,
    UnsupportedContentError,
)
from llavakit.images import open_picture
from llavakit.langchain import ChatLLaVA, LLaVALLM, PageImageLoader, apage_messages, page_messages
from llavakit.sources import SourcePolicy
from llavakit.testing import IMAGE_TOKENS, FakeBackend
from llavakit.values import Text
from tests.documents.test_pages import THREE, pdf

pytestmark = pytest.mark.timeout(120)

PAGES = Path("examples/data/pages.pdf")
NOTE = Document("Anna pays in June.", metadata={"source": "notes.txt"})


@pytest.fixture
def three(tmp_path):
    path = tmp_path / "three.pdf"
    path.write_bytes(THREE)
    return path


def documents_of(path, **options):
    return PageImageLoader(path, page_seconds=None, **options).load()


def prompt_of(documents, question="What?", **options):
    return page_messages(documents, question, page_seconds=None, **options)


def asked(fake):
    """What a fake model was shown: texts, and the colour of each image's corner."""
    return [
        part.text if isinstance(part, Text) else open_picture(part.source).rgb.getpixel((0, 0))
        for message in fake.requests[-1].messages
        for part in message.content
    ]


RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_the_demo_model_answers_from_the_pixels_of_the_page(demo_backend):
    model = ChatLLaVA(model="demo", temperature=0)
    documents = documents_of(PAGES)
    assert not any(document.page_content for document in documents)  # only pixels can answer
    answers = [model.invoke(prompt_of([d], "What is the total?", model=model)) for d in documents]
    assert [answer.text for answer in answers] == ["234", "11", "8117", "9155"]


def test_pictures_stand_in_the_order_of_the_documents_with_labels(three):
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    first, _, third = documents_of(three)
    model.invoke(prompt_of([third, first], model=model))
    assert asked(fake) == [f"Page 3 of {three}:\n", BLUE, f"Page 1 of {three}:\n", RED, "What?"]


def test_one_page_is_shown_without_a_label(three):
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    model.invoke(prompt_of(documents_of(three)[:1], model=model))
    assert asked(fake) == [RED, "What?"]


def test_documents_that_are_no_pages_are_told_as_text(three):
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    first, *_ = documents_of(three)
    other = Document("From a loader of texts.", metadata={"source": "x.pdf", "page": 0})
    prompt = prompt_of([NOTE, first, other], model=model)
    model.invoke(prompt)
    seen = asked(fake)
    assert seen[0] == "Anna pays in June.\n\n"
    assert seen[2] == RED
    assert seen[3] == "From a loader of texts.\n\n"
    assert prompt.used == [NOTE, first, other]
    assert not prompt.left_out


def test_chunks_of_one_page_show_it_once(three):
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    first, second, _ = documents_of(three)
    chunk = first.model_copy(update={"page_content": "another chunk", "id": "2"})
    prompt = prompt_of([first, second, chunk], model=model)
    model.invoke(prompt)
    assert [seen for seen in asked(fake) if not isinstance(seen, str)] == [RED, LIME]
    assert sorted(d.page_content for d in prompt.used) == ["", "", "another chunk"]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_as_many_pages_as_the_context_holds_and_the_rest_is_told(three, room, caplog):
    documents = documents_of(three)
    caplog.clear()
    # A label is a line of a few words; the fake counts words.
    backend = FakeBackend(context_length=100 + 40 + room * IMAGE_TOKENS)
    model = ChatLLaVA(backend=backend, max_tokens=100)
    prompt = prompt_of(documents, model=model)
    assert prompt.used == documents[:room]
    assert prompt.left_out == documents[room:]
    assert prompt.tokens == model.get_num_tokens_from_messages(prompt.messages)
    assert len(caplog.records) == (room < 3)
    if room < 3:
        assert f"about {room} of 3 documents" in caplog.text
        assert f"{three} p. 3" in caplog.text
    model.invoke(prompt)


def test_the_answer_keeps_its_room_also_when_the_call_is_bound(three):
    backend = FakeBackend(context_length=300)
    model = ChatLLaVA(backend=backend, max_tokens=50)
    documents = documents_of(three)
    assert len(prompt_of(documents, model=model).used) == 3
    assert len(prompt_of(documents, model=model.bind(max_tokens=150)).used) < 3
    assert len(prompt_of(documents, model=model, answer_tokens=150).used) < 3


def test_a_conversation_before_the_question_counts(three):
    backend = FakeBackend(context_length=300)
    model = ChatLLaVA(backend=backend, max_tokens=50)
    before = [SystemMessage("Be short."), HumanMessage("word " * 100), AIMessage("yes")]
    prompt = prompt_of(documents_of(three), model=model, before=before)
    assert len(prompt.used) < 3
    assert prompt.messages[:3] == before
    assert prompt.tokens == model.get_num_tokens_from_messages(prompt.messages)


def test_where_not_even_one_page_fits_it_is_an_error(three):
    model = ChatLLaVA(backend=FakeBackend(context_length=60), max_tokens=30)
    with pytest.raises(ContextLengthError):
        prompt_of(documents_of(three), model=model)


def test_the_demo_models_own_context_bounds_the_pages(demo_backend):
    many = [d.model_copy(deep=True) for _ in range(20) for d in documents_of(PAGES)]
    for number, document in enumerate(many):  # the same pictures under twenty names
        document.metadata["file_path"] = "./" * (number // 4) + str(PAGES)
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=8)
    prompt = prompt_of(many, "What is the total?", model=model)
    assert 4 < len(prompt.used) < 80
    assert len(prompt.used) + len(prompt.left_out) == 80
    assert prompt.tokens + 8 <= demo_backend.info.context_length
    assert model.invoke(prompt).usage_metadata["input_tokens"] == prompt.tokens


def test_another_chat_model_gets_langchains_own_blocks_and_a_bound(three):
    documents = documents_of(three)
    prompts = []
    other = RunnableLambda(lambda prompt: prompts.append(prompt) or AIMessage("ok"))
    prompt = prompt_of([*documents, NOTE], model=other, max_pages=2)
    other.invoke(prompt)
    blocks = [block for block in prompts[0].to_messages()[0].content if block["type"] == "image"]
    colours = [
        PILImage.open(io.BytesIO(base64.b64decode(block["base64"]))).getpixel((0, 0))
        for block in blocks
    ]
    assert colours == [RED, LIME]
    assert prompt.used == [*documents[:2], NOTE]
    assert prompt.left_out == documents[2:]
    assert {block["mime_type"] for block in blocks} == {"image/png"}


def test_other_models_have_a_bound_of_their_own(tmp_path):
    path = tmp_path / "many.pdf"
    path.write_bytes(pdf(*(f"{n / 20} 0 0 rg 0 0 999 999 re f" for n in range(12))))
    prompt = prompt_of(documents_of(path))
    assert len(prompt.used) == 8
    assert len(prompt.left_out) == 4


def test_both_carriers_show_the_same_picture(three):
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    (first, *_) = documents_of(three)
    for prompt in (prompt_of([first], model=model), prompt_of([first])):
        model.invoke(prompt)
    one, two = (request.messages[0].images for request in fake.requests)
    assert [open_picture(i.source) for i in one] == [open_picture(i.source) for i in two]


def test_a_document_that_has_changed_is_an_error_and_not_another_page(three):
    documents = documents_of(three)
    three.write_bytes(pdf("0 0 0 rg 0 0 999 999 re f"))
    with pytest.raises(DocumentError, match="not the page that was indexed"):
        prompt_of(documents[:1])


def test_a_page_in_a_store_outlives_its_document_and_the_store_may_move(three, tmp_path):
    documents = documents_of(three, store=tmp_path / "store")
    three.unlink()
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    model.invoke(prompt_of(documents[:1], model=model))
    assert asked(fake)[0] == RED
    (tmp_path / "store").rename(tmp_path / "moved")
    model.invoke(prompt_of(documents[1:2], model=model, store=tmp_path / "moved"))
    assert asked(fake)[0] == LIME


def test_the_models_policy_decides_what_is_opened(three, tmp_path):
    model = ChatLLaVA(backend=FakeBackend(policy=SourcePolicy(roots=[tmp_path / "else"])))
    with pytest.raises(SourceNotAllowedError):
        prompt_of(documents_of(three)[:1], model=model)


def test_a_store_that_overwrites_the_source_loses_no_page(three):
    fake = FakeBackend()
    model = ChatLLaVA(backend=fake)
    (first, *_) = documents_of(three)
    first.metadata["source"] = "./lancedb"
    model.invoke(prompt_of([first], model=model))
    assert asked(fake)[0] == RED


def test_a_page_whose_metadata_were_lost_is_told():
    with pytest.raises(DocumentError, match="page loader"):
        prompt_of([Document("x", metadata={"page": 1, "sha256": "0" * 64, "source": "a.pdf"})])


def test_no_documents_and_bad_bounds():
    assert prompt_of([]).messages[0].content == [{"type": "text", "text": "What?"}]
    with pytest.raises(ParameterError):
        prompt_of([], max_pages=0)
    with pytest.raises(ParameterError):
        prompt_of([], model=ChatLLaVA(backend=FakeBackend()), answer_tokens=-1)


@pytest.mark.parametrize("documents", ["a.pdf", Document("x"), [PAGES], [None]])
def test_what_is_no_document_is_refused_in_words(documents):
    with pytest.raises(ParameterError, match="documents is"):
        prompt_of(documents)
    with pytest.raises(ParameterError, match="question"):
        prompt_of([], None)


def test_a_model_of_plain_text_is_refused_and_does_not_guess(three):
    fake = FakeBackend()
    with pytest.raises(UnsupportedContentError, match="chat model"):
        LLaVALLM(backend=fake).invoke(prompt_of(documents_of(three)))
    assert not fake.requests
    assert LLaVALLM(backend=fake).invoke(prompt_of([NOTE])) == "ok"


async def test_async_gives_the_same(three):
    documents = documents_of(three)
    assert await apage_messages(documents, "What?") == prompt_of(documents)


def test_traces_see_digests_and_no_megabytes(three):
    model = ChatLLaVA(backend=FakeBackend())
    prompt = prompt_of(documents_of(three), model=model)
    told = json.dumps(list(prompt.messages[0].content))
    assert len(told) < 1500
    assert "sha256:" in told
