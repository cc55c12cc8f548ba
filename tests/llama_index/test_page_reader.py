"""Documents become nodes of their pages: found by text, seen as images, never dropped."""

import asyncio
import json
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.readers.base import BaseReader, ReaderConfig
from llama_index.core.schema import ImageNode, MetadataMode
from PIL import Image as PILImage

from examples.demo_model.world.pages import Page, write_pdf
from llavakit.documents import PageReference, PageStore, Task, open_files
from llavakit.errors import (
    ContextLengthError,
    DocumentError,
    EngineClosedError,
    ParameterError,
    PasswordError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import open_picture
from llavakit.llama_index import LLaVA, PageImageReader
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from llavakit.values import Completion
from tests.documents.hostile import encrypted
from tests.documents.test_pages import tiff
from tests.llama_index.paging import WORDS, WordEmbedding, printed, write

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write(tmp_path / "report.pdf", *WORDS)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """The second page has no text layer."""
    return write(tmp_path / "scan.pdf", "first", "", "third")


def reading(*answers, **options) -> LLaVA:
    return LLaVA(backend=FakeBackend(answers or ("words that were read",), **options), model="fake")


def opened(data: bytes):
    return list(open_files([data], page_seconds=None))


def requests(reader: PageImageReader):
    return reader.llm.backend.requests


# What a node is


def test_a_page_is_an_image_node_with_its_text_and_where_its_picture_is(report, tmp_path):
    store = PageStore(tmp_path / "pictures")
    nodes = PageImageReader(store=store).load_data(report)
    assert [node.text for node in nodes] == list(WORDS)
    for number, (node, page) in enumerate(zip(nodes, open_files([report]), strict=True), 1):
        assert isinstance(node, ImageNode) and node.image_mimetype == "image/png"
        assert open_picture(Path(node.image_path)).digest == page.digest
        assert node.metadata["file_name"] == "report.pdf"
        assert node.metadata["file_path"] == str(report)
        assert node.metadata["page_label"] == str(number)
        reference = PageReference.from_metadata(node.metadata)
        assert (reference.number, reference.sha256) == (number, page.digest)
        assert node.metadata == json.loads(json.dumps(node.metadata))


def test_paths_and_digests_are_in_no_embedding_and_no_prompt(report):
    (node, *_) = PageImageReader().load_data(report, extra_info={"team": "sales"})
    assert node.get_content(MetadataMode.EMBED) == f"team: sales\n\n{WORDS[0]}"
    told = node.get_content(MetadataMode.LLM)
    assert "page_label: 1" in told and "file_name: report.pdf" in told and "team: sales" in told
    assert str(report.parent) not in told and node.metadata["sha256"] not in told


def test_the_same_page_has_the_same_id_from_wherever_it_is_read(report, monkeypatch, tmp_path):
    nodes = PageImageReader().load_data(report)
    monkeypatch.chdir(tmp_path)
    again = PageImageReader(store=tmp_path / "pictures", dpi=72).load_data("report.pdf")
    assert [node.id_ for node in again] == [node.id_ for node in nodes]
    assert len({node.id_ for node in nodes}) == 3
    assert again[0].metadata["file_path"] == str(report)


def test_the_hash_of_a_node_changes_with_the_picture_though_the_words_stay(report):
    before = PageImageReader().load_data(report)
    assert [n.hash for n in PageImageReader().load_data(report)] == [n.hash for n in before]
    write(report, *WORDS, more="\n1 1 0 rg 0 0 20 20 re f")
    after = PageImageReader().load_data(report)
    assert [node.text for node in after] == [node.text for node in before]
    assert all(new.hash != old.hash for new, old in zip(after, before, strict=True))


def test_a_page_is_its_own_document_to_stores_also_under_a_new_id(report):
    (node, *_) = PageImageReader().load_data(report)
    assert node.ref_doc_id == node.id_
    node.id_ = "renamed"
    assert node.ref_doc_id == "renamed"


# Where its text comes from


def test_only_pages_without_a_text_layer_are_read_by_the_model(scan):
    reader = PageImageReader(llm=reading())
    nodes = reader.load_data(scan)
    assert [node.text for node in nodes] == ["first", "words that were read", "third"]
    (request,) = requests(reader)
    (image,) = request.messages[-1].images
    assert image.source.digest == nodes[1].metadata["sha256"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["printed", "scanned", "unreadable"]), min_size=1, max_size=7))
def test_whatever_pages_come_in_a_row_each_has_its_own_text_and_picture(kinds):
    numbered = list(enumerate(kinds, 1))
    layers = [f"printed {n}" if kind == "printed" else "" for n, kind in numbered]
    drawn = {page.digest: page.number for page in opened(printed(*layers, shades=True))}

    def answer(request):
        number = drawn[request.messages[-1].images[0].source.digest]
        unreadable = kinds[number - 1] == "unreadable"
        return ContextLengthError(f"page {number}") if unreadable else f"read {number}"

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mixed.pdf")
        path.write_bytes(printed(*layers, shades=True))
        llm = LLaVA(backend=FakeBackend(answer), model="fake")
        reader = PageImageReader(llm=llm, on_error="skip", page_seconds=None)
        nodes = reader.load_data(path)
    told = {"printed": "printed {}", "scanned": "read {}"}
    assert [node.text for node in nodes] == [
        told[kind].format(n) for n, kind in numbered if kind in told
    ]
    assert [drawn[node.metadata["sha256"]] for node in nodes] == [
        node.metadata["page"] for node in nodes
    ]
    assert [(one.number, str(one.error)) for one in reader.skipped] == [
        (n, f"page {n}") for n, kind in numbered if kind == "unreadable"
    ]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("transcribe", "Transcribe the text in this image."),
        ("describe", "Describe this image in detail."),
        (Task("transcribe", prompt="Read it."), "Read it."),
    ],
)
def test_every_page_is_read_where_the_caller_says_so(scan, text, asked):
    reader = PageImageReader(text=text, llm=reading("one", "two", "three"))
    assert [node.text for node in reader.load_data(scan)] == ["one", "two", "three"]
    assert {request.messages[-1].text for request in requests(reader)} == {asked}


def test_what_the_bundled_model_reads_is_what_stands_there(tmp_path, demo_backend):
    pages = [Page("INVOICE", 2284, 320, "ANNA", 1), Page("LETTER", 771, 95, None, 2)]
    write_pdf(pages, tmp_path / "pages.pdf")
    task = Task("transcribe", confidence=True)
    reader = PageImageReader(llm=LLaVA(model="demo"), text=task)
    nodes = reader.load_data(tmp_path / "pages.pdf")
    assert [node.text for node in nodes] == [page.text() for page in pages]
    for node in nodes:
        assert 0 < node.metadata["confidence_lowest"] <= node.metadata["confidence"] <= 1
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert "confidence" not in node.get_content(mode)


def test_data_of_a_schema_are_the_text_as_json(scan):
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}}
    reader = PageImageReader(text=Task("extract", schema=schema), llm=reading('{"total":3}'))
    assert {node.text for node in reader.load_data(scan)} == {'{"total": 3}'}


def test_a_page_on_which_nothing_is_read_is_indexed_all_the_same(scan):
    nodes = PageImageReader(llm=reading("  ")).load_data(scan)
    index = VectorStoreIndex(nodes=nodes, embed_model=WordEmbedding())
    assert len(index.index_struct.nodes_dict) == 3
    assert nodes[1].text.startswith("Page 2 of ")
    assert nodes[1].text.endswith("scan.pdf (nothing to read)")


def test_a_page_without_text_and_without_a_reader_is_an_error_that_says_what_to_do(scan):
    with pytest.raises(DocumentError, match=r"Page 2 of .*scan\.pdf has no text.*llm=LLaVA"):
        PageImageReader().load_data(scan)


def test_a_transcription_that_was_cut_is_told(scan, caplog):
    reader = PageImageReader(llm=reading(Completion("half of", finish_reason="length")))
    assert reader.load_data(scan)[1].text == "half of"
    assert "was not read to its end" in caplog.text and "Page 2" in caplog.text


# What goes wrong


def test_a_bad_file_costs_its_own_pages_alone_where_errors_are_skipped(report, tmp_path, caplog):
    (tmp_path / "locked.pdf").write_bytes(encrypted())
    sources = [tmp_path / "locked.pdf", report, tmp_path / "gone.pdf"]
    with pytest.raises(DocumentError, match="encrypted"):
        PageImageReader().load_data(sources)
    reader = PageImageReader(on_error="skip")
    assert [node.text for node in reader.load_data(sources)] == list(WORDS)
    assert [type(one.error) for one in reader.skipped] == [PasswordError, SourceNotFoundError]
    assert caplog.text.count("Left out") == 2


def test_a_page_that_the_model_cannot_take_costs_itself_alone(tmp_path):
    path = write(tmp_path / "scan.pdf", "", "", "")
    answers = ("one", ContextLengthError("too long"), "three")
    reader = PageImageReader(llm=reading(*answers), on_error="skip")
    nodes = reader.load_data(path)
    assert [(node.text, node.metadata["page"]) for node in nodes] == [("one", 1), ("three", 3)]
    assert [one.number for one in reader.skipped] == [2]
    with pytest.raises(ContextLengthError):
        PageImageReader(llm=reading(*answers)).load_data(path)


def test_a_model_that_fails_is_no_matter_of_one_page(tmp_path):
    path = write(tmp_path / "scan.pdf", "", "")
    llm = reading()
    llm.backend.close()
    with pytest.raises(EngineClosedError):
        PageImageReader(llm=llm, on_error="skip").load_data(path)


def test_the_policy_is_obeyed(report, tmp_path):
    reader = PageImageReader(policy=SourcePolicy(roots=(tmp_path / "elsewhere",)))
    with pytest.raises(SourceNotAllowedError):
        reader.load_data(report)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text": "transcribe"}, "give llm="),
        ({"text": "ocr"}, "text"),
        ({"on_error": "ignore"}, "on_error"),
        ({"pagse": "1"}, "pagse"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_when_it_is_made(options, told):
    with pytest.raises(ValueError, match=told):
        PageImageReader(**options)


@pytest.mark.parametrize("options", [{"pages": "0"}, {"dpi": -1}, {"page_seconds": 0}])
def test_numbers_that_make_no_sense_are_refused_at_once(options, report):
    with pytest.raises(ParameterError):
        PageImageReader(**options).lazy_load_data(report)


@pytest.mark.parametrize("key", ["source", "page", "sha256", "image_path"])
def test_metadata_that_would_be_overwritten_are_refused(key, report):
    with pytest.raises(ParameterError, match=repr(key)):
        PageImageReader().lazy_load_data(report, extra_info={key: "mine"})


# Which sources


def test_a_picture_is_its_own_file_and_a_tiff_has_frames(tmp_path):
    PILImage.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.tif").write_bytes(tiff((255, 0, 0), (0, 255, 0)))
    nodes = PageImageReader(llm=reading()).load_data(tmp_path)
    assert [node.image_path for node in nodes] == [str(tmp_path / "a.png"), None, None]
    assert [node.metadata["page_label"] for node in nodes] == ["1", "1", "2"]


def test_bytes_need_a_store_because_nobody_could_find_them_again(report, tmp_path):
    data = report.read_bytes()
    with pytest.raises(DocumentError, match="store="):
        PageImageReader().load_data(data)
    nodes = PageImageReader(store=tmp_path / "pictures").load_data(data)
    assert [node.text for node in nodes] == list(WORDS)
    assert all(Path(node.image_path).is_file() for node in nodes)
    assert len({node.id_ for node in nodes}) == 3


def test_ranges_and_resolutions_are_taken(report):
    nodes = PageImageReader(pages="2-", dpi=36).load_data(report)
    assert [node.metadata["page"] for node in nodes] == [2, 3]
    assert {(n.metadata["width"], n.metadata["dpi"]) for n in nodes} == {(36, 36.0)}
    (node,) = PageImageReader().load_data(f"{report}#pages=3")
    assert node.text == WORDS[2]


def test_another_file_system_is_read_and_its_pictures_are_kept(report, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/report.pdf", report.read_bytes())
    with pytest.raises(ParameterError, match="store="):
        PageImageReader().load_data("/bucket/report.pdf", fs=memory)
    reader = PageImageReader(store=tmp_path / "pictures")
    documents = SimpleDirectoryReader("/bucket", fs=memory, file_extractor={".pdf": reader})
    nodes = documents.load_data()
    assert [node.text for node in nodes] == list(WORDS)
    assert nodes[0].metadata["source"] == "memory:///bucket/report.pdf"
    gone = PageImageReader(store=tmp_path, on_error="skip")
    assert gone.load_data("/bucket/none.pdf", fs=memory) == []
    assert "cannot be read" in str(gone.skipped[0].error)


# The framework's contract


def test_the_frameworks_directory_reader_takes_it_and_skips_what_is_locked(
    report, tmp_path, capsys
):
    (tmp_path / "locked.pdf").write_bytes(encrypted())
    reader = PageImageReader()
    assert isinstance(reader, BaseReader)
    directory = SimpleDirectoryReader(tmp_path, file_extractor={".pdf": reader})
    nodes = directory.load_data()
    assert [(node.text, node.metadata["file_name"]) for node in nodes] == [
        (word, "report.pdf") for word in WORDS
    ]
    assert nodes[0].metadata["file_size"] == report.stat().st_size
    assert "file_size" not in nodes[0].get_content(MetadataMode.EMBED)
    printed = capsys.readouterr().out
    assert "Failed to load" in printed and "encrypted" in printed
    assert [node.text for node in asyncio.run(directory.aload_data())] == list(WORDS)


def test_it_is_serialised_without_secrets_and_pickled(tmp_path):
    reader = PageImageReader(store=tmp_path, llm=LLaVA(model="demo", api_key="secret"))
    assert "secret" not in json.dumps(reader.to_dict(), default=str)
    again = pickle.loads(pickle.dumps(reader))
    assert again.store.folder == tmp_path and again.llm.model == "demo"
    config = ReaderConfig(reader=PageImageReader(), reader_args=[str(tmp_path / "none")])
    with pytest.raises(SourceNotFoundError):
        config.read()


@pytest.mark.parametrize("llm", [None, reading()], ids=["alone", "with a model"])
def test_pages_are_read_when_they_are_asked_for(report, llm):
    nodes = PageImageReader(llm=llm).lazy_load_data([report, "/nowhere/to/be/found.pdf"])
    assert [next(nodes).text for _ in WORDS] == list(WORDS)
    with pytest.raises(SourceNotFoundError):
        next(nodes)


def test_leaving_the_iteration_frees_the_model(tmp_path):
    path = write(tmp_path / "scan.pdf", *[""] * 4)
    answers = iter(["one"])

    class HangsAfterOne(FakeBackend):
        def submit(self, request):
            self._hang = next(answers, None) is None
            return super().submit(request)

    backend = HangsAfterOne(["one"])
    nodes = PageImageReader(llm=LLaVA(backend=backend, model="fake")).lazy_load_data(path)
    assert next(nodes).text == "one"
    nodes.close()
    assert backend.cancelled == len(backend.requests) - 1 == 3


@pytest.mark.parametrize("method", ["aload_data", "alazy_load_data"])
async def test_the_event_loop_goes_on_while_pages_are_read(method, tmp_path):
    path = write(tmp_path / "scan.pdf", "", "")
    gate = threading.Event()
    backend = FakeBackend(lambda request: "read" if gate.wait(30) else "the loop was blocked")
    reader = PageImageReader(llm=LLaVA(backend=backend, model="fake"))
    loading = asyncio.create_task(getattr(reader, method)(path))
    while not backend.requests:
        await asyncio.sleep(0.01)
    gate.set()
    assert [node.text for node in await loading] == ["read", "read"]


async def test_a_load_that_is_cancelled_stops_at_the_next_page(tmp_path):
    path = write(tmp_path / "scan.pdf", *[""] * 100)
    executor = ThreadPoolExecutor()
    asyncio.get_running_loop().set_default_executor(executor)
    gate = threading.Event()
    backend = FakeBackend(lambda request: str(gate.wait(30)))
    reader = PageImageReader(llm=LLaVA(backend=backend, model="fake"))
    loading = asyncio.create_task(reader.aload_data(path))
    while not backend.requests:
        await asyncio.sleep(0.01)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    gate.set()
    executor.shutdown(wait=True)
    assert len(backend.requests) < 100  # no more than were under way at once


def test_making_a_reader_loads_nothing_heavy():
    code = (
        "from llavakit.llama_index import LLaVA, PageImageReader, PageSynthesizer\n"
        "PageImageReader(llm=LLaVA(model='demo'), text='transcribe', store='pictures')\n"
        "import sys\n"
        "print([n for n in ('torch', 'transformers', 'pypdfium2', 'lancedb') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_left_out_of_a_folder_is_counted_by_suffix(tmp_path):
    write(tmp_path / "a.pdf", *WORDS)
    for name in ("b.docx", "c.docx", "README"):
        (tmp_path / name).write_text("words")
    reader = PageImageReader(page_seconds=None)
    assert reader.left_out == [] and len(reader.load_data(tmp_path)) == 3
    (left,) = reader.left_out
    assert left.source == str(tmp_path) and left.counts == {".docx": 2, "": 1}
