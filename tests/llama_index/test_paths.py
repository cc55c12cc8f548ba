"""The framework's paths that carry images, each with its right answer from the bundled model.

Where the framework's own prompt is beyond so small a model, the path's template is set to one
that it understands, as its user would do; ``docs/llama-index.md`` says where.
"""

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.indices.multi_modal import MultiModalVectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import Document, ImageNode, MediaResource, QueryBundle

from llavakit.llama_index import ImageResolver, LLaVA, LLaVAMultiModal
from llavakit.sources import SourcePolicy
from tests.llama_index.pictures import Case, ShapeEmbedding

ASKED = [("What colour is the circle?", "red"), ("What colour is the square?", "blue")]
TOP = {"similarity_top_k": 1, "image_similarity_top_k": 1}

# The pictures of what was found, then the question, and nothing else.
SHORT = RichPromptTemplate(
    '{% chat role="user" %}{% for message in context_messages %}{% for block in message.blocks %}'
    "{% if block.block_type == 'image' %}{{ block.inline_url() | image }}{% endif %}"
    "{% endfor %}{% endfor %}{{ query_str }}{% endchat %}"
)

# Two of the framework's engines are deprecated by it, and still what its indices give out.
pytestmark = [
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Call to deprecated"),
    pytest.mark.parametrize(("question", "answer"), ASKED),
]


@pytest.fixture(scope="module", params=[LLaVA, LLaVAMultiModal], ids=lambda kind: kind.__name__)
def llm(request, demo_backend):
    return request.param(model="demo", temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paths")


@pytest.fixture(scope="module")
def cases(folder):
    return [
        Case.drawn(folder, "ellipse", (220, 30, 30)),
        Case.drawn(folder, "rectangle", (30, 60, 220)),
    ]


@pytest.fixture(scope="module")
def index(cases):
    nodes = [
        ImageNode(image_path=str(case.path), metadata={"file_name": case.path.name})
        for case in cases
    ]
    embedding = ShapeEmbedding()
    return MultiModalVectorStoreIndex(
        nodes=nodes, embed_model=embedding, image_embed_model=embedding
    )


@pytest.fixture(scope="module")
def retriever(index):
    return index.as_retriever(**TOP)


# Query engines


async def test_the_multi_modal_indexs_query_engine(llm, index, question, answer):
    engine = index.as_query_engine(llm=llm, **TOP)  # with the framework's own prompt
    assert str(engine.query(question)) == answer
    assert str(await engine.aquery(question)) == answer


async def test_a_retriever_query_engine(llm, retriever, question, answer):
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm, multimodal=True, chat_content_qa_template=SHORT
    )
    assert str(engine.query(question)) == answer
    assert str(await engine.aquery(question)) == answer


async def test_a_streaming_query_engine(llm, retriever, question, answer):
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm, multimodal=True, streaming=True, chat_content_qa_template=SHORT
    )
    assert "".join(engine.query(question).response_gen) == answer
    pieces = [piece async for piece in (await engine.aquery(question)).async_response_gen()]
    assert "".join(pieces) == answer


async def test_a_citation_query_engine(llm, index, retriever, question, answer):
    engine = CitationQueryEngine.from_args(
        index,
        retriever=retriever,
        llm=llm,
        multimodal=True,
        citation_chat_content_qa_template=SHORT,
    )
    response = engine.query(question)
    assert str(response) == answer and len(response.source_nodes) == 1
    assert str(await engine.aquery(question)) == answer


async def test_a_vector_index_of_documents_with_pictures(llm, cases, question, answer):
    documents = [
        Document(text=name, image_resource=MediaResource(path=case.path))
        for name, case in zip(("a circle", "a square"), cases, strict=True)
    ]
    # As nodes: the ingestion of `from_documents` would drop the pictures.
    index = VectorStoreIndex(
        nodes=documents, embed_model=ShapeEmbedding(), store_nodes_override=True
    )
    engine = index.as_query_engine(
        llm=llm, multimodal=True, similarity_top_k=1, chat_content_qa_template=SHORT
    )
    assert str(engine.query(question)) == answer
    assert str(await engine.aquery(question)) == answer


async def test_both_pictures_in_one_call_with_our_prompt_helper(llm, index, question, answer):
    synthesizer = get_response_synthesizer(
        llm=llm,
        multimodal=True,
        chat_content_qa_template=SHORT,
        chat_prompt_helper=llm.chat_prompt_helper(),
    )
    both = index.as_retriever(similarity_top_k=2, image_similarity_top_k=2)
    engine = RetrieverQueryEngine(both, synthesizer)
    response = engine.query(question)
    assert str(response) == answer and len(response.source_nodes) == 2
    assert str(await engine.aquery(question)) == answer


def test_pictures_that_were_resolved_under_a_policy(llm, folder, retriever, question, answer):
    resolver = ImageResolver(policy=SourcePolicy(roots=(folder,), allow_urls=False))
    engine = RetrieverQueryEngine.from_args(
        retriever,
        llm=llm,
        multimodal=True,
        node_postprocessors=[resolver],
        chat_content_qa_template=SHORT,
    )
    response = engine.query(question)
    assert str(response) == answer
    assert response.source_nodes[0].node.image_path.startswith(str(folder))


def test_a_synthesizer_without_an_engine(llm, retriever, question, answer):
    synthesizer = get_response_synthesizer(llm=llm, multimodal=True, chat_content_qa_template=SHORT)
    nodes = retriever.retrieve(question)
    assert str(synthesizer.synthesize(QueryBundle(question), nodes)) == answer


# Chat engines


@pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
async def test_a_chat_engine_over_pictures(llm, index, mode, question, answer):
    engine = index.as_chat_engine(chat_mode=mode, llm=llm, **TOP)
    assert str(engine.chat(question)) == answer
    engine.reset()
    assert str(await engine.achat(question)) == answer
    engine.reset()
    assert "".join(engine.stream_chat(question).response_gen) == answer


def seen(cases, answer):
    """A turn with an image, and what was said of it."""
    case = cases[0] if answer == "red" else cases[1]
    shown = ChatMessage(
        role="user", blocks=[ImageBlock(path=case.path), TextBlock(text="What is this?")]
    )
    kind = "circle" if answer == "red" else "square"
    return [shown, ChatMessage(role="assistant", content=f"a {answer} {kind}")]


async def test_a_simple_chat_engine_with_a_picture_in_its_history(llm, cases, question, answer):
    engine = SimpleChatEngine.from_defaults(llm=llm)
    assert str(engine.chat(question, chat_history=seen(cases, answer))) == answer
    assert str(await engine.achat(question, chat_history=seen(cases, answer))) == answer


@pytest.mark.parametrize("kind", [Memory, ChatMemoryBuffer])
def test_a_memory_keeps_the_picture(llm, cases, kind, question, answer):
    memory = kind.from_defaults(token_limit=3500)
    for message in seen(cases, answer):
        memory.put(message)
    memory.put(ChatMessage(role="user", content=question))
    assert llm.chat(memory.get()).message.content == answer


# Prompts


@pytest.fixture
def picture(cases, answer):
    return (cases[0] if answer == "red" else cases[1]).uri


async def test_predictions_with_a_rich_template(llm, picture, question, answer):
    prompt = RichPromptTemplate('{% chat role="user" %}{{img|image}}{{q}}{% endchat %}')
    values = {"img": picture, "q": question}
    assert llm.predict(prompt, **values) == answer
    assert await llm.apredict(prompt, **values) == answer
    assert "".join(llm.stream(prompt, **values)) == answer
    assert "".join([piece async for piece in await llm.astream(prompt, **values)]) == answer


def test_a_chat_prompt_with_a_picture(llm, picture, question, answer):
    prompt = ChatPromptTemplate(
        [ChatMessage(role="user", blocks=[ImageBlock(url=picture), TextBlock(text="{q}")])]
    )
    assert llm.predict(prompt, q=question) == answer


def test_a_plain_prompt_is_a_users_message(llm, question, answer):
    told = f"The colour of the picture is unknown. {question}"
    assert llm.predict(PromptTemplate("{q}"), q=told) == llm.complete(told).text
