"""Questions answered from the pixels of pages, with the page cited, in one exact prompt."""

import asyncio
import threading
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from PIL import Image as PILImage
from pydantic import BaseModel

from examples.demo_model.world.pages import Page, write_pdf
from llavakit.documents import PageStore
from llavakit.errors import (
    ContextLengthError,
    DocumentError,
    ParameterError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import open_picture
from llavakit.llama_index import (
    PAGES_TEMPLATE,
    ImageResolver,
    LLaVA,
    PageImageReader,
    PageSynthesizer,
    page_query_engine,
)
from llavakit.sources import SourcePolicy
from llavakit.testing import IMAGE_TOKENS, FakeBackend
from llavakit.values import Image, Text
from tests.llama_index.paging import WORDS, Lance, WordEmbedding, write

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning"),
]

PAGES = [
    Page("INVOICE", 2284, 320, "ANNA", 1),
    Page("LETTER", 771, 95, "OSCAR", 2),
    Page("CONTRACT", 5190, 4711, "CLARA", 3),
]
ASKED = [
    ("What is the total on the invoice of Anna?", "320", "1"),
    ("What is the letter number of Oscar?", "771", "2"),
    ("How much is the contract of Clara?", "4711", "3"),
]


@pytest.fixture(scope="module")
def llm(demo_backend):
    return LLaVA(model="demo", temperature=0, max_tokens=32)


@pytest.fixture(scope="module")
def index(llm, tmp_path_factory):
    """Read by the bundled model, kept in LanceDB, and opened again."""
    folder = tmp_path_factory.mktemp("pages")
    write_pdf(PAGES, folder / "pages.pdf")
    nodes = PageImageReader(llm=llm, store=folder / "pictures").load_data(folder / "pages.pdf")
    kept = StorageContext.from_defaults(vector_store=Lance(uri=str(folder / "lance")))
    VectorStoreIndex(nodes=nodes, storage_context=kept, embed_model=WordEmbedding())
    again = Lance(uri=str(folder / "lance"))
    return VectorStoreIndex.from_vector_store(again, embed_model=WordEmbedding())


def cited(response) -> list[str]:
    return [one.node.metadata["page_label"] for one in response.source_nodes]


# Right answers from the right page


@pytest.mark.parametrize(("question", "answer", "page"), ASKED)
async def test_the_answer_and_its_page_are_right_in_every_way_of_asking(
    index, llm, question, answer, page
):
    engine = page_query_engine(index, llm, similarity_top_k=1)
    response = engine.query(question)
    assert (str(response), cited(response)) == (answer, [page])
    later = await engine.aquery(question)
    assert (str(later), cited(later)) == (answer, [page])

    streaming = page_query_engine(index, llm, similarity_top_k=1, streaming=True)
    response = streaming.query(question)
    assert ("".join(response.response_gen), cited(response)) == (answer, [page])
    later = await streaming.aquery(question)
    pieces = [piece async for piece in later.async_response_gen()]
    assert ("".join(pieces), cited(later)) == (answer, [page])


async def test_many_questions_at_once_do_not_mix(index, llm):
    engine = page_query_engine(index, llm, similarity_top_k=1)
    asked = [one for one in ASKED for _ in range(3)]
    responses = await asyncio.gather(*(engine.aquery(question) for question, *_ in asked))
    assert [(str(one), cited(one)) for one in responses] == [(a, [p]) for _, a, p in asked]


class Invoice(BaseModel):
    title: str
    number: int
    total: int


async def test_an_object_is_filled_in_from_the_page(index, demo_backend):
    reader = LLaVA(model="demo", temperature=0)
    engine = page_query_engine(
        index,
        reader,
        similarity_top_k=1,
        output_cls=Invoice,
        question_template="Extract the data.{question}",
    )
    response = engine.query(" It is the contract of Clara.")
    assert isinstance(response, PydanticResponse) and cited(response) == ["3"]
    assert response.response == Invoice(title="CONTRACT", number=5190, total=4711)
    later = await engine.aquery(" It is the contract of Clara.")
    assert later.response == response.response


@pytest.mark.parametrize("kept", [True, False], ids=["pictures kept", "drawn again"])
@pytest.mark.parametrize(("question", "answer", "page"), ASKED[:1])
def test_the_frameworks_own_engines_answer_from_pages_too(
    llm, tmp_path, kept, question, answer, page
):
    write_pdf(PAGES[:1], tmp_path / "page.pdf")
    store = tmp_path / "pictures" if kept else None
    nodes = PageImageReader(llm=llm, store=store).load_data(tmp_path / "page.pdf")
    index = VectorStoreIndex(nodes=nodes, embed_model=WordEmbedding())
    resolver = [ImageResolver()]
    seeing = {"llm": llm, "multimodal": True}
    engines = [
        RetrieverQueryEngine.from_args(
            index.as_retriever(),
            node_postprocessors=resolver,
            chat_content_qa_template=PAGES_TEMPLATE,
            **seeing,
        ),
        CitationQueryEngine.from_args(
            index,
            node_postprocessors=resolver,
            citation_chat_content_qa_template=PAGES_TEMPLATE,
            **seeing,
        ),
        index.as_query_engine(
            llm=llm,
            node_postprocessors=resolver,
            response_synthesizer=get_response_synthesizer(
                chat_prompt_helper=llm.chat_prompt_helper(),
                chat_content_qa_template=PAGES_TEMPLATE,
                **seeing,
            ),
        ),
    ]
    for engine in engines:
        response = engine.query(question)
        assert (str(response), cited(response)) == (answer, [page])


# What the model is shown


def scripted(*answers, **options):
    return LLaVA(backend=FakeBackend(answers or ("yes",), **options), model="fake", max_tokens=10)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write(tmp_path / "report.pdf", *WORDS)


@pytest.fixture
def nodes(report, tmp_path):
    reader = PageImageReader(store=tmp_path / "pictures", page_seconds=None)
    return [NodeWithScore(node=node, score=1.0) for node in reader.load_data(report)]


def synthesized(llm, nodes, question="What?", **options):
    return PageSynthesizer(llm, **options).synthesize(question, list(nodes))


def seen(llm):
    (request,) = llm.backend.requests
    return request.messages[-1].content


def test_pages_stand_in_their_order_with_labels_and_the_question_is_last(nodes):
    llm = scripted()
    response = synthesized(llm, [nodes[2], nodes[0]])
    parts = seen(llm)
    assert [part.text.strip() for part in parts if isinstance(part, Text)] == [
        "Page 3 of report.pdf:",
        "Page 1 of report.pdf:",
        "What?",
    ]
    shown = [open_picture(part.source).digest for part in parts if isinstance(part, Image)]
    assert shown == [nodes[number].node.metadata["sha256"] for number in (2, 0)]
    assert cited(response) == ["3", "1"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "What?"),
        ({"question_template": "Answer briefly: {question}"}, "Answer briefly: What?"),
    ],
)
def test_a_page_alone_has_no_label(nodes, options, told):
    llm = scripted()
    synthesized(llm, nodes[:1], **options)
    assert [part.text for part in seen(llm) if isinstance(part, Text)] == [told]


def test_text_of_other_nodes_is_shown_as_text(nodes):
    llm = scripted()
    words = NodeWithScore(node=TextNode(text="The total is 7."), score=0.5)
    response = synthesized(llm, [words, nodes[0]])
    parts = seen(llm)
    assert parts[0] == Text("The total is 7.\n\n") and len(response.source_nodes) == 2


def test_a_picture_that_is_no_page_is_shown_too(nodes, tmp_path):
    PILImage.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    llm = scripted()
    node = ImageNode(image_path=str(tmp_path / "red.png"), metadata={"file_name": "red.png"})
    synthesized(llm, [NodeWithScore(node=node), nodes[0]])
    assert (
        "red.png" in seen(llm)[0].text and len([p for p in seen(llm) if isinstance(p, Image)]) == 2
    )


@pytest.mark.parametrize("room", [1, 2])
async def test_as_many_pages_as_the_context_holds_are_shown_and_the_rest_is_told(
    nodes, room, caplog
):
    llm = scripted(context_length=10 + 30 + room * (IMAGE_TOKENS + 10))
    response = synthesized(llm, nodes)
    assert cited(response) == ["1", "2"][:room]
    assert len([part for part in seen(llm) if isinstance(part, Image)]) == room
    left = [told["page_label"] for told in response.metadata.values() if told.get("left_out")]
    assert left == ["1", "2", "3"][room:]
    assert (
        f"{3 - room} of 3 nodes do not fit" in caplog.text and "page 3 of report.pdf" in caplog.text
    )
    later = await PageSynthesizer(llm).asynthesize("What?", nodes)
    assert cited(later) == cited(response) and later.metadata == response.metadata


def test_the_last_token_of_the_context_is_used_and_not_one_more(nodes, demo_backend):
    """With the bundled model's own count, a system prompt and labels."""
    prompts = []

    class Noting(LLaVA):
        def _chat(self, messages, arguments):
            response = LLaVA._chat(self, messages, arguments)
            prompts.append(response.raw["usage"]["prompt_tokens"])
            return response

    llm = Noting(model="demo", temperature=0, max_tokens=4, system_prompt="Be brief.")
    assert len(cited(synthesized(llm, nodes))) == 3
    room = demo_backend.info.context_length - prompts[0]
    assert len(cited(synthesized(llm, nodes, answer_tokens=room))) == 3
    assert len(cited(synthesized(llm, nodes, answer_tokens=room + 1))) == 2
    assert prompts[0] == prompts[1] > prompts[2]


def test_not_even_one_page_is_an_error_with_the_numbers(nodes):
    llm = scripted(context_length=40)
    with pytest.raises(ContextLengthError, match="one page"):
        synthesized(llm, nodes)
    assert llm.backend.requests == []


def test_nothing_found_asks_nobody():
    llm = scripted()
    assert str(synthesized(llm, [])) == "Empty Response"
    assert llm.backend.requests == []


def test_mark_up_in_a_question_is_text(nodes):
    llm = scripted()
    question = '{{ 7*7 }} {question} <content_block>{"type": "image_url"}</content_block> {0}'
    synthesized(llm, nodes[:1], question)
    assert seen(llm)[-1] == Text(question)


# What goes wrong


def built(report, llm, tmp_path, **options):
    nodes = PageImageReader(page_seconds=None).load_data(report)
    index = VectorStoreIndex(nodes=nodes, embed_model=WordEmbedding())
    return page_query_engine(index, llm, page_seconds=None, similarity_top_k=3, **options)


def test_a_changed_document_is_never_answered_from(report, tmp_path):
    llm = scripted()
    engine = built(report, llm, tmp_path)
    skipping = built(report, llm, tmp_path, on_error="skip")
    write(report, "alpha", "beta letter", "gamma")
    with pytest.raises(DocumentError, match="not the page that was indexed"):
        engine.query("What?")
    assert llm.backend.requests == []
    assert cited(skipping.query("What?")) == ["2"]


def test_the_models_own_policy_holds_unless_another_is_given(report, tmp_path):
    llm = scripted(policy=SourcePolicy(roots=(tmp_path / "elsewhere",)))
    with pytest.raises(SourceNotAllowedError):
        built(report, llm, tmp_path).query("What?")
    assert llm.backend.requests == []
    allowed = SourcePolicy(roots=(report.parent,))
    assert len(cited(built(report, llm, tmp_path, policy=allowed).query("What?"))) == 3


def test_a_store_is_looked_into_where_the_document_is_gone(report, tmp_path):
    engine = built(report, scripted(), tmp_path, store=tmp_path / "pictures")
    moved = report.rename(tmp_path / "moved.pdf")
    with pytest.raises(SourceNotFoundError, match="cannot be opened again"):
        engine.query("What?")
    PageImageReader(store=PageStore(tmp_path / "pictures")).load_data(moved)
    assert len(cited(engine.query("What?"))) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"streaming": True, "output_cls": Invoice}, "cannot be streamed"),
        ({"question_template": "no place"}, "has no {question}"),
    ],
)
def test_synthesis_that_makes_no_sense_is_refused(options, told):
    with pytest.raises(ParameterError, match=told):
        PageSynthesizer(scripted(), **options)


def test_a_retriever_finds_as_many_as_it_finds(report, tmp_path):
    nodes = PageImageReader(page_seconds=None).load_data(report)
    retriever = VectorStoreIndex(nodes=nodes, embed_model=WordEmbedding()).as_retriever(
        similarity_top_k=2
    )
    assert len(cited(page_query_engine(retriever, scripted()).query("What?"))) == 2
    with pytest.raises(ParameterError, match="similarity_top_k"):
        page_query_engine(retriever, scripted(), similarity_top_k=3)


def test_closing_a_stream_frees_the_model(nodes):
    llm = scripted("a long answer", hang=True)
    response = synthesized(llm, nodes[:1], streaming=True)
    assert next(response.response_gen)
    response.response_gen.close()
    assert llm.backend.cancelled == 1


async def test_closing_an_async_stream_frees_the_model(nodes):
    llm = scripted("a long answer", hang=True)
    synthesizer = PageSynthesizer(llm, streaming=True)
    response = await synthesizer.asynthesize("What?", list(nodes[:1]))
    assert await anext(response.response_gen)
    await response.response_gen.aclose()
    for _ in range(100):  # the framework's own generator is closed by the event loop
        if llm.backend.cancelled:
            break
        await asyncio.sleep(0.01)
    assert llm.backend.cancelled == 1


async def test_the_event_loop_goes_on_while_pages_are_opened_and_the_model_answers(nodes):
    gate = threading.Event()
    backend = FakeBackend(["yes"])
    counted = backend.count_tokens

    def counting(*args, **kwargs):
        assert gate.wait(30), "the loop was blocked"
        return counted(*args, **kwargs)

    backend.count_tokens = counting
    llm = LLaVA(backend=backend, model="fake")
    answering = asyncio.create_task(PageSynthesizer(llm).asynthesize("What?", nodes))
    await asyncio.sleep(0.05)
    gate.set()
    assert str(await answering) == "yes"
