"""From a question through any vector store to an answer that cites its pages."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from llavakit.documents import Tiles
from llavakit.errors import DocumentError, ParameterError
from llavakit.langchain import ChatLLaVA, PageImageLoader, page_question_chain
from llavakit.testing import FakeBackend
from tests.documents.test_pages import pdf
from tests.langchain.words import WordEmbeddings

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "examples/data/pages.pdf"
TOTALS = {"report": ("234", 1), "invoice": ("11", 2), "receipt": ("8117", 3)}


@pytest.fixture(scope="module")
def documents():
    """The pages of the example, as the demo model reads them."""
    model = ChatLLaVA(model="demo")
    return PageImageLoader(PAGES, text="transcribe", model=model, page_seconds=None).load()


def in_memory(documents, folder):
    store = InMemoryVectorStore(WordEmbeddings())
    store.add_documents(documents)
    return store


def in_lancedb(documents, folder):
    from lance_store import LanceStore

    store = LanceStore(folder, WordEmbeddings())
    store.add_documents(documents)
    return store


def in_langchain_lancedb(documents, folder):
    """Writes its own address over the sources, and gives no ids back."""
    from langchain_lancedb import LanceDB

    store = LanceDB(WordEmbeddings(), uri=folder)
    store.add_documents(documents)
    return store


STORES = {"memory": in_memory, "lancedb": in_lancedb, "langchain-lancedb": in_langchain_lancedb}


@pytest.fixture(params=STORES)
def store(request, documents, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return STORES[request.param](documents, tmp_path / "index")


@pytest.fixture
def chain(documents, tmp_path):
    retriever = in_memory(documents, tmp_path).as_retriever(search_kwargs={"k": 1})
    return page_question_chain(retriever, ChatLLaVA(model="demo", temperature=0, max_tokens=16))


QUESTIONS = [f"What is the total on the {title}?" for title in TOTALS]


def check(results):
    for result, (total, page) in zip(results, TOTALS.values(), strict=True):
        assert result["answer"] == total
        assert result["citations"] == [{"source": str(PAGES), "page": page}]
        assert [one.metadata["page"] for one in result["documents"]] == [page]
        assert result["left_out"] == []


def test_right_answers_with_the_right_page_from_every_store(store):
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=16)
    chain = page_question_chain(store.as_retriever(search_kwargs={"k": 1}), model)
    check(chain.batch(QUESTIONS))


def test_one_at_a_time(chain):
    check([chain.invoke(question) for question in QUESTIONS])


async def test_asynchronously(chain):
    check(await asyncio.gather(*map(chain.ainvoke, QUESTIONS)))
    check(await chain.abatch(QUESTIONS))


def test_a_stream_begins_with_the_citations_and_ends_with_the_whole_answer():
    fake = FakeBackend(["one two three four"])
    found = [Document("a text", metadata={"source": "a.txt"})]
    chain = page_question_chain(lambda query: found, ChatLLaVA(backend=fake))
    pieces = list(chain.stream("What?"))
    answers = [piece["answer"] for piece in pieces if "answer" in piece]
    assert len(answers) >= 4
    assert "".join(answers) == "one two three four"
    first_answer = next(n for n, piece in enumerate(pieces) if "answer" in piece)
    before = {key for piece in pieces[:first_answer] for key in piece}
    assert before == {"question", "documents", "left_out", "citations"}


async def test_an_async_stream_that_is_left_cancels_the_request():
    fake = FakeBackend(["one two three four"], hang=True)
    found = [Document("a text", metadata={"source": "a.txt"})]
    chain = page_question_chain(lambda query: found, ChatLLaVA(backend=fake))
    stream = chain.astream("What?")
    async for piece in stream:
        if "answer" in piece:
            break
    await stream.aclose()
    for _ in range(100):
        if fake.cancelled:
            break
        await asyncio.sleep(0.01)
    assert fake.cancelled == 1


def test_other_words_may_be_searched_than_asked(documents, tmp_path):
    queries = []

    def retriever(query):
        queries.append(query)
        return documents[2:3]

    model = ChatLLaVA(model="demo", temperature=0, max_tokens=16)
    chain = page_question_chain(retriever, model)
    result = chain.invoke({"query": "receipt 55064", "question": "What is the total?"})
    assert queries == ["receipt 55064"]
    assert result["question"] == "What is the total?"
    assert result["answer"] == "8117"


def test_a_template_puts_the_question_into_other_words(documents):
    fake = FakeBackend()
    template = "{question}\nAnswer the question using a single word or phrase."
    chain = page_question_chain(
        lambda query: documents[:1], ChatLLaVA(backend=fake), question_template=template
    )
    chain.invoke("What is {total}?")
    assert fake.requests[0].messages[0].text == template.replace("{question}", "What is {total}?")


def test_where_nothing_is_found_no_model_is_asked():
    fake = FakeBackend()
    chain = page_question_chain(lambda query: [], ChatLLaVA(backend=fake))
    result = chain.invoke("What?")
    assert "No page was found" in result["answer"]
    assert result["citations"] == []
    assert "".join(piece.get("answer", "") for piece in chain.stream("What?")) == result["answer"]
    assert not fake.requests


def test_any_chat_model_answers_and_what_did_not_fit_is_in_the_result(documents):
    model = RunnableLambda(lambda prompt: AIMessage(str(len(prompt.to_messages()[0].content))))
    chain = page_question_chain(lambda query: documents, model, max_pages=1)
    result = chain.invoke("What?")
    assert result["answer"] == "2"  # one picture and the question
    assert len(result["left_out"]) == 3


def test_texts_and_chunks_are_cited_once_each(documents):
    note = Document("Anna pays in June.", metadata={"source": "notes.txt", "page": 0})
    chunk = documents[0].model_copy(update={"page_content": "a chunk"})
    chain = page_question_chain(
        lambda query: [documents[0], note, chunk], ChatLLaVA(backend=FakeBackend())
    )
    assert chain.invoke("What?")["citations"] == [
        {"source": str(PAGES), "page": 1},
        {"source": "notes.txt", "page": None},
    ]


def test_a_document_that_changed_after_indexing_is_an_error(tmp_path):
    path = tmp_path / "changing.pdf"
    path.write_bytes(pdf("1 0 0 rg 0 0 999 999 re f"))
    found = PageImageLoader(path, page_seconds=None).load()
    path.write_bytes(pdf("0 0 1 rg 0 0 999 999 re f"))
    chain = page_question_chain(lambda query: found, ChatLLaVA(backend=FakeBackend()))
    with pytest.raises(DocumentError, match="index the document anew"):
        chain.invoke("What?")


def test_a_bad_question_harms_no_other_one_of_its_batch(chain):
    good, bad = chain.batch([QUESTIONS[0], {"query": "x"}], return_exceptions=True)
    assert good["answer"] == "234"
    assert isinstance(bad, ParameterError)


@pytest.mark.parametrize("question", ["", "  ", {}, {"question": 3}, 5, ["What?"]])
def test_what_is_no_question_is_refused(question):
    chain = page_question_chain(lambda query: [], ChatLLaVA(backend=FakeBackend()))
    with pytest.raises(ParameterError, match="takes a question"):
        chain.invoke(question)


def test_a_template_without_a_place_for_the_question_is_refused_at_once():
    with pytest.raises(ParameterError, match="question_template"):
        page_question_chain(
            lambda query: [], ChatLLaVA(backend=FakeBackend()), question_template=""
        )


ASK_AGAIN = """
from lance_store import LanceStore
from llavakit.langchain import ChatLLaVA, page_question_chain
from tests.langchain.words import WordEmbeddings

store = LanceStore({folder!r}, WordEmbeddings())
model = ChatLLaVA(model="demo", temperature=0, max_tokens=16)
chain = page_question_chain(store.as_retriever(search_kwargs={{"k": 1}}), model)
for result in chain.batch({questions!r}):
    print(len(store), result["answer"], result["citations"][0]["page"], result["documents"][0].id)
"""


def test_an_index_in_lancedb_that_was_written_twice_is_opened_and_right(
    documents, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "examples")
    from lance_store import LanceStore

    folder = str(tmp_path / "index")
    for _ in range(2):  # a second time changes nothing
        in_lancedb(documents, folder)
    store = LanceStore(folder, WordEmbeddings())
    chain = page_question_chain(
        store.as_retriever(search_kwargs={"k": 1}), ChatLLaVA(model="demo", temperature=0)
    )
    results = chain.batch(QUESTIONS)
    check(results)
    ids = {document.metadata["page"]: document.id for document in documents}
    assert [one["documents"][0].id for one in results] == [ids[p] for _, p in TOTALS.values()]
    assert len(store) == 4


@pytest.mark.slow  # `make demo`, whose test is not slow, asks an index from another process as well
def test_an_index_in_lancedb_is_opened_and_right_in_another_process(
    documents, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "examples")
    folder = str(tmp_path / "index")
    for _ in range(2):  # a second time changes nothing
        in_lancedb(documents, folder)
    paths = os.pathsep.join([str(ROOT / "examples"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", ASK_AGAIN.format(folder=folder, questions=QUESTIONS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    ids = {document.metadata["page"]: document.id for document in documents}
    right = [f"4 {total} {page} {ids[page]}" for total, page in TOTALS.values()]
    assert done.stdout.splitlines() == right


@pytest.mark.slow
def test_the_example_answers_ten_questions_about_a_pdf_of_36_pages():
    done = subprocess.run(
        [sys.executable, "examples/langchain_rag.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("36 pages read")
    assert "10 of 10 right" in done.stdout
    assert "BAD" not in done.stdout


@pytest.fixture
def printed(tmp_path):
    """Pages with a text layer, and what finds them all."""
    from tests.documents.drawn import turned

    for name, total in (("a.pdf", 5243), ("b.pdf", 9)):
        (tmp_path / name).write_bytes(turned(0, [(40, 100, f"The total is {total} crowns")]))
    found = PageImageLoader(tmp_path, page_seconds=None).load()
    return RunnableLambda(lambda query: found)


def test_with_boxes_the_citations_say_where_the_answer_stands(printed):
    model = ChatLLaVA(backend=FakeBackend(lambda request: "It is 5243 crowns."), model="fake")
    chain = page_question_chain(printed, model, boxes=True)
    pieces = list(chain.stream("What is the total?"))
    assert "citations" in pieces[-1], "where an answer stands is known when it is complete"
    first, second = pieces[-1]["citations"]
    ((left, top, right, bottom),) = first["boxes"]
    assert first["page"] == 1 and first["quote"] == "It is 5243 crowns." and first["note"] == ""
    assert left < right and top == pytest.approx(90 / 600, abs=0.02) and bottom < 0.2
    assert second["boxes"] == [] and "do not stand" in second["note"]
    assert json.dumps(pieces[-1]["citations"])
    plain = page_question_chain(printed, model).invoke("What is the total?")["citations"]
    assert plain == [{"source": one["source"], "page": 1} for one in (first, second)]
    again = asyncio.run(chain.ainvoke("What is the total?"))["citations"]
    assert again == [first, second]


def test_a_region_and_tiles_show_small_print(printed):
    backend = FakeBackend(lambda request: "9")
    model = ChatLLaVA(backend=backend, model="fake")
    for options, images in (({"region": (0, 0, 1, 0.5)}, 2), ({"tiles": Tiles(2, 1)}, 6)):
        page_question_chain(printed, model, **options).invoke("What is the total?")
        assert len(backend.requests[-1].messages[-1].images) == images
    with pytest.raises(ParameterError, match="region"):
        page_question_chain(printed, model, region=(0, 0, 0, 1))
