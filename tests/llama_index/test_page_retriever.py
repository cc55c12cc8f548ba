"""Pages found by what they show, in LlamaIndex: nodes of pages, and an engine that answers."""

import asyncio
import io

import pytest
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import ImageNode, QueryBundle

from llavakit.documents import open_files
from llavakit.errors import ParameterError, SourceNotAllowedError
from llavakit.llama_index import (
    LLaVA,
    PageEmbedding,
    PageImageReader,
    PageImageRetriever,
    page_query_engine,
)
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from tests.langchain.test_page_retriever import shown
from tests.retrieval.colours import ColourEmbedder
from tests.retrieval.documents import coloured, picture
from tests.retrieval.test_index import opened

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    (folder / "a.pdf").write_bytes(coloured("red", "green", "blue", words="alpha"))
    picture(folder / "b.png", "yellow", "black")
    return folder


@pytest.fixture(scope="module")
def index(folder, tmp_path_factory):
    with opened(tmp_path_factory.mktemp("index") / "index") as index:
        index.update(folder)
        yield index


def pages(nodes):
    return [(one.metadata["file_name"], one.metadata["page"]) for one in nodes]


async def test_an_engine_answers_from_the_page_that_was_found(index):
    backend = FakeBackend(["it is green"])
    llm = LLaVA(backend=backend, model="fake", max_tokens=10)
    engine = page_query_engine(PageImageRetriever(index, 1), llm)
    for response in (engine.query("the green page"), await engine.aquery("the green page")):
        assert str(response) == "it is green"
        assert pages(response.source_nodes) == [("a.pdf", 2)]
    assert [shown(request) for request in backend.requests] == [[(0, 128, 0)]] * 2


def test_strings_that_a_query_names_for_searching_are_searched_for(index):
    backend = FakeBackend(["it is green"])
    llm = LLaVA(backend=backend, model="fake", max_tokens=10)
    engine = page_query_engine(PageImageRetriever(index, 1), llm)
    response = engine.query(QueryBundle("Which is it?", custom_embedding_strs=["green"]))
    assert pages(response.source_nodes) == [("a.pdf", 2)]
    assert "Which is it?" in backend.requests[0].messages[-1].text
    assert "green" not in backend.requests[0].messages[-1].text


def test_nodes_are_those_of_the_reader(index, folder):
    read = PageImageReader(page_seconds=None).load_data(folder / "a.pdf")
    found = PageImageRetriever(index, 9).retrieve("red")
    by_id = {one.node.node_id: one.node for one in found}
    for node in read:
        assert by_id[node.node_id].metadata == node.metadata
        assert by_id[node.node_id].text == node.text
    assert all(isinstance(one.node, ImageNode) for one in found)
    assert pages(found)[0] == ("a.pdf", 1)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].node.resolve_image().getvalue().startswith(b"\x89PNG")


def test_a_node_opens_what_the_policy_allows(index):
    closed = PageImageRetriever(index, 1, policy=SourcePolicy(allow_files=False))
    (found,) = closed.retrieve("red")
    with pytest.raises(SourceNotAllowedError):
        found.node.resolve_image()


async def test_modes_and_searches_beside_each_other(index):
    hybrid = PageImageRetriever(index, 1, "hybrid")
    assert pages(hybrid.retrieve("alpha blue")) == [("a.pdf", 3)]
    assert pages(PageImageRetriever(index, 9, "text").retrieve("alpha 2"))[0] == ("a.pdf", 2)
    words = ["red", "green", "blue"] * 3
    found = await asyncio.gather(*map(PageImageRetriever(index, 1).aretrieve, words))
    assert [pages(one)[0][1] for one in found] == [1, 2, 3] * 3


@pytest.mark.parametrize("wrong", [{"similarity_top_k": 0}, {"mode": "magic"}, {"index": "x"}])
def test_what_makes_no_sense_is_refused(index, wrong):
    with pytest.raises(ParameterError):
        PageImageRetriever(**{"index": index, **wrong})


async def test_an_embedding_of_images_and_texts(folder):
    embedding = PageEmbedding(embedder=ColourEmbedder())
    images = [one.picture.rgb for one in open_files(folder / "a.pdf", page_seconds=None)]
    streams = []
    for image in images:
        streams.append(io.BytesIO())
        image.save(streams[-1], "PNG")
    vectors = embedding.get_image_embedding_batch(streams)
    near = [embedding.similarity(embedding.get_query_embedding("green"), one) for one in vectors]
    assert near.index(max(near)) == 1 and near[1] > 0.99
    assert await embedding.aget_image_embedding(streams[0]) == vectors[0]
    assert embedding.get_image_embedding(str(folder / "b.png")) != vectors[0]
    texts = embedding.get_text_embedding_batch(["green", "red"])
    assert texts == [await embedding.aget_query_embedding(one) for one in ("green", "red")]
    assert embedding.to_payload()["model_name"] == "llavakit colours"
    assert "embedder" not in embedding.to_dict()


def test_an_index_of_the_framework_embeds_pages(folder):
    nodes = PageImageReader(page_seconds=None).load_data(folder / "a.pdf")
    embedding = PageEmbedding(embedder=ColourEmbedder())
    index = MultiModalVectorStoreIndex(
        nodes=nodes, embed_model=embedding, image_embed_model=embedding
    )
    found = index.as_retriever(image_similarity_top_k=1).text_to_image_retrieve("blue")
    assert pages(found) == [("a.pdf", 3)]
