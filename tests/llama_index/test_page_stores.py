"""Pages that went through a store come back with the image that was indexed, or an error."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from llavakit.documents import PageStore, open_files
from llavakit.errors import DocumentError, SourceNotAllowedError, SourceNotFoundError
from llavakit.images import open_picture
from llavakit.llama_index import (
    ImageResolver,
    LLaVA,
    PageImageReader,
    PageSynthesizer,
    resolve_node,
)
from llavakit.llama_index.content_blocks import source_of
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from tests.llama_index.paging import WORDS, Lance, WordEmbedding, found, write
from tests.threads import pixels_touched

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning"),
]

QUERIES = dict(enumerate(("alpha", "beta", "gamma"), 1))


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write(tmp_path / "report.pdf", *WORDS)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def read(path, store=None):
    return PageImageReader(store=store, page_seconds=None).load_data(path)


def resolved(nodes, **options):
    return ImageResolver(page_seconds=None, **options).postprocess_nodes(list(nodes))


def digest(found: NodeWithScore) -> str:
    return open_picture(source_of(found.node).source).digest


def digests(path) -> list[str]:
    return [page.digest for page in open_files([path], page_seconds=None)]


# Ways into a store


def nodes_as_they_are(nodes, context):
    VectorStoreIndex(nodes=nodes, storage_context=context, embed_model=WordEmbedding())


def documents_with_the_default_splitter(nodes, context):
    VectorStoreIndex.from_documents(nodes, storage_context=context, embed_model=WordEmbedding())


def an_ingestion_pipeline(nodes, context):
    steps = [SentenceSplitter(), WordEmbedding()]
    pipeline = IngestionPipeline(transformations=steps, vector_store=context.vector_store)
    pipeline.run(documents=nodes)


KEPT_OR_NOT = pytest.mark.parametrize("kept", [True, False], ids=["pictures kept", "drawn again"])
INTO = [nodes_as_they_are, documents_with_the_default_splitter, an_ingestion_pipeline]


@KEPT_OR_NOT
@pytest.mark.parametrize("put", INTO)
def test_lancedb_reopened_gives_the_pages_that_were_indexed(put, kept, report, pictures, tmp_path):
    uri = str(tmp_path / "lance")
    context = StorageContext.from_defaults(vector_store=Lance(uri=uri))
    put(read(report, pictures if kept else None), context)
    index = VectorStoreIndex.from_vector_store(Lance(uri=uri), embed_model=WordEmbedding())
    if kept:
        expected = digests(report)
        report.unlink()
    else:
        expected = digests(report)
    for number, query in QUERIES.items():
        (one,) = resolved(found(index, query))
        assert isinstance(one.node, ImageNode)
        assert digest(one) == expected[number - 1]
        assert one.node.metadata["page_label"] == str(number)
        assert one.node.text == WORDS[number - 1]


@pytest.mark.parametrize("put", INTO[:2])
def test_the_frameworks_own_store_persisted_and_reloaded_does_so_too(put, report, tmp_path):
    context = StorageContext.from_defaults()
    put(read(report), context)
    context.persist(tmp_path / "index")
    again = StorageContext.from_defaults(persist_dir=tmp_path / "index")
    index = load_index_from_storage(again, embed_model=WordEmbedding())
    for number, query in QUERIES.items():
        (one,) = resolved(found(index, query))
        assert digest(one) == digests(report)[number - 1]


@pytest.mark.slow  # examples/demo.py opens its database in another process
def test_a_new_process_finds_the_same_picture(report, pictures, tmp_path):
    uri = str(tmp_path / "lance")
    context = StorageContext.from_defaults(vector_store=Lance(uri=uri))
    nodes_as_they_are(read(report, pictures), context)
    expected = digests(report)
    report.unlink()
    code = (
        "import json, sys\n"
        "from llama_index.core import VectorStoreIndex\n"
        "from tests.llama_index.paging import Lance, WordEmbedding, found\n"
        "from tests.llama_index.test_page_stores import digest, resolved\n"
        "store = Lance(uri=sys.argv[1])\n"
        "index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())\n"
        "pages = [resolved(found(index, query))[0] for query in ('gamma', 'alpha')]\n"
        "print(json.dumps([[p.node.metadata['page_label'], digest(p)] for p in pages]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == [["3", expected[2]], ["1", expected[0]]]


def test_documents_of_different_kinds_and_resolutions_share_a_table(report, pictures, tmp_path):
    store = Lance(uri=str(tmp_path / "lance"))
    context = StorageContext.from_defaults(vector_store=store)
    nodes_as_they_are(read(report), context)
    other = write(tmp_path / "other.pdf", "delta")
    reader = PageImageReader(store=pictures, dpi=72.5, page_seconds=None)
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    index.insert_nodes(reader.load_data(other))
    (one,) = resolved(found(index, "delta"))
    assert one.node.metadata["file_name"] == "other.pdf"
    assert digest(one) == next(iter(open_files([other], dpi=72.5, page_seconds=None))).digest


# Indexing again


@pytest.mark.parametrize("steps", [[SentenceSplitter()], []], ids=["split", "whole"])
def test_indexing_again_adds_nothing_and_replaces_what_changed(steps, report, pictures, tmp_path):
    store = Lance(uri=str(tmp_path / "lance"))
    pipeline = IngestionPipeline(
        transformations=[*steps, WordEmbedding()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    pipeline.run(documents=read(report))
    pipeline.run(documents=read(report))
    assert store.table.count_rows() == 3
    write(report, WORDS[0], "delta letter", WORDS[2])
    pipeline.run(documents=read(report))
    assert store.table.count_rows() == 3
    write(report, WORDS[0], "delta letter", WORDS[2], more="\n1 1 0 rg 0 0 20 20 re f")
    pipeline.run(documents=read(report))
    assert store.table.count_rows() == 3
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    pages = resolved(found(index, "delta", top=3))
    assert pages[0].node.text == "delta letter" and digest(pages[0]) == digests(report)[1]
    assert sorted(digest(page) for page in pages) == sorted(digests(report))


def test_refreshing_an_index_replaces_the_pages_that_changed(report, tmp_path):
    store = Lance(uri=str(tmp_path / "lance"))
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(
        read(report), storage_context=context, embed_model=WordEmbedding()
    )
    write(report, WORDS[0], "delta letter", WORDS[2])
    assert index.refresh_ref_docs(read(report)) == [False, True, False]
    assert store.table.count_rows() == 3
    (page,) = resolved(found(index, "delta"))
    assert digest(page) == digests(report)[1]


def test_a_page_is_deleted_by_its_id(report, tmp_path):
    store = Lance(uri=str(tmp_path / "lance"))
    context = StorageContext.from_defaults(vector_store=store)
    nodes = read(report)
    index = VectorStoreIndex(nodes=nodes, storage_context=context, embed_model=WordEmbedding())
    index.delete_ref_doc(nodes[0].id_)
    assert store.table.count_rows() == 2


# What becomes of pictures


def again(nodes):
    """Nodes as a store gives them back: plain ones, from JSON."""
    return [NodeWithScore(node=ImageNode.from_json(node.to_json()), score=0.5) for node in nodes]


def test_a_document_that_changed_is_an_error_and_never_another_page(report, caplog):
    nodes = again(read(report))
    write(report, "one", "beta letter", "three")
    with pytest.raises(DocumentError, match="not the page that was indexed"):
        resolved(nodes)
    (left,) = resolved(nodes, on_error="skip")
    assert left.node.metadata["page"] == 2 and left.score == 0.5
    assert "Page 1 of" in caplog.text and "Page 3 of" in caplog.text


def test_a_document_that_is_gone_is_told_by_name(report):
    nodes = again(read(report))
    report.unlink()
    with pytest.raises(SourceNotFoundError, match=r"report\.pdf"):
        resolved(nodes)
    assert resolved(nodes, on_error="skip") == []


def test_a_store_that_is_gone_is_made_up_for_by_the_document(report, pictures):
    nodes = again(read(report, pictures))
    for file in pictures.rglob("*.png"):
        file.unlink()
    pages = resolved(nodes)
    assert [digest(page) for page in pages] == digests(report)
    # The framework would not take the path to a picture that is not there.
    assert all(page.node.get_content_blocks() for page in pages)


def test_a_store_that_has_moved_is_named_anew(report, pictures, tmp_path):
    nodes = again(read(report, pictures))
    expected = digests(report)
    report.unlink()
    moved = pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceNotFoundError):
        resolved(nodes)
    for store in (moved, PageStore(moved)):
        pages = resolved(nodes, store=store)
        assert [digest(page) for page in pages] == expected
        assert all(page.node.get_content_blocks() for page in pages)


def test_a_picture_in_the_place_of_the_kept_one_is_not_taken(report, pictures):
    nodes = again(read(report, pictures))
    first, second, _ = (Path(one.node.image_path) for one in nodes)
    first.write_bytes(second.read_bytes())
    assert [digest(page) for page in resolved(nodes)] == digests(report)


def test_the_policy_decides_what_is_opened(report, pictures, tmp_path):
    nodes = again(read(report, pictures))
    with pytest.raises(SourceNotAllowedError):
        resolved(nodes, policy=SourcePolicy(roots=(tmp_path / "nowhere",)))
    below = SourcePolicy(roots=(pictures,), allow_urls=False)
    assert [digest(page) for page in resolved(nodes, policy=below)] == digests(report)
    with pytest.raises(SourceNotAllowedError):
        resolve_node(nodes[0].node, SourcePolicy(allow_files=False))


def test_pieces_of_one_page_show_it_once(report):
    node, other, _ = read(report)
    pieces = [
        NodeWithScore(node=TextNode(text=f"piece {n}", metadata=page.metadata), score=1.0 / n)
        for n, page in enumerate((node, other, node), 1)
    ]
    words = NodeWithScore(node=TextNode(text="of no page"), score=0.1)
    kept = resolved([*pieces, words])
    assert [one.node.get_content() for one in kept] == ["piece 1", "piece 2", "of no page"]
    assert [digest(one) for one in kept[:2]] == digests(report)[:2]
    assert resolved(kept)[0].node is kept[0].node


@KEPT_OR_NOT
async def test_pages_are_drawn_and_kept_off_the_event_loop(kept, report, pictures):
    reader = PageImageReader(store=pictures if kept else None, page_seconds=None)
    with pixels_touched() as touched:
        nodes = await reader.aload_data(report)
    assert touched and threading.current_thread() not in touched
    assert len(nodes) == len(WORDS) and len(list(PageStore(pictures))) == len(WORDS) * kept


@KEPT_OR_NOT
async def test_pictures_are_opened_off_the_event_loop_too(kept, report, pictures):
    resolver = ImageResolver(page_seconds=None)
    nodes = again(read(report, pictures if kept else None))
    with pixels_touched() as touched:
        pages = await resolver.apostprocess_nodes(nodes)
    assert touched and threading.current_thread() not in touched
    assert [digest(page) for page in pages] == digests(report)


@KEPT_OR_NOT
async def test_a_question_about_pages_is_answered_off_the_event_loop(kept, report, pictures):
    threads = []
    backend = FakeBackend(lambda request: threads.append(threading.current_thread()) or "yes")
    synthesizer = PageSynthesizer(LLaVA(backend=backend, model="fake"))
    nodes = again(read(report, pictures if kept else None))
    with pixels_touched() as touched:
        assert str(await synthesizer.asynthesize("What?", nodes)) == "yes"
    assert touched and threads
    assert threading.current_thread() not in [*touched, *threads]


def test_damaged_metadata_are_told(report):
    (node, *_) = read(report)
    node.metadata["page"] = "x"
    with pytest.raises(DocumentError, match="name no page image"):
        resolve_node(node)
