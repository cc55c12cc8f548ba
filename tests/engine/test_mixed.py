"""Steps that prefill in static shapes, run without a GPU: the same code, captures that are runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.engine.config import EngineConfig
from llavakit.engine.decode import StaticDecode
from llavakit.engine.engine import Engine
from llavakit.engine.extents import Extent
from llavakit.engine.graphs import Step
from llavakit.engine.mixed import TOKENS, MixedShape, StaticMixed, static_mixed, usual_shapes
from llavakit.engine.pieces import GATHERED, LOOPED, VARLEN, Kernel
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_reader, load_weights
from tests.engine.asking import PICTURES, WORDS, ask
from tests.tiny import TinyModel

CPU = torch.device("cpu")
SLOTS = 6000
SHARED = (Extent(5000, 35), Extent(5100, 150))
PREFILL = Row((), 0, 0, 50)
BEHIND = Row(SHARED[:1], 200, 7, 40)
ALONE = Row((), 400, 63, 1)
SHARING = Row(SHARED, 600, 8, 1)
MIXTURES = {
    "a prefill": [PREFILL],
    "a prefill behind a shared beginning": [BEHIND],
    "a prefill of one token": [Row((), 300, 0, 1)],
    "a prefill and decodes": [PREFILL, ALONE, ALONE],
    "decodes that share and a prefill": [SHARING, SHARING, PREFILL],
    "two prefills behind several stretches, and decodes": [
        BEHIND,
        Row(SHARED, 800, 0, 30),
        SHARING,
    ],
}


@pytest.fixture(scope="module")
def reader(tiny: TinyModel) -> Reader:
    return load_reader(tiny.path)


@pytest.fixture(scope="module")
def llava(reader: Reader) -> Llava:
    return load_weights(reader, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def arena(llava: Llava) -> KVArena:
    arena = KVArena([CPU] * llava.layers, SLOTS, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    noise = torch.Generator().manual_seed(0)
    for slots in (*arena.keys, *arena.values):
        slots.normal_(generator=noise)
    return arena


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def places(rows: list[Row]) -> list[Row]:
    """The same rows, each with a place of its own in the arena."""
    return [Row(row.prefix, 450 * n, row.start, row.count) for n, row in enumerate(rows)]


def ends_of(rows: list[Row]) -> list[int]:
    """Places of the rows' last tokens in the pass."""
    return [sum(row.count for row in rows[: n + 1]) - 1 for n in range(len(rows))]


def tokens_of(rows: list[Row]) -> torch.Tensor:
    return torch.arange(sum(row.count for row in rows)) % 90 + 5


def stored(arena: KVArena) -> list[torch.Tensor]:
    """Keys and values but the scratch slot's."""
    return [slots[:, : arena.scratch].clone() for slots in (*arena.keys, *arena.values)]


def eager(llava: Llava, arena: KVArena, rows: list[Row], ends: list[int]) -> torch.Tensor:
    seen = torch.cat([torch.arange(row.seen, row.seen + row.count) for row in rows])
    hidden = llava.decode(llava.embed(tokens_of(rows)), seen, attention_of(arena, rows, LOOPED))
    return llava.logits(hidden[ends])


def static(
    mixed: StaticMixed, llava: Llava, rows: list[Row], ends: list[int]
) -> torch.Tensor | None:
    return mixed(rows, lambda: llava.embed(tokens_of(rows)), ends)


def check(
    mixed: StaticMixed, llava: Llava, arena: KVArena, rows: list[Row], ends: list[int]
) -> None:
    """Logits, and what is written into the arena, are those of the eager pass."""
    right = eager(llava, arena, rows, ends)
    written = stored(arena)
    found = static(mixed, llava, rows, ends)
    assert found is not None and found.shape == right.shape
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    for old, new in zip(written, stored(arena), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MIXTURES)
def test_static_step_equals_the_eager_pass(llava: Llava, arena: KVArena, name: str) -> None:
    rows = places(MIXTURES[name])
    check(StaticMixed(llava, arena, LOOPED), llava, arena, rows, ends_of(rows))


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[Row], list[int]]:
    """Up to nine rows of any kind, and which of them complete."""
    count = draw(st.integers(1, 9))
    rows = [
        Row(
            draw(st.sampled_from([(), SHARED[:1], SHARED, (Extent(5500, 1), *SHARED)])),
            500 * number,
            draw(st.integers(0, 60)),
            draw(st.one_of(st.just(1), st.integers(1, 50))),
        )
        for number in range(count)
    ]
    complete = [draw(st.booleans()) for _ in rows]
    return rows, [end for end, wanted in zip(ends_of(rows), complete, strict=True) if wanted]


@settings(max_examples=25, deadline=None)
@given(found=passes())
def test_any_mixture_equals_the_eager_pass(
    llava: Llava, arena: KVArena, found: tuple[list[Row], list[int]]
) -> None:
    rows, ends = found
    stretches = sum(len(row.prefix) for row in rows if row.count > 1)
    behind = sum(row.count * len(row.prefix) for row in rows if row.count > 1)
    places = max(8, 1 << (len(rows) - 1).bit_length())
    count = next(one for one in TOKENS if one >= sum(row.count for row in rows))
    mixed = StaticMixed(llava, arena, LOOPED)
    with torch.inference_mode():
        if behind > 2 * count or stretches > places:
            assert static(mixed, llava, rows, ends) is None
            return
        check(mixed, llava, arena, rows, ends)


def test_replay_reads_the_rows_of_its_own_step(llava: Llava, arena: KVArena) -> None:
    """A graph knows addresses and nothing else: all that changes comes from table and buffer."""
    kept: dict[int, torch.Tensor] = {}

    def capture(step: Step) -> Step:
        def replay() -> torch.Tensor:
            result = step()
            return kept.setdefault(id(step), result).copy_(result)

        return replay

    mixed = StaticMixed(llava, arena, LOOPED, capture=capture)
    for start in range(20, 28):
        rows = places([BEHIND, SHARING, Row((), 0, start, start)])
        check(mixed, llava, arena, rows, ends_of(rows))
    assert mixed.steps == {"captured": 8} and len(kept) <= 2


def test_shape_is_captured_once_when_it_was_needed_often(llava: Llava, arena: KVArena) -> None:
    captured = []

    def capture(step: Step) -> Step:
        captured.append(step)
        return step

    mixed = StaticMixed(llava, arena, LOOPED, capture=capture, after=3)
    for _ in range(6):
        static(mixed, llava, [PREFILL], [49])
    assert len(captured) == 1 and mixed.steps == {"static": 3, "captured": 3}


def test_shape_whose_capture_fails_goes_on_uncaptured(llava: Llava, arena: KVArena) -> None:
    def refuse(step: Step) -> Step:
        raise RuntimeError("no graphs here")

    mixed = StaticMixed(llava, arena, LOOPED, capture=refuse)
    for _ in range(2):
        check(mixed, llava, arena, [PREFILL], [49])
    assert mixed.steps == {"static": 2}
    assert mixed.capture_refused == "RuntimeError: no graphs here"


def test_step_that_fails_is_left_to_the_eager_pass(
    llava: Llava, arena: KVArena, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    mixed = StaticMixed(llava, arena, Kernel("broken", broken))
    assert static(mixed, llava, [PREFILL], [49]) is None
    assert static(mixed, llava, [PREFILL], [49]) is None
    assert caplog.text.count("eager from now on") == 1


@pytest.mark.parametrize(
    "rows",
    [
        [Row((), 0, 0, 513)],
        [Row(tuple(Extent(5000 + n, 1) for n in range(9)), 0, 0, 1), PREFILL],
        [Row(tuple(Extent(5000 + n, 1) for n in range(3)), 0, 0, 60)],
    ],
    ids=["too many tokens", "too many parts", "too many queries behind"],
)
def test_what_fits_no_shape_is_left_to_the_eager_pass(
    llava: Llava, arena: KVArena, rows: list[Row]
) -> None:
    assert static(StaticMixed(llava, arena, LOOPED), llava, rows, []) is None


def test_a_static_step_never_asks_the_device_for_a_number(tiny: TinyModel) -> None:
    """On the meta device there are no numbers: a step that wanted one to decide would raise."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tiny.path))
    llava = Llava(model)
    devices = [torch.device("meta")] * llava.layers
    arena = KVArena(devices, SLOTS, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    mixed = StaticMixed(llava, arena, VARLEN, after=9)
    for rows in MIXTURES.values():
        count = sum(row.count for row in rows)
        embeddings = torch.empty(count, 32, device="meta")
        logits = mixed(rows, lambda found=embeddings: found, [0] * len(rows))
        assert logits is not None
        assert (logits.device.type, tuple(logits.shape)) == ("meta", (len(rows), llava.vocab_size))


def test_warm_up_captures_every_usual_shape_once_and_touches_no_sequence(
    llava: Llava, arena: KVArena
) -> None:
    captured: list[Step] = []

    def capture(step: Step) -> Step:
        captured.append(step)
        step()
        return step

    before = stored(arena)
    mixed = StaticMixed(llava, arena, LOOPED, capture=capture, after=16)
    progress: list[tuple[int, int, str]] = []
    mixed.warm_up(20, lambda *one: progress.append(one))
    assert len(captured) == len(progress) == progress[-1][1] == len(usual_shapes(20))
    for old, new in zip(before, stored(arena), strict=True):
        assert torch.equal(old, new)
    for rows in (MIXTURES["a prefill and decodes"], MIXTURES["decodes that share and a prefill"]):
        check(mixed, llava, arena, places(rows), ends_of(rows))
    assert mixed.steps == {"captured": 2}, "no step waited for a capture"


def test_usual_shapes_are_few() -> None:
    assert len(usual_shapes(256)) == 24
    assert MixedShape(512, 256) in usual_shapes(256)


# Through the whole engine


def test_prefills_in_static_shapes_equal_generate(
    tiny: TinyModel, reader: Reader, llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavakit.engine.mixed.CAPTURE_AFTER", 2)
    monkeypatch.setattr("llavakit.engine.resident.pass_kernel", lambda *_: LOOPED)
    config = EngineConfig(
        str(reader.path), static_decode=True, max_concurrency=8, prefill_chunk=24, lookahead=True
    )
    engine = Engine(reader, config, llava)
    texts = WORDS * 2
    pictures = [PICTURES[place % 3] for place in range(len(texts))]
    for count in (1, 3, len(texts)):
        found = ask(engine, texts[:count], pictures[:count])
        for text, picture, tokens in zip(texts, pictures, found, strict=False):
            assert tokens == tiny.generate([("user", [picture, text])], 20)
    stats = engine.stats()
    engine.close()
    assert stats["captured_mixed_steps"] > 5 and stats["static_mixed_steps"] > 0
    assert (stats["halved_steps"], stats["eager_steps"], stats["failed"]) == (0, 0, 0)


def test_what_cannot_be_captured_is_not_made(llava: Llava, arena: KVArena) -> None:
    decode = StaticDecode(llava, arena, GATHERED)
    assert static_mixed(llava, arena, None, LOOPED) is None
    assert static_mixed(llava, arena, decode, None) is None
    assert static_mixed(llava, arena, decode, LOOPED) is not None
