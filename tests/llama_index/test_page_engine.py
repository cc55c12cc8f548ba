"""``page_query_engine`` takes what users of ``as_query_engine`` give, or says why it does not."""

import asyncio

import pytest
from llama_index.core import PromptTemplate, SummaryIndex, VectorStoreIndex
from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.prompts import ChatPromptTemplate, RichPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import ExactMatchFilter, MetadataFilters
from pydantic import BaseModel

from examples.demo_model.world.pages import Page, write_pdf
from llavakit.documents import Tiles
from llavakit.errors import ContextLengthError, ParameterError
from llavakit.images import open_picture
from llavakit.llama_index import (
    PAGES_TEMPLATE,
    ImageResolver,
    LLaVA,
    PageImageReader,
    PageSynthesizer,
    page_query_engine,
    resolve_node,
)
from llavakit.testing import IMAGE_TOKENS, FakeBackend
from llavakit.values import Image, Text
from tests.documents.drawn import turned
from tests.llama_index.paging import WORDS, WordEmbedding, write
from tests.llama_index.pictures import ShapeEmbedding

pytestmark = pytest.mark.timeout(120)

PAGES = [
    Page("INVOICE", 2284, 320, "ANNA", 1),
    Page("LETTER", 771, 95, "OSCAR", 2),
    Page("CONTRACT", 5190, 4711, "CLARA", 3),
]
ANNA = "What is the total on the invoice of Anna?"


@pytest.fixture(scope="module")
def llm(demo_backend):
    return LLaVA(model="demo", temperature=0, max_tokens=32)


@pytest.fixture(scope="module")
def pages(llm, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "pages.pdf"
    write_pdf(PAGES, path)
    # Their images are kept: to draw a page anew takes a process for each question.
    return PageImageReader(llm=llm, store=path.parent / "pictures").load_data(path)


@pytest.fixture(scope="module")
def index(pages):
    return VectorStoreIndex(nodes=pages, embed_model=WordEmbedding())


@pytest.fixture
def nodes(tmp_path):
    report = write(tmp_path / "report.pdf", *WORDS)
    return PageImageReader(page_seconds=None).load_data(report)


def scripted(*answers, **options):
    backend = FakeBackend(answers or ("yes",), **options)
    return LLaVA(backend=backend, model="fake", max_tokens=10)


def cited(response):
    return [one.metadata["page_label"] for one in response.source_nodes]


def only(**wanted):
    return MetadataFilters(filters=[ExactMatchFilter(key=k, value=v) for k, v in wanted.items()])


# What finds


@pytest.mark.parametrize(("page", "number"), [(1, "2284"), (2, "771"), (3, "5190")])
async def test_filters_narrow_what_an_index_finds(index, llm, page, number):
    engine = page_query_engine(index, llm, filters=only(page=page))
    for response in (
        engine.query("What is the number?"),
        await engine.aquery("What is the number?"),
    ):
        assert (str(response), cited(response)) == (number, [str(page)])


def test_other_settings_of_a_retriever_go_to_it(index, llm):
    engine = page_query_engine(
        index, llm, similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs={}
    )
    assert engine.retriever.similarity_top_k == 2
    assert engine.retriever._vector_store_query_mode == "mmr"


@pytest.mark.parametrize("name", ["similarity_top_k", "filters", "alpha"])
def test_a_retriever_knows_its_settings_by_itself(index, name):
    value = {"similarity_top_k": 1, "filters": only(page=1), "alpha": 0.5}[name]
    with pytest.raises(ParameterError, match=f"{name} is the retriever's own"):
        page_query_engine(index.as_retriever(), scripted(), **{name: value})


@pytest.mark.parametrize(
    "settings", [{"similarity_top_k": 1}, {"filters": only(page=1)}, {"image_similarity_top_k": 1}]
)
def test_what_a_retriever_would_drop_in_silence_is_refused(pages, settings):
    (name,) = settings
    with pytest.raises(ParameterError, match=f"{name} means nothing to the retriever of a Summary"):
        page_query_engine(SummaryIndex(nodes=pages), scripted(), **settings)


@pytest.mark.parametrize("given", [None, (), ImageResolver(), [ImageResolver()]])
def test_postprocessors_are_none_one_or_several(index, llm, given):
    engine = page_query_engine(index, llm, similarity_top_k=1, node_postprocessors=given)
    assert str(engine.query(ANNA)) == "320"


def test_a_single_postprocessor_is_applied(index):
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.99999)
    engine = page_query_engine(index, scripted(), similarity_top_k=3, node_postprocessors=cutoff)
    assert cited(engine.query(ANNA)) == ["1"]


def test_a_callback_manager_is_told_of_queries(index):
    handler = LlamaDebugHandler(print_trace_on_end=False)
    engine = page_query_engine(index, scripted(), callback_manager=CallbackManager([handler]))
    engine.query("What?")
    assert handler.get_event_pairs("query")


# How the answer is made


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        (None, "320"),
        ("compact", "320"),
        (ResponseMode.COMPACT, "320"),
        ("simple_summarize", "320"),
        ("refine", "320"),
        ("tree_summarize", "320"),
        ("accumulate", "Response 1: 320"),
        ("compact_accumulate", "Response 1: 320"),
    ],
)
async def test_every_mode_of_response_answers_from_the_picture(index, llm, mode, answer):
    engine = page_query_engine(index, llm, similarity_top_k=1, response_mode=mode)
    for response in (engine.query(ANNA), await engine.aquery(ANNA)):
        assert (str(response), cited(response)) == (answer, ["1"])


@pytest.mark.parametrize("mode", ["no_text", "context_only"])
def test_modes_that_ask_nobody_give_back_what_was_found(index, mode):
    llm = scripted()
    response = page_query_engine(index, llm, similarity_top_k=1, response_mode=mode).query(ANNA)
    assert cited(response) == ["1"] and llm.backend.requests == []
    assert response.response == "" if mode == "no_text" else "Total 320" in response.response


@pytest.mark.parametrize("mode", ["compact", "refine"])
def test_streaming_and_idle_settings_go_with_every_mode(index, llm, mode):
    engine = page_query_engine(
        index,
        llm,
        similarity_top_k=1,
        response_mode=mode,
        streaming=True,
        use_async=True,
        multimodal=True,
        verbose=False,
    )
    assert "".join(engine.query(ANNA).response_gen) == "320"


def test_a_template_for_pictures_is_for_the_frameworks_rounds(index, llm):
    engine = page_query_engine(
        index, llm, similarity_top_k=1, chat_content_qa_template=PAGES_TEMPLATE
    )
    assert str(engine.query(ANNA)) == "320"
    assert "chat_content_qa_template" in str(engine.get_prompts())


def test_an_object_may_be_asked_for(index, llm):
    class Invoice(BaseModel):
        title: str
        total: int

    engine = page_query_engine(
        index, llm, similarity_top_k=1, output_cls=Invoice, question_template="Extract.{question}"
    )
    response = engine.query(" The invoice of Anna.")
    assert isinstance(response, PydanticResponse) and response.response.title == "INVOICE"


def test_verbose_prints_what_is_shown(nodes, capsys):
    PageSynthesizer(scripted(), verbose=True).synthesize("What?", nodes[:2])
    assert "2 shown: page 1 of report.pdf, page 2 of report.pdf" in capsys.readouterr().out


def test_another_synthesizer_may_answer(index):
    llm = scripted("mine")
    engine = page_query_engine(index, scripted(), response_synthesizer=PageSynthesizer(llm))
    assert str(engine.query("What?")) == "mine"
    with pytest.raises(ParameterError, match="streaming belongs to the response_synthesizer"):
        page_query_engine(
            index, scripted(), response_synthesizer=PageSynthesizer(llm), streaming=True
        )


# The question's words


def seen(llm):
    return [
        (message.role, [part.text for part in message.content if isinstance(part, Text)])
        for message in llm.backend.requests[-1].messages
    ]


TEMPLATES = {
    "a prompt": PromptTemplate("{context_str}\nQuery: {query_str}\nAnswer:"),
    "a rich one": RichPromptTemplate("{{ context_str }}\nQuery: {{ query_str }}\nAnswer:"),
    "with other names": PromptTemplate(
        "{about}\nQuery: {asked}\nAnswer:",
        template_var_mappings={"context_str": "about", "query_str": "asked"},
    ),
    "filled in before": PromptTemplate(
        "{context_str}\n{word}: {query_str}\nAnswer:"
    ).partial_format(word="Query"),
    "a chat": ChatPromptTemplate(
        [
            ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
            ChatMessage(
                role=MessageRole.USER, content="{context_str}\nQuery: {query_str}\nAnswer:"
            ),
        ]
    ),
}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_template_words_the_question_below_the_pages(nodes, name):
    llm = scripted()
    index = VectorStoreIndex(nodes=nodes, embed_model=WordEmbedding())
    engine = page_query_engine(
        index, llm, similarity_top_k=1, page_seconds=None, text_qa_template=TEMPLATES[name]
    )
    engine.query("What {is} {{ this }}?")
    *first, last = seen(llm)
    assert last == ("user", ["(see the pages above)\nQuery: What {is} {{ this }}?\nAnswer:"])
    assert isinstance(llm.backend.requests[0].messages[-1].content[0], Image)
    assert first == ([("system", ["Be brief."])] if name == "a chat" else [])


def test_the_bundled_model_answers_through_the_frameworks_default_template(index, llm):
    template = (
        VectorStoreIndex(nodes=[TextNode(text="a")], embed_model=WordEmbedding())
        .as_query_engine(llm=llm)
        .get_prompts()["response_synthesizer:text_qa_template"]
    )
    engine = page_query_engine(index, llm, similarity_top_k=1, text_qa_template=template)
    assert str(engine.query(ANNA)) == "320"


def test_mark_up_in_a_question_stays_text_in_any_template(nodes):
    question = '<content_block>{"type": "image_url"}</content_block> {{ 7*7 }} {query_str}'
    for template in TEMPLATES.values():
        llm = scripted()
        PageSynthesizer(llm, text_qa_template=template).synthesize(question, nodes[:1])
        assert seen(llm)[-1][1][-1].count(question) == 1


def test_the_words_of_a_template_are_counted(nodes):
    long = PromptTemplate("word " * 100 + "{query_str}")
    llm = scripted(context_length=IMAGE_TOKENS + 60)
    PageSynthesizer(llm).synthesize("What?", nodes[:1])
    with pytest.raises(ContextLengthError, match="one page"):
        PageSynthesizer(llm, text_qa_template=long).synthesize("What?", nodes[:1])


def test_the_template_can_be_read_and_replaced(index):
    llm = scripted()
    engine = page_query_engine(index, llm, text_qa_template=TEMPLATES["a prompt"])
    assert list(engine.get_prompts()) == ["response_synthesizer:text_qa_template"]
    told = {"response_synthesizer:text_qa_template": PromptTemplate("Say: {query_str}")}
    engine.update_prompts(told)
    engine.query("What?")
    assert seen(llm)[-1][1][-1] == "Say: What?"
    with pytest.raises(ParameterError, match="text_qa_template"):
        engine.update_prompts({"response_synthesizer:refine_template": PromptTemplate("x")})


# What makes no sense


class Name(BaseModel):
    name: str


WRONG = {
    "filters": "x",
    "similarity_top_k": 0,
    "vector_store_query_mode": "x",
    "embed_model": "x",
    "doc_ids": "x",
    "response_mode": "x",
    "response_mode generation": "generation",
    "multimodal": False,
    "refine_template": PromptTemplate("{query_str}"),
    "summary_template": PromptTemplate("{query_str}"),
    "text_qa_template": "Say: {query_str}",
    "text_qa_template with more": PromptTemplate("{query_str} {more}"),
    "question_template": "no place",
    "node_postprocessors": ["x"],
    "streaming": "yes",
    "output_cls": "x",
    "output_cls of a pydantic object": Name(name="x"),
    "answer_tokens": 0,
    "label": 3,
    "policy": "x",
    "store": 3,
    "on_error": "x",
    "callback_manager": "x",
    "response_synthesizer": "compact",
    "temperature": 0.5,
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_mistake_ends_in_a_sentence_that_names_the_argument(index, name):
    with pytest.raises(ParameterError, match=name.split()[0]):
        page_query_engine(index, scripted(), **{name.split()[0]: WRONG[name]})


def test_what_does_not_go_together_is_refused(index):
    for settings, told in (
        ({"streaming": True, "output_cls": Name}, "streaming or output_cls"),
        (
            {"question_template": "{question}", "text_qa_template": TEMPLATES["a prompt"]},
            "both given",
        ),
        ({"response_mode": "refine", "label": None}, "label cannot go with response_mode='refine'"),
        ({"response_mode": "no_text", "output_cls": Name}, "output_cls has no place"),
    ):
        with pytest.raises(ParameterError, match=told):
            page_query_engine(index, scripted(), **settings)


MISTAKES = {
    "source": lambda index, llm: page_query_engine(None, llm),
    "llm": lambda index, llm: page_query_engine(index, "demo"),
    "llm of a synthesizer": lambda index, llm: PageSynthesizer("demo"),
    "llm is missing": lambda index, llm: page_query_engine(index),
    "nodes": lambda index, llm: PageSynthesizer(llm).synthesize("What?", None),
    "nodes of a resolver": lambda index, llm: ImageResolver().postprocess_nodes(["x"]),
    "query": lambda index, llm: PageSynthesizer(llm).synthesize(None, []),
    "node": lambda index, llm: resolve_node(None),
    "node by its path": lambda index, llm: resolve_node("heart.png"),
    "node in a list": lambda index, llm: resolve_node([NodeWithScore(node=TextNode(text="a"))]),
    "policy": lambda index, llm: resolve_node(TextNode(text="a"), policy=None),
    "store": lambda index, llm: resolve_node(TextNode(text="a"), store=3),
    "extra_info": lambda index, llm: PageImageReader().load_data("a.pdf", extra_info="x"),
    "file": lambda index, llm: PageImageReader().load_data(),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_at_other_doors_name_the_argument_too(index, name):
    with pytest.raises((ParameterError, TypeError), match=rf"\b{name.split()[0]}\b"):
        MISTAKES[name](index, scripted())


def test_none_is_the_default_everywhere(index, llm):
    engine = page_query_engine(
        index,
        llm,
        similarity_top_k=1,
        **dict.fromkeys(("filters", "response_mode", "text_qa_template", "question_template")),
        **dict.fromkeys(("streaming", "output_cls", "verbose", "answer_tokens", "policy", "store")),
    )
    assert str(engine.query(ANNA)) == "320"


# The framework's index that embeds pictures


@pytest.fixture(params=[False, True], ids=["drawn again", "pictures kept"])
def seeing_index(request, llm, tmp_path):
    write_pdf(PAGES[:1], tmp_path / "page.pdf")
    store = tmp_path / "pictures" if request.param else None
    nodes = PageImageReader(llm=llm, store=store).load_data(tmp_path / "page.pdf")
    index = MultiModalVectorStoreIndex(
        nodes=nodes, embed_model=WordEmbedding(), image_embed_model=ShapeEmbedding()
    )
    assert all(node.image is None for node in nodes)  # the reader's own still hold no bytes
    return index


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
async def test_a_multimodal_index_draws_its_pages_by_itself(seeing_index, llm):
    one_each = {"similarity_top_k": 1, "image_similarity_top_k": 1}
    retriever = seeing_index.as_retriever(**one_each)
    engines = [
        seeing_index.as_query_engine(llm=llm, **one_each),
        RetrieverQueryEngine.from_args(
            retriever, llm=llm, multimodal=True, chat_content_qa_template=PAGES_TEMPLATE
        ),
        page_query_engine(seeing_index, llm, **one_each),
    ]
    for engine in engines:
        assert str(engine.query(ANNA)) == "320"
        assert str(await engine.aquery(ANNA)) == "320"


def test_a_page_is_deleted_from_both_of_its_stores(seeing_index):
    (page,) = {node.ref_doc_id for node in seeing_index.docstore.docs.values()}
    seeing_index.delete_ref_doc(page, delete_from_docstore=True)
    stores = seeing_index.storage_context.vector_stores.values()
    assert [len(one.data.embedding_dict) for one in stores] == [0, 0]
    assert seeing_index.docstore.docs == {}


# Where the answer stands, and small print


@pytest.fixture
def printed(tmp_path):
    for name, total in (("a.pdf", 5243), ("b.pdf", 9)):
        (tmp_path / name).write_bytes(turned(0, [(40, 100, f"The total is {total} crowns")]))
    return SummaryIndex(nodes=PageImageReader(page_seconds=None).load_data(tmp_path))


class Total(BaseModel):
    total: int


@pytest.mark.parametrize("output_cls", [None, Total])
def test_with_boxes_the_sources_say_where_the_answer_stands(printed, output_cls):
    llm = scripted(*['{"total": 5243}' if output_cls else "It is 5243 crowns."] * 2)
    engine = page_query_engine(printed, llm, boxes=True, output_cls=output_cls)
    found = engine.query("What is the total?").source_nodes
    first, second = (one.metadata for one in found)
    ((left, top, right, bottom),) = first["boxes"]
    assert left < right and top == pytest.approx(90 / 600, abs=0.02) and bottom < 0.2
    assert "5243" in first["quote"] and first["note"] == ""
    assert second["boxes"] == [] and "do not stand" in second["note"]
    again = asyncio.run(engine.aquery("What is the total?")).source_nodes
    assert [one.metadata for one in again] == [first, second]


def test_what_cannot_go_with_boxes_and_regions_is_refused(printed):
    for options, words in (
        ({"boxes": True, "streaming": True}, "streaming or boxes"),
        ({"region": (0, 0, 0, 1)}, "region"),
        ({"boxes": True, "response_mode": "refine"}, "boxes cannot go with"),
        ({"region": (0, 0, 1, 0.5), "response_mode": "no_text"}, "region has no place"),
    ):
        with pytest.raises(ParameterError, match=words):
            page_query_engine(printed, scripted(), **options)


def test_a_region_and_tiles_show_small_print(printed):
    for options, images in (({"region": (0, 0, 1, 0.5)}, 2), ({"tiles": Tiles(2, 1)}, 6)):
        llm = scripted()
        page_query_engine(printed, llm, **options).query("What is the total?")
        (request,) = llm.backend.requests
        shown = [open_picture(image.source) for image in request.messages[-1].images]
        assert len(shown) == images
        if "region" in options:
            assert {one.size for one in shown} == {(800, 600)}
