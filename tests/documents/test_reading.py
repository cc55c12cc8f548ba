"""Tasks over pages: batched, in order, with errors where they belong."""

import itertools
import math
from pathlib import Path

import pytest
from PIL import Image

from llavakit.documents import (
    Failure,
    Page,
    Task,
    Tiles,
    describe,
    extract,
    open_files,
    read_pages,
    to_line,
    transcribe,
)
from llavakit.documents.tasks import PROMPTS
from llavakit.errors import (
    ContextLengthError,
    DocumentError,
    EngineClosedError,
    ParameterError,
    QueueFullError,
    SchemaError,
)
from llavakit.images import Picture, open_picture
from llavakit.streams import AnswerStream, Channel
from llavakit.testing import FakeBackend
from llavakit.values import Chunk, Completion, SamplingParams, Usage

pytestmark = pytest.mark.timeout(30)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


def page(number: int, size=(8, 8)) -> Page:
    return Page("a.pdf", number, Picture(Image.new("RGB", size, (number % 256, number // 256, 0))))


def told(request) -> str:
    """The number that the page's colour says."""
    red, green, _ = open_picture(request.messages[-1].images[0].source).rgb.getpixel((0, 0))
    return str(red + 256 * green)


class Slow(FakeBackend):
    """Answers the last request first, and not before somebody waits; counts what is under way."""

    def __init__(self, most=1024):
        super().__init__()
        self.open = {}
        self.peak = 0
        self.most = most

    def submit(self, request):
        if len(self.open) >= self.most:
            raise QueueFullError("full")
        self.requests.append(request)
        channel, number = LateChannel(self), told(request)
        self.open[channel] = number
        self.peak = max(self.peak, len(self.open))
        return AnswerStream(channel, self._count_cancel)

    def answer_all(self):
        for channel, number in reversed(list(self.open.items())):
            channel.put(Chunk(text=f" {number}\n"))
            channel.put(Chunk(finish_reason="stop", usage=Usage(9, 1, 3, 4)))
        self.open.clear()


class LateChannel(Channel):
    def __init__(self, backend):
        super().__init__()
        self._backend = backend

    def take(self):
        if not self.ended:
            self._backend.answer_all()
        return super().take()


def test_results_come_in_the_order_of_the_pages_whatever_is_ready_first():
    backend = Slow()
    readings = list(transcribe(backend, map(page, range(1, 101)), window=8))
    assert [reading.page for reading in readings] == list(range(1, 101))
    assert [reading.text for reading in readings] == [str(n) for n in range(1, 101)]
    assert backend.peak == 8


def test_pages_are_drawn_only_as_there_is_room():
    drawn = itertools.count()
    pages = (page(1 + next(drawn)) for _ in range(1000))
    readings = transcribe(Slow(), pages, window=4)
    next(readings)
    assert next(drawn) <= 6
    readings.close()


def test_a_full_engine_is_waited_for():
    backend = Slow(most=3)
    assert [r.page for r in transcribe(backend, map(page, range(20)), window=32)] == list(range(20))
    assert backend.peak == 3


def test_a_result_tells_what_was_read():
    one = page(3)
    (reading,) = describe(Slow(), [one])
    assert (reading.source, reading.page, reading.size, reading.sha256) == (
        "a.pdf", 3, (8, 8), one.digest,
    )  # fmt: skip
    assert (reading.task, reading.text, reading.finish_reason) == ("describe", "3", "stop")
    assert reading.usage == Usage(9, 1, 3, 4) and reading.error is None and reading.data is None


def test_requests_are_greedy_and_carry_the_prompt():
    backend = FakeBackend(["{}"])
    list(transcribe(backend, [page(1)]))
    list(describe(backend, [page(1)], prompt="What is it?", max_tokens=7))
    list(extract(backend, [page(1)], SCHEMA))
    texts = [request.messages[-1].text for request in backend.requests]
    assert texts == [PROMPTS["transcribe"], "What is it?", PROMPTS["extract"]]
    first, second, third = (request.params for request in backend.requests)
    assert first == SamplingParams(1024, temperature=0) and second.max_tokens == 7
    assert third.json_schema == SCHEMA and third.temperature == 0


def test_data_are_parsed_and_what_was_cut_stays_text():
    answers = [Completion('{"n": 3}'), Completion('{"n": 1', finish_reason="length")]
    whole, cut = extract(FakeBackend(answers), [page(1), page(2)], SCHEMA)
    assert (whole.data, whole.text, whole.finish_reason) == ({"n": 3}, None, "stop")
    assert (cut.data, cut.text, cut.finish_reason) == (None, '{"n": 1', "length")


def test_data_that_end_with_the_last_token_are_data_unless_they_could_go_on():
    answers = [Completion(text, finish_reason="length") for text in ('{"n": 3}', "22", "true")]
    whole, number, truth = extract(FakeBackend(answers), [page(n) for n in (1, 2, 3)], {})
    assert (whole.data, number.data, truth.data) == ({"n": 3}, None, True)
    assert (whole.text, number.text) == (None, "22")


def test_a_pydantic_class_is_a_schema():
    pydantic = pytest.importorskip("pydantic")
    invoice = pydantic.create_model("Invoice", number=(int, ...))
    assert Task("extract", schema=invoice).schema == invoice.model_json_schema()


def test_failures_keep_their_place_among_the_pages():
    failure = Failure("b.pdf", None, DocumentError("b.pdf is encrypted."))
    readings = list(transcribe(Slow(), [page(1), failure, page(2)], window=1))
    assert [(r.source, r.page, r.error) for r in readings] == [
        ("a.pdf", 1, None), ("b.pdf", None, failure.error), ("a.pdf", 2, None),
    ]  # fmt: skip


def test_a_thousand_failures_do_not_pile_up():
    failures = (Failure("b.pdf", n, DocumentError("bad")) for n in itertools.count())
    readings = transcribe(Slow(), failures, window=4)
    assert [next(readings).page for _ in range(1000)] == list(range(1000))
    readings.close()


def test_a_page_that_the_model_cannot_take_harms_no_other():
    error = ContextLengthError("too long")
    backend = FakeBackend(lambda request: error if told(request) == "2" else "fine")
    first, second, third = transcribe(backend, map(page, (1, 2, 3)))
    assert (first.text, third.text) == ("fine", "fine")
    assert second.error is error and second.text is None and second.sha256 is not None


def test_an_engine_that_died_ends_the_reading():
    backend = FakeBackend(lambda r: EngineClosedError("gone") if told(r) == "2" else "fine")
    readings = transcribe(backend, map(page, (1, 2, 3)))
    assert next(readings).text == "fine"
    with pytest.raises(EngineClosedError):
        next(readings)
    assert next(readings, None) is None


def test_a_schema_that_cannot_be_compiled_ends_the_reading():
    class Strict(FakeBackend):
        def submit(self, request):
            raise SchemaError("no")

    with pytest.raises(SchemaError):
        list(extract(Strict(), [page(1), page(2)], SCHEMA))


def test_leaving_cancels_what_is_under_way():
    backend = Slow()
    readings = transcribe(backend, map(page, range(100)), window=5)
    next(readings)
    backend.most = 0
    readings.close()
    assert backend.cancelled == len(backend.open)


def test_progress_is_told_of_every_result():
    seen = []
    list(transcribe(Slow(), map(page, range(5)), progress=lambda one: seen.append(one.page)))
    assert seen == [0, 1, 2, 3, 4]


def test_a_transcription_reads_tile_by_tile():
    image = Image.new("RGB", (10, 30))
    for row, red in enumerate((1, 2, 3)):
        image.paste((red, 0, 0), (0, 10 * row, 10, 10 * row + 10))
    tall = Page("a.png", 1, Picture(image))
    backend = Slow()
    (reading,) = transcribe(backend, [tall], tiles=Tiles(1, 3), window=2)
    assert reading.text == "1\n2\n3" and len(backend.requests) == 3
    assert reading.usage == Usage(27, 3, 9, 12) and reading.sha256 == tall.digest


def test_the_other_tasks_see_the_page_and_its_tiles_together():
    backend = FakeBackend(["{}"])
    list(extract(backend, [page(1, (40, 60))], SCHEMA, tiles=Tiles(1, 2)))
    sizes = [open_picture(i.source).size for i in backend.requests[0].messages[-1].images]
    assert sizes == [(40, 60), (40, 30), (40, 30)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Task("guess"),
        lambda: Task("extract"),
        lambda: Task("describe", schema=SCHEMA),
        lambda: Task("extract", schema=3),
        lambda: Task("describe", max_tokens="9"),  # type: ignore[arg-type]
        lambda: Task("describe", tiles=4),  # type: ignore[arg-type]
        lambda: Task("describe", tiles="4"),  # type: ignore[arg-type]
        lambda: Tiles("1", "2"),  # type: ignore[arg-type]
        lambda: read_pages(FakeBackend(), [], Task("describe"), window=0),
    ],
)
def test_tasks_that_make_no_sense_are_refused_at_once(make):
    with pytest.raises(ParameterError):
        make()


def test_tiles_may_be_written_as_on_the_command_line():
    assert Task("describe", tiles="2x3") == Task("describe", tiles=Tiles(2, 3))  # type: ignore[arg-type]
    assert Task("describe", tiles="auto") == Task("describe", tiles=Tiles())  # type: ignore[arg-type]


@pytest.mark.parametrize("pages", ["scan.pdf", ["scan.pdf"]])
def test_names_of_files_are_no_pages_and_the_sentence_says_what_makes_them(pages):
    with pytest.raises(ParameterError, match=r"open_files\(\"scan.pdf\"\)"):
        list(transcribe(FakeBackend(), pages))


def test_the_bundled_model_reads_pages(demo_backend):
    pdf = Path(__file__).parents[2] / "examples" / "data" / "pages.pdf"
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "number": {"type": "integer"},
            "total": {"type": "integer"},
        },
        "required": ["title", "number", "total"],
    }
    pages = list(open_files([f"{pdf}#pages=2,3"]))
    data = [reading.data for reading in extract(demo_backend, pages, schema)]
    assert data == [
        {"title": "INVOICE", "number": 1609, "total": 11},
        {"title": "RECEIPT", "number": 55064, "total": 8117},
    ]
    texts = [reading.text for reading in transcribe(demo_backend, pages)]
    assert texts[0] == "INVOICE\nNo. 1609\nTotal 11\nName ANNA\nPage 2"
    described = [reading.text.lower() for reading in describe(demo_backend, pages)]
    assert "invoice" in described[0] and "receipt" in described[1]


def test_a_reading_says_how_sure_the_model_was_where_it_is_asked(demo_backend):
    data = Path("examples/data/invoice.png").read_bytes()
    plain, sure = (
        next(transcribe(demo_backend, open_files([data]), confidence=wish))
        for wish in (False, True)
    )
    assert plain.confidence is None and plain.text == sure.text
    assert 0 < sure.confidence.lowest <= sure.confidence.mean <= 1
    task = Task("transcribe", confidence=True)
    completion = demo_backend.generate(task.questions(next(open_files([data]))), task.params)
    shares = [math.exp(token.logprob) for token in completion.logprobs]
    assert sure.confidence.lowest == pytest.approx(min(shares), abs=1e-3)
    assert sure.confidence.mean == pytest.approx(math.prod(shares) ** (1 / len(shares)), abs=1e-3)
    assert to_line(sure, "demo")["confidence"] == {
        "mean": sure.confidence.mean, "lowest": sure.confidence.lowest,
    }  # fmt: skip
    assert "confidence" not in to_line(plain, "demo")
