"""Retrievers of both frameworks opened by the folder of an index: what they may open, and keys."""

import importlib

import pytest

from llavakit.errors import DocumentError, ParameterError, SourceNotAllowedError
from llavakit.retrieval import PageIndex
from llavakit.retrieval.embedder import load_embedder
from llavakit.sources import SourcePolicy
from tests.documents.test_archives import locked_pdf
from tests.retrieval.documents import picture

ADAPTERS = ["llavakit.langchain", "llavakit.llama_index"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of documents, and an index of it beside it."""
    root = tmp_path_factory.mktemp("opening")
    (root / "in").mkdir()
    picture(root / "in" / "a.png", "red")
    (root / "in" / "b.pdf").write_bytes(locked_pdf("key"))
    with PageIndex(root / "index", load_embedder("demo"), password="key") as index:
        assert index.update(root / "in").added == 2
    return root


def opened(adapter, place, **options):
    return importlib.import_module(adapter).PageImageRetriever.open(place / "index", **options)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_policy_of_a_retriever_is_its_index_s(place, adapter):
    closed = opened(adapter, place, source_policy=SourcePolicy(allow_files=False))
    for hit in closed.index.search("anything", 2):
        with pytest.raises(SourceNotAllowedError):
            hit.page()
    fenced = opened(adapter, place, source_policy=SourcePolicy(roots=(place / "in",)))
    shown = [hit for hit in fenced.index.search("anything", 2) if hit.reference.source[-1] == "g"]
    assert shown[0].page().size == (60, 60)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_policy_of_a_retriever_is_its_model_s(place, adapter):
    policy = SourcePolicy(allow_files=False)
    embedder = opened(adapter, place, source_policy=policy).index.embedder
    with pytest.raises(SourceNotAllowedError):
        embedder.embed(images=[place / "in" / "a.png"])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_password_of_a_retriever_opens_what_it_found(place, adapter):
    for password in (None, "key"):
        hits = opened(adapter, place, password=password).index.search("anything", 2)
        (locked,) = [hit for hit in hits if hit.reference.source.endswith("b.pdf")]
        if password is None:
            with pytest.raises(DocumentError, match="password"):
                locked.page()
        else:
            assert locked.page().number == 1


def test_nodes_open_what_the_index_may(place):
    from llavakit.llama_index import PageImageRetriever

    policy = SourcePolicy(allow_files=False)
    for one in (
        opened(ADAPTERS[1], place, source_policy=policy),
        opened(ADAPTERS[1], place, policy=policy),
        PageImageRetriever(opened(ADAPTERS[0], place, source_policy=policy).index),
    ):
        with pytest.raises(SourceNotAllowedError):
            one.retrieve("anything")[0].node.resolve_image()


def test_two_names_of_the_policy_at_once_are_refused(place):
    policy = SourcePolicy()
    with pytest.raises(ParameterError, match="two names"):
        opened(ADAPTERS[1], place, policy=policy, source_policy=policy)
