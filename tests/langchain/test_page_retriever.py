"""Pages found by what they show, in LangChain: its standard tests, and a chain that answers."""

import asyncio
from pathlib import Path

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from pydantic import ValidationError

from llavakit.documents import reopen
from llavakit.errors import ParameterError
from llavakit.images import open_picture
from llavakit.langchain import (
    ChatLLaVA,
    PageEmbeddings,
    PageImageLoader,
    PageImageRetriever,
    page_question_chain,
)
from llavakit.langchain.page_documents import reference_of
from llavakit.testing import FakeBackend
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


class TestPageImageRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _with_an_index(self, index):
        self._index = index

    @property
    def retriever_constructor(self):
        return PageImageRetriever

    @property
    def retriever_constructor_params(self):
        return {"index": self._index}

    @property
    def retriever_query_example(self):
        return "the green page"


class TestPageEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return PageEmbeddings

    @property
    def embedding_model_params(self):
        return {"embedder": ColourEmbedder()}


def shown(request):
    """A pixel of each of a request's images, off its middle."""
    found = []
    for image in request.messages[-1].images:
        rgb = open_picture(image.source).rgb
        found.append(rgb.getpixel((rgb.width // 3, rgb.height // 3)))
    return found


async def test_a_chain_answers_from_the_page_that_was_found(index, folder):
    backend = FakeBackend(["it is green"])
    chain = page_question_chain(
        PageImageRetriever(index=index, k=1), ChatLLaVA(backend=backend, model="fake")
    )
    for result in (chain.invoke("the green page"), await chain.ainvoke("the green page")):
        assert result["answer"] == "it is green"
        assert result["citations"] == [{"source": str(folder / "a.pdf"), "page": 2}]
        assert result["left_out"] == []
    assert [shown(request) for request in backend.requests] == [[(0, 128, 0)]] * 2


def test_documents_are_those_of_the_loader(index, folder):
    loaded = {one.id: one for one in PageImageLoader(folder, page_seconds=None).lazy_load()}
    found = PageImageRetriever(index=index, k=9).invoke("red")
    assert {one.id for one in found} == loaded.keys()
    for one in found:
        metadata = {key: value for key, value in one.metadata.items() if key != "score"}
        assert metadata == loaded[one.id].metadata
        assert one.page_content == loaded[one.id].page_content
        assert reopen(reference_of(one), page_seconds=None)[0].digest == metadata["sha256"]
    assert [one.metadata["score"] for one in found] == sorted(
        (one.metadata["score"] for one in found), reverse=True
    )


def test_modes_of_the_retriever_and_of_one_call(index):
    hybrid = PageImageRetriever(index=index, k=1, mode="hybrid")
    assert hybrid.invoke("alpha blue")[0].metadata["page"] == 3
    assert hybrid.invoke("alpha 2", mode="text")[0].metadata["page"] == 2
    assert len(hybrid.invoke("alpha", k=3)) == 3
    assert hybrid.invoke("omega", mode="text") == []


async def test_searches_beside_each_other(index):
    retriever = PageImageRetriever(index=index, k=1)
    words = ["red", "green", "blue", "yellow"] * 3
    found = await asyncio.gather(*map(retriever.ainvoke, words))
    assert [one.metadata["page"] for (one,) in found] == [1, 2, 3, 1] * 3
    assert [one.metadata["page"] for (one,) in retriever.batch(words)] == [1, 2, 3, 1] * 3


def test_what_makes_no_sense_is_refused(index):
    for wrong in ({"k": 0}, {"mode": "magic"}, {"depth": 3}):
        with pytest.raises(ValidationError):
            PageImageRetriever(index=index, **wrong)
    retriever = PageImageRetriever(index=index)
    with pytest.raises(ParameterError, match="k is 0"):
        retriever.invoke("red", k=0)
    with pytest.raises(ParameterError, match="question is"):
        retriever.invoke(" ")
    with pytest.raises(TypeError):
        retriever.invoke("red", depth=3)


async def test_images_and_texts_lie_in_one_space(folder):
    embeddings = PageEmbeddings(ColourEmbedder())
    pages = PageImageLoader(folder / "a.pdf", page_seconds=None).load()
    images = [page.picture for page in reopen(map(reference_of, pages), page_seconds=None)]
    red, green, blue = embeddings.embed_images(images)
    assert embeddings.embed_query("green") == embeddings.embed_documents(["green"])[0]
    near = [sum(a * b for a, b in zip(embeddings.embed_query("green"), one, strict=True))
            for one in (red, green, blue)]  # fmt: skip
    assert near.index(max(near)) == 1 and near[1] > 0.99
    assert await embeddings.aembed_images([Path(folder / "b.png")]) == embeddings.embed_images(
        [str(folder / "b.png")]
    )
    assert embeddings.embed_documents([]) == embeddings.embed_images([]) == []
