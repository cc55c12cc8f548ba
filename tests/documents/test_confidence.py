"""How sure the model was, for each field of what it extracted."""

import json
import math
import random
from itertools import pairwise

import pytest

from llavakit.documents import Confidence, extract, open_files, to_line
from llavakit.documents.confidence import confidence_of_data, token_spans, value_spans
from llavakit.testing import FakeBackend
from llavakit.values import TokenLogprob

pytestmark = pytest.mark.timeout(180)

DATA = [
    {"total": 5243, "name": "ANNA"},
    {"a/b": 1, "c~d": {"": [True, None, -1.5e3, "x", []]}, "e": {}},
    [],
    {},
    "",
    7,
    [[["deep"]], {"k": 'quote " and \\ and \n and é and 😀'}],
]


def at(data, pointer):
    """The value that a JSON Pointer names."""
    for name in pointer.split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        data = data[int(name)] if isinstance(data, list) else data[name]
    return data


def leaves(data):
    if isinstance(data, (dict, list)) and data:
        return sum(map(leaves, data.values() if isinstance(data, dict) else data))
    return 1


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_every_value_is_found_where_it_stands(data, layout):
    for ascii_only in (True, False):
        text = json.dumps(data, ensure_ascii=ascii_only, **layout)
        found = dict(value_spans(text))
        assert len(found) == leaves(data)
        for pointer, (begin, end) in found.items():
            value = at(data, pointer)
            inside = f'"{text[begin:end]}"' if isinstance(value, str) and value else text[begin:end]
            assert json.loads(inside) == value


@pytest.mark.parametrize("seed", range(30))
def test_tokens_are_found_however_the_text_was_cut(seed):
    chance = random.Random(seed)
    text = json.dumps(chance.choice(DATA[:2] + DATA[6:]), ensure_ascii=False, indent=1)
    cuts = sorted({0, len(text), *chance.sample(range(len(text)), min(8, len(text)))})
    pieces = [text[one:other] for one, other in pairwise(cuts)]
    assert token_spans(text, pieces) == list(pairwise(cuts))
    # As decoders give them: a space before the first, and none before those that follow blanks.
    shown = [" ", *(piece.lstrip(" ") for piece in pieces), "</s>"]
    for (begin, end), piece, (left, right) in zip(
        pairwise(cuts), pieces, token_spans(text, shown)[1:-1], strict=True
    ):
        if piece.strip():
            assert (left, right) == (end - len(piece.lstrip(" ")), end) and left >= begin


def test_parts_of_a_character_cover_it():
    assert token_spans("a😀b", ["a", "\ufffd", "\ufffd", "\ufffd", "b"]) == [
        (0, 1), (1, 2), (1, 2), (1, 2), (2, 3),
    ]  # fmt: skip


def tokens(*pieces):
    return [TokenLogprob(text, math.log(share)) for text, share in pieces]


def test_a_field_has_the_tokens_of_its_value_and_of_no_other():
    text = '{"total":5243,"name":"ANNA","paid":true}'
    sampled = tokens(
        (" ", 1), ('{"', 0.1), ("total", 0.1), ('":', 0.1), ("52", 0.5), ("43", 0.8),
        (',"', 0.1), ("name", 0.1), ('":"', 0.1), ("ANNA", 0.9), ('","', 0.1), ("paid", 0.1),
        ('":', 0.1), ("true", 0.6), ("}", 0.01),
    )  # fmt: skip
    sure = confidence_of_data(text, sampled)
    assert sure.fields == {
        "/total": Confidence(round(math.sqrt(0.4), 4), 0.5),
        "/name": Confidence(0.9, 0.9),
        "/paid": Confidence(0.6, 0.6),
    }
    assert sure.lowest == 0.5, "what the schema forced is no doubt about what was read"
    assert sure.mean == round((0.5 * 0.8 * 0.9 * 0.6) ** 0.25, 4)
    assert sure.to_dict()["fields"]["/name"] == {"mean": 0.9, "lowest": 0.9}
    assert json.loads(sure.metadata()["confidence_fields"])["/paid"] == [0.6, 0.6]


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "number": {"type": "integer"},
        "total": {"type": "integer"},
    },
    "required": ["title", "number", "total"],
    "additionalProperties": False,
}


def test_what_is_extracted_has_a_confidence_for_each_field(demo_backend):
    pages = list(open_files(["examples/data/pages.pdf#pages=2,3"], page_seconds=None))
    for reading in extract(demo_backend, pages, SCHEMA, confidence=True):
        sure = reading.confidence
        assert set(sure.fields) == {"/title", "/number", "/total"}
        assert min(one.lowest for one in sure.fields.values()) == sure.lowest > 0.5
        line = to_line(reading, "demo")
        assert line["confidence"] == sure.to_dict() and json.dumps(line)
    (plain,) = extract(demo_backend, pages[:1], SCHEMA)
    assert plain.confidence is None


def test_an_answer_that_was_cut_has_one_confidence_and_no_fields(demo_backend):
    pages = list(open_files(["examples/data/pages.pdf#pages=2"], page_seconds=None))
    (reading,) = extract(demo_backend, pages, SCHEMA, confidence=True, max_tokens=5)
    assert reading.data is None and not reading.confidence.fields
    assert 0 < reading.confidence.lowest <= 1


def test_a_backend_without_probabilities_has_no_confidence():
    pages = list(open_files(["examples/data/pages.pdf#pages=2"], page_seconds=None))
    backend = FakeBackend(lambda request: '{"title":"A","number":1,"total":2}')
    (reading,) = extract(backend, pages, SCHEMA, confidence=True)
    assert reading.data["number"] == 1 and reading.confidence is None
