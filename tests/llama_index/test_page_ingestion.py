"""Pipelines, document stores and indices treat pages as they treat the framework's documents."""

import asyncio
import copy
import pickle
from pathlib import Path

import pytest
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    Document,
    ImageNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

from llavakit.errors import SourceNotAllowedError
from llavakit.llama_index import PageImageReader
from llavakit.llama_index.pages import PageNode
from llavakit.sources import SourcePolicy
from tests.llama_index.paging import WORDS, WordEmbedding, write

pytestmark = pytest.mark.timeout(120)

UPSERTS, DELETES, DUPLICATES = (
    DocstoreStrategy.UPSERTS,
    DocstoreStrategy.UPSERTS_AND_DELETE,
    DocstoreStrategy.DUPLICATES_ONLY,
)
HISTORY = {
    "the first time": {"a.pdf": ["alpha", "beta"], "b.pdf": ["gamma"]},
    "the same again": {"a.pdf": ["alpha", "beta"], "b.pdf": ["gamma"]},
    "a page is deleted": {"a.pdf": ["alpha"], "b.pdf": ["gamma"]},
    "a page is changed": {"a.pdf": ["delta"], "b.pdf": ["gamma"]},
    "a file is new": {"a.pdf": ["delta"], "b.pdf": ["gamma"], "c.pdf": ["memo", "letter"]},
    "a file is deleted": {"a.pdf": ["delta"], "c.pdf": ["memo", "letter"]},
    "a file is copied": {"a.pdf": ["delta"], "b.pdf": ["delta"], "c.pdf": ["memo", "letter"]},
    "both copies are deleted": {"c.pdf": ["memo", "letter"]},
    "all as at first": {"a.pdf": ["alpha", "beta"], "b.pdf": ["gamma"]},
}
"""What a folder holds, one day after the other."""


def read(folder: Path, **options) -> list[PageNode]:
    return PageImageReader(page_seconds=None, **options).load_data(folder)


def put(folder: Path, files: dict[str, list[str]]) -> None:
    for old in folder.glob("*.pdf"):
        old.unlink()
    for name, words in files.items():
        write(folder / name, *words)


def as_documents(files: dict[str, list[str]]) -> list[Document]:
    return [
        Document(text=word, id_=f"{name}-{number}", metadata={"file_name": name, "page": number})
        for name, words in files.items()
        for number, word in enumerate(words)
    ]


class Indexed:
    """A pipeline with what it fills, and what is there after each run."""

    def __init__(self, strategy, *before):
        self.vectors, self.documents = SimpleVectorStore(), SimpleDocumentStore()
        self.pipeline = IngestionPipeline(
            transformations=[*before, WordEmbedding()],
            vector_store=self.vectors,
            docstore=self.documents,
            docstore_strategy=strategy,
        )

    def run(self, documents, later):
        if later:
            ran = asyncio.run(self.pipeline.arun(documents=list(documents)))
        else:
            ran = self.pipeline.run(documents=list(documents))
        texts = sorted(one.get_content() for one in self.documents.docs.values())
        return len(ran), len(self.vectors.data.embedding_dict), texts


@pytest.mark.parametrize("later", [False, True], ids=["run", "arun"])
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("strategy", [UPSERTS, DELETES, DUPLICATES], ids=lambda one: one.value)
def test_a_pipeline_does_with_pages_what_it_does_with_documents(strategy, split, later, tmp_path):
    # Vectors of documents that were not split cannot be deleted; those of pages can.
    alike = [SentenceSplitter()] if split or strategy != DUPLICATES else []
    documents = Indexed(strategy, *alike)
    pages = Indexed(strategy, *([SentenceSplitter()] if split else []))
    for day, files in HISTORY.items():
        put(tmp_path, files)
        expected = documents.run(as_documents(files), later)
        assert (day, *pages.run(read(tmp_path), later)) == (day, *expected)


@pytest.mark.parametrize("later", [False, True], ids=["run", "arun"])
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
def test_what_is_searched_is_what_the_folder_holds(split, later, tmp_path):
    indexed = Indexed(DELETES, *([SentenceSplitter()] if split else []))
    for files in HISTORY.values():
        put(tmp_path, files)
        indexed.run(read(tmp_path), later)
        held = [
            (one["file_name"], one["page"]) for one in indexed.vectors.data.metadata_dict.values()
        ]
        assert sorted(held) == [
            (name, number)
            for name, words in sorted(files.items())
            for number in range(1, len(words) + 1)
        ]


def test_a_page_that_comes_back_from_the_cache_can_still_be_deleted(tmp_path):
    indexed = Indexed(DELETES)
    for words in (["alpha"], ["beta"], ["alpha"], ["gamma"]):  # the third is known to the cache
        put(tmp_path, {"a.pdf": words, "b.pdf": ["memo"]})
        indexed.run(read(tmp_path), later=False)
        assert len(indexed.vectors.data.embedding_dict) == 2


def test_pages_of_two_processes_and_a_persisted_pipeline_are_the_same_pages(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    put(folder, {"a.pdf": ["alpha", "beta"]})
    first = Indexed(DELETES)
    first.run(read(folder), later=False)
    first.pipeline.persist(str(tmp_path / "kept"))
    first.vectors.persist(str(tmp_path / "vectors.json"))
    again = Indexed(DELETES)
    again.pipeline.load(str(tmp_path / "kept"))
    again.documents = again.pipeline.docstore
    again.vectors = SimpleVectorStore.from_persist_path(str(tmp_path / "vectors.json"))
    again.pipeline.vector_store = again.vectors
    assert again.run(read(folder), later=False) == (0, 2, ["alpha", "beta"])
    put(folder, {"a.pdf": ["alpha"]})
    assert again.run(read(folder), later=False) == (0, 1, ["alpha"])


# Document stores


@pytest.fixture
def pages(tmp_path: Path) -> list[PageNode]:
    return read(write(tmp_path / "report.pdf", *WORDS))


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text=text, id_=str(n)) for n, text in enumerate(WORDS)]


def told(call):
    try:
        return call()
    except ValueError as error:
        return type(error)


@pytest.mark.parametrize("kind", ["pages", "documents"])
def test_a_document_store_deletes_each_once_and_says_when_it_is_not_there(kind, request):
    one, other, last = request.getfixturevalue(kind)
    store = SimpleDocumentStore()
    store.add_documents([one, other, last])
    assert told(lambda: store.delete_document(one.id_)) is None
    assert asyncio.run(store.adelete_document(other.id_)) is None
    assert told(lambda: store.delete_document(one.id_)) is ValueError
    assert told(lambda: store.delete_ref_doc(last.id_)) is ValueError
    assert store.delete_ref_doc(last.id_, raise_error=False) is None
    assert list(store.docs) == [last.id_] and store.get_all_ref_doc_info() == {}
    assert store.get_all_document_hashes() == {last.hash: last.id_}


# Indices


def held(index):
    store = index.vector_store.data.embedding_dict
    texts = sorted(one.get_content() for one in index.docstore.docs.values())
    return len(store), texts, len(index.index_struct.nodes_dict), len(index.ref_doc_info)


def of_documents(documents):
    return VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())


def changed(document):
    """The same document or page with other words."""
    again = copy.deepcopy(document)
    again.set_content("delta letter")
    return again


STEPS = {
    "delete": lambda index, of: index.delete_ref_doc(of[0].id_),
    "delete all of it": lambda index, of: index.delete_ref_doc(
        of[0].id_, delete_from_docstore=True
    ),
    "delete later": lambda index, of: asyncio.run(
        index.adelete_ref_doc(of[0].id_, delete_from_docstore=True)
    ),
    "delete one that is not there": lambda index, of: index.delete_ref_doc("nobody"),
    "insert": lambda index, of: index.insert(of[2]),
    "update": lambda index, of: index.update_ref_doc(changed(of[1])),
    "refresh": lambda index, of: index.refresh_ref_docs([of[0], changed(of[1]), of[2]]),
    "refresh later": lambda index, of: asyncio.run(
        index.arefresh_ref_docs([of[0], changed(of[1]), of[2]])
    ),
    "delete from the document store": lambda index, of: told(
        lambda: index.docstore.delete_document(of[0].id_)
    ),
}


@pytest.mark.parametrize("step", list(STEPS))
def test_an_index_of_pages_answers_to_the_same_calls_as_one_of_documents(step, pages, documents):
    of_pages, of_them = of_documents(pages[:2]), of_documents(documents[:2])
    assert held(of_pages) == held(of_them)
    assert STEPS[step](of_pages, pages) == STEPS[step](of_them, documents)
    assert held(of_pages) == held(of_them)


def pieces(documents):
    """A node for each document, made by hand."""
    return [
        TextNode(
            text=one.text,
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=one.id_)},
        )
        for one in documents
    ]


@pytest.mark.parametrize("step", ["delete", "delete all of it", "delete later"])
def test_pages_put_in_as_nodes_are_deleted_as_the_nodes_of_a_document_are(step, pages, documents):
    of_pages = VectorStoreIndex(nodes=[], embed_model=WordEmbedding())
    of_pages.insert_nodes(pages)
    of_them = VectorStoreIndex(nodes=[], embed_model=WordEmbedding())
    of_them.insert_nodes(pieces(documents))
    assert held(of_pages) == held(of_them)
    STEPS[step](of_pages, pages)
    STEPS[step](of_them, documents)
    assert held(of_pages) == held(of_them)
    assert held(of_pages)[0] == 2


# What documents have


def test_a_page_has_the_names_of_a_document(pages):
    page = pages[0]
    assert page.doc_id == page.get_doc_id() == page.id_ == page.ref_doc_id
    assert page.source_node is None
    page.doc_id = "mine"
    assert page.id_ == page.ref_doc_id == "mine"


def test_a_page_may_be_named_after_its_file(tmp_path):
    path = write(tmp_path / "report.pdf", *WORDS)
    reader = PageImageReader(page_seconds=None)
    loaded = SimpleDirectoryReader(
        tmp_path, file_extractor={".pdf": reader}, filename_as_id=True
    ).load_data()
    assert [one.ref_doc_id for one in loaded] == [f"{path}_part_{n}" for n in range(3)]
    again = [PageNode.from_dict(one.to_dict()) for one in loaded]
    again[0].id_ = "mine"
    assert again[0].ref_doc_id == "mine"


def test_the_hash_tells_of_words_picture_and_metadata(pages, tmp_path):
    page = pages[0]
    (same, *_) = read(tmp_path / "report.pdf")
    (labelled, *_) = PageImageReader(page_seconds=None).load_data(
        tmp_path / "report.pdf", extra_info={"year": 2024}
    )
    write(tmp_path / "report.pdf", *WORDS, more="\n1 1 0 rg 0 0 20 20 re f")
    (drawn, *_) = read(tmp_path / "report.pdf")
    assert page.hash == same.hash
    assert len({one.hash for one in (page, changed(page), labelled, drawn)}) == 4


def test_a_page_that_is_a_piece_of_another_document_stays_one(pages):
    page = pages[0]
    page.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="book")
    assert page.ref_doc_id == page.source_node.node_id == "book"
    again = PageNode.from_json(page.to_json())
    assert again.ref_doc_id == "book"


def test_a_plain_node_that_is_read_back_knows_the_document_it_is_deleted_by(pages):
    page = pages[0]
    assert ImageNode.from_json(page.to_json()).ref_doc_id == page.id_
    again = PageNode.from_json(page.to_json())
    assert (
        again == page == page.model_copy() and again.source_node is None and again.hash == page.hash
    )


def test_a_page_draws_itself_under_the_policy_of_its_reader(tmp_path):
    path = write(tmp_path / "report.pdf", *WORDS)
    fence = SourcePolicy(roots=(tmp_path,), allow_urls=False)
    page = read(path, policy=fence)[0]
    for one in (page, page.model_copy(), copy.deepcopy(page), pickle.loads(pickle.dumps(page))):
        assert one.resolve_image().read()[:4] == b"\x89PNG"
    moved = path.rename(tmp_path.parent / f"{tmp_path.name}.pdf")
    page.metadata["source"] = str(moved)
    for one in (page, pickle.loads(pickle.dumps(page))):
        with pytest.raises(SourceNotAllowedError):
            one.resolve_image()
        with pytest.raises(SourceNotAllowedError):
            one.get_content_blocks()


def test_a_page_that_lost_the_policy_opens_nothing(pages):
    again = PageNode.from_json(pages[0].to_json())
    with pytest.raises(SourceNotAllowedError, match=r"page 1 of report\.pdf .*resolve_node"):
        again.resolve_image()
