"""Pages become documents: lazily, with JSON-safe metadata, and nothing left out in silence."""

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image as PILImage

from llavakit.documents import PageStore, Task, Tiles
from llavakit.errors import (
    DocumentError,
    EngineClosedError,
    ParameterError,
    RequestTimeoutError,
    SourceNotFoundError,
)
from llavakit.langchain import ChatLLaVA, PageImageLoader
from llavakit.testing import FakeBackend
from tests.documents.hostile import encrypted
from tests.documents.test_pages import THREE, pdf, tiff
from tests.langchain.words import WordEmbeddings

pytestmark = pytest.mark.timeout(120)

PAGES = Path("examples/data/pages.pdf")
TITLES = ["REPORT", "INVOICE", "RECEIPT", "CONTRACT"]


def line(text):
    return f"BT /F 12 Tf 5 100 Td ({text}) Tj ET"


@pytest.fixture
def written(tmp_path):
    """A PDF of a page with a text layer, one without, and another with one."""
    path = tmp_path / "written.pdf"
    path.write_bytes(pdf(line("first"), "1 0 0 rg 0 0 99 99 re f", line("third")))
    return path


def loaded(sources, **options):
    return PageImageLoader(sources, page_seconds=None, **options).load()


def texts(documents):
    return [document.page_content for document in documents]


def test_the_demo_model_reads_every_page(demo_backend):
    model = ChatLLaVA(model="demo")
    documents = loaded(PAGES, text="transcribe", model=model)
    assert [text.split("\n")[0] for text in texts(documents)] == TITLES
    assert [document.metadata["page"] for document in documents] == [1, 2, 3, 4]
    described = loaded(PAGES, text="describe", model=demo_backend, pages="2")
    assert texts(described) == ["a page with the title INVOICE"]


def test_pages_are_under_way_together():
    fake = FakeBackend(["read"])
    loader = PageImageLoader(PAGES, text="transcribe", model=fake, page_seconds=None)
    next(loader.lazy_load())
    assert len(fake.requests) == 4


def test_the_text_layer_needs_no_model(written, caplog):
    with caplog.at_level(logging.WARNING, logger="llavakit"):
        documents = loaded(written)
    assert texts(documents) == ["first", "", "third"]
    assert "Pages without a text layer: 1." in caplog.text


def test_pages_without_a_text_layer_are_read_by_the_model_if_there_is_one(written, caplog):
    fake = FakeBackend(["seen"])
    documents = loaded(written, model=fake)
    assert texts(documents) == ["first", "seen", "third"]
    assert [document.metadata["page"] for document in documents] == [1, 2, 3]
    assert len(fake.requests) == 1
    assert not caplog.records


def test_a_task_says_how_pages_are_read():
    fake = FakeBackend(["a", "b"])
    task = Task("transcribe", "Read it.", tiles=Tiles(2, 1))
    documents = loaded(PAGES, text=task, model=fake, pages="1")
    assert texts(documents) == ["a\nb"]
    assert fake.requests[0].messages[0].text == "Read it."


def test_data_of_a_schema_are_the_text_as_json(demo_backend):
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}, "number": {"type": "integer"}},
        "required": ["title", "number"],
    }
    task = Task("extract", schema=schema, confidence=True)
    (document,) = loaded(PAGES, text=task, model=demo_backend, pages="2")
    assert json.loads(document.page_content) == {"title": "INVOICE", "number": 1609}
    metadata = document.metadata  # flat, as vector stores keep it
    assert 0 < metadata["confidence_lowest"] <= metadata["confidence"] <= 1
    fields = json.loads(metadata["confidence_fields"])
    assert set(fields) == {"/title", "/number"}
    assert min(lowest for _, lowest in fields.values()) == metadata["confidence_lowest"]


def test_an_answer_that_was_cut_says_so(demo_backend, caplog):
    task = Task("transcribe", max_tokens=2)
    (document,) = loaded(PAGES, text=task, model=demo_backend, pages="1")
    assert document.metadata["cut"] is True
    assert "not read to its end" in caplog.text


def test_nothing_is_opened_before_the_first_document_is_asked_for(tmp_path):
    path = tmp_path / "later.pdf"
    documents = PageImageLoader(path, page_seconds=None).lazy_load()
    path.write_bytes(THREE)
    assert next(documents).metadata["page"] == 1
    path.unlink()
    assert [document.metadata["page"] for document in documents] == [2, 3]


def test_it_is_a_loader_of_langchain_and_loads_no_torch():
    code = (
        "import sys\n"
        "from langchain_core.document_loaders import BaseLoader\n"
        "from llavakit.langchain import ChatLLaVA, PageImageLoader, PageImageParser\n"
        "from llavakit.langchain import page_question_chain\n"
        "model = ChatLLaVA(model='demo')\n"
        "loader = PageImageLoader('a.pdf', text='transcribe', model=model)\n"
        "PageImageParser(model)\n"
        "page_question_chain(lambda query: [], model)\n"
        "print(isinstance(loader, BaseLoader), [n for n in ('torch', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


def test_metadata_survive_json_and_name_the_page(tmp_path):
    (tmp_path / "scan.tiff").write_bytes(tiff((255, 0, 0), (0, 0, 255)))
    PILImage.new("RGB", (9, 5), "lime").save(tmp_path / "z.png")
    store = tmp_path / "store"
    documents = loaded([tmp_path], store=store)
    assert [d.metadata["page"] for d in documents] == [1, 2, 1]
    for document in documents:
        assert json.loads(json.dumps(document.metadata)) == document.metadata
        assert all(isinstance(v, (str, int, float)) for v in document.metadata.values())
        assert document.metadata["page_label"] == str(document.metadata["page"])
        assert Path(document.metadata["image_path"]).is_file()
    assert len({document.metadata["sha256"] for document in documents}) == 3
    assert sorted(PageStore(store)) == sorted(d.metadata["sha256"] for d in documents)


def test_ids_depend_on_source_page_and_pixels_alone(tmp_path):
    path = tmp_path / "three.pdf"
    path.write_bytes(THREE)
    first = [document.id for document in loaded(path)]
    assert len(set(first)) == 3
    assert [d.id for d in loaded(path, model=FakeBackend(), text="describe")] == first
    path.write_bytes(pdf("1 0 0 rg 0 0 1000 1000 re f", "0 0 0 rg 0 0 1000 1000 re f"))
    again = [document.id for document in loaded(path)]
    assert again[0] == first[0]
    assert again[1] not in first


def test_indexing_twice_adds_nothing():
    store = InMemoryVectorStore(WordEmbeddings())
    for _ in range(2):
        store.add_documents(loaded(PAGES))
    assert len(store.store) == 4


def test_a_changed_document_replaces_its_old_pages_in_langchains_index(tmp_path):
    path = tmp_path / "changing.pdf"
    store = InMemoryVectorStore(WordEmbeddings())
    manager = InMemoryRecordManager("test")
    manager.create_schema()

    def indexed(*pages):
        path.write_bytes(pdf(*map(line, pages)))
        loader = PageImageLoader(path, page_seconds=None)
        return index(
            loader, manager, store, cleanup="incremental", source_id_key="source",
            key_encoder="sha256",
        )  # fmt: skip

    assert indexed("one", "two")["num_added"] == 2
    result = indexed("one", "three")
    assert (result["num_added"], result["num_skipped"], result["num_deleted"]) == (1, 1, 1)
    assert sorted(entry["text"] for entry in store.store.values()) == ["one", "three"]


@pytest.fixture
def mixed(tmp_path):
    """A folder of an encrypted PDF, an empty one, a damaged image, and two good files."""
    (tmp_path / "a.pdf").write_bytes(pdf(line("good")))
    (tmp_path / "b.pdf").write_bytes(encrypted())
    (tmp_path / "c.pdf").write_bytes(pdf())
    (tmp_path / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "e.pdf").write_bytes(pdf(line("good too")))
    return tmp_path


def test_a_bad_document_is_raised_after_the_good_ones_before_it(mixed):
    documents = PageImageLoader(mixed, page_seconds=None).lazy_load()
    assert next(documents).page_content == "good"
    with pytest.raises(DocumentError, match=r"b\.pdf"):
        next(documents)


@pytest.mark.parametrize("model", [None, FakeBackend(["seen"])])
def test_bad_documents_are_skipped_loudly(mixed, model, caplog):
    loader = PageImageLoader(
        mixed, model=model, text="transcribe" if model else "layer", on_error="skip",
        page_seconds=None,
    )  # fmt: skip
    documents = loader.load()
    assert [Path(d.metadata["source"]).name for d in documents] == ["a.pdf", "e.pdf"]
    assert [Path(one.source).name for one in loader.skipped] == ["b.pdf", "c.pdf", "d.png"]
    assert "encrypted" in str(loader.skipped[0].error)
    for name in ("b.pdf", "c.pdf", "d.png"):
        assert name in caplog.text


def test_a_page_that_the_model_cannot_take_is_one_page_less():
    answers = ["one", RequestTimeoutError("Too slow."), "three", "four"]
    loader = PageImageLoader(
        PAGES, text="transcribe", model=FakeBackend(answers), on_error="skip", page_seconds=None
    )
    assert texts(loader.load()) == ["one", "three", "four"]
    assert [(one.page, str(one.error)) for one in loader.skipped] == [(2, "Too slow.")]
    with pytest.raises(RequestTimeoutError):
        loaded(PAGES, text="transcribe", model=FakeBackend(answers))


def test_a_model_that_died_is_no_matter_of_one_page():
    fake = FakeBackend()
    fake.close()
    loader = PageImageLoader(PAGES, text="transcribe", model=fake, on_error="skip")
    with pytest.raises(EngineClosedError):
        loader.load()


def test_a_missing_file_is_told_by_name(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"gone\.pdf"):
        loaded(tmp_path / "gone.pdf")


def test_bytes_can_be_read_too():
    png = io.BytesIO()
    PILImage.new("RGB", (9, 5), "lime").save(png, "PNG")
    (document,) = loaded([png.getvalue()], text="describe", model=FakeBackend(["green"]))
    assert document.page_content == "green"
    assert "lime" not in json.dumps(document.metadata)


@pytest.mark.parametrize(
    "options",
    [
        {"dpi": 0},
        {"max_pixels": 0},
        {"pages": "x"},
        {"page_seconds": -1},
        {"text": "read"},
        {"text": "transcribe"},
        {"on_error": "ignore"},
        {"text": "transcribe", "model": object()},
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options):
    with pytest.raises(ParameterError):
        PageImageLoader("a.pdf", **options)


async def test_async_loading_gives_the_same_off_the_event_loop():
    threads = []

    def answer(request):
        threads.append(threading.get_ident())
        return "read"

    options = {"text": "transcribe", "page_seconds": None}
    loader = PageImageLoader(PAGES, model=FakeBackend(answer), **options)
    documents = await loader.aload()
    assert documents == loader.load()
    assert threading.get_ident() not in threads[:4]


async def test_leaving_an_async_load_cancels_what_is_under_way(tmp_path):
    class Slow(FakeBackend):
        """Answers the first request, and leaves the others open."""

        def submit(self, request):
            self._hang = bool(self.requests)
            return super().submit(request)

    slow = Slow(["read"])
    loader = PageImageLoader(PAGES, text="transcribe", model=slow, page_seconds=None)
    stream = loader.alazy_load()
    assert (await anext(stream)).metadata["page"] == 1
    await stream.aclose()
    assert slow.cancelled == 3


async def test_a_cancelled_load_leaves_the_loop_free_and_ends():
    begun, release = threading.Event(), threading.Event()

    def answer(request):
        begun.set()
        release.wait(20)
        return "read"

    loader = PageImageLoader(PAGES, text="transcribe", model=FakeBackend(answer), page_seconds=None)
    task = asyncio.create_task(loader.aload())
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    await asyncio.sleep(0)  # the loop runs while a page is being read
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_two_loads_of_one_loader_do_not_disturb_each_other():
    loader = PageImageLoader(PAGES, page_seconds=None)
    first, second = loader.lazy_load(), loader.lazy_load()
    numbers = [(next(first).metadata["page"], next(second).metadata["page"]) for _ in range(4)]
    assert numbers == [(n, n) for n in range(1, 5)]
    assert isinstance(loader, BaseLoader)


def test_what_is_left_out_of_a_folder_is_counted_by_suffix(tmp_path):
    (tmp_path / "a.pdf").write_bytes(THREE)
    for name in ("b.docx", "c.docx", "README"):
        (tmp_path / name).write_text("words")
    loader = PageImageLoader(tmp_path, page_seconds=None)
    for _ in range(2):
        assert len(loader.load()) == 3
        (left,) = loader.left_out
        assert left.counts == {".docx": 2, "": 1} and left.files == 3
    assert "2 .docx" in str(left) and str(tmp_path) in str(left)
