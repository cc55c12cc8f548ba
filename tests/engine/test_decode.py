"""Decode in static shapes, run without a GPU: the same code, with captures that are runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.engine.config import EngineConfig
from llavakit.engine.decode import MOST_PIECES, StaticDecode
from llavakit.engine.engine import Engine
from llavakit.engine.extents import Extent
from llavakit.engine.graphs import Step, as_it_is
from llavakit.engine.pieces import GATHERED, VARLEN, Kernel
from llavakit.errors import ParameterError
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_reader, load_weights
from tests.engine.asking import PICTURES, WORDS, ask
from tests.tiny import TinyModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(tiny: TinyModel) -> Reader:
    return load_reader(tiny.path)


@pytest.fixture(scope="module")
def llava(reader: Reader) -> Llava:
    return load_weights(reader, device="cpu", dtype="float32")


@pytest.fixture
def arena(llava: Llava) -> KVArena:
    arena = KVArena([CPU] * llava.layers, 2000, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    for slots in (*arena.keys, *arena.values):
        slots.normal_()
    return arena


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


ROWS = [Row((Extent(900, 300), Extent(1300, 20)), 0, 5, 1), Row((), 320, 40, 1)]


def eager(llava: Llava, arena: KVArena, rows: list[Row], tokens: list[int]) -> torch.Tensor:
    places = torch.tensor([row.seen for row in rows])
    hidden = llava.decode(llava.embed(torch.tensor(tokens)), places, attention_of(arena, rows))
    return llava.logits(hidden)


VARLEN_LIKE = replace(GATHERED, name="varlen-like", padded=False)
"""Takes pieces of any length without a bucket for it, as flash attention does."""


def refuse(step: Step) -> Step:
    raise RuntimeError("no graphs here")


@pytest.mark.parametrize("fill", [0, 32])
def test_static_step_equals_the_eager_pass(llava: Llava, arena: KVArena, fill: int) -> None:
    decode = StaticDecode(llava, arena, GATHERED, fill=fill, after=9)
    for rows in (ROWS, ROWS[:1], [*ROWS, Row((), 700, 0, 1)]):
        tokens = [9, 40, 77][: len(rows)]
        logits = decode(rows, tokens)
        assert logits is not None
        assert logits.shape == (len(rows), llava.vocab_size)
        torch.testing.assert_close(logits, eager(llava, arena, rows, tokens), rtol=1e-4, atol=1e-4)


def test_bucket_is_captured_once_when_it_was_needed_often(llava: Llava, arena: KVArena) -> None:
    captured = []

    def capture(step: Step) -> Step:
        captured.append(step)
        return step

    decode = StaticDecode(llava, arena, GATHERED, capture=capture, after=3)
    for _ in range(6):
        decode(ROWS, [9, 40])
    assert len(captured) == 1
    assert decode.steps == {"static": 3, "captured": 3}
    decode(ROWS[:1], [9])
    assert decode.steps == {"static": 4, "captured": 3}


def test_replay_reads_the_rows_of_its_own_step(llava: Llava, arena: KVArena) -> None:
    """A graph knows addresses and nothing else: all that changes must come from the table."""
    kept: list[torch.Tensor] = []

    def capture(step: Step) -> Step:
        def replay() -> torch.Tensor:
            kept[:] = kept or [step()]
            kept[0].copy_(step())
            return kept[0]

        return replay

    decode = StaticDecode(llava, arena, GATHERED, capture=capture, after=0)
    for start in range(30, 40):
        rows = [Row((), 320, start, 1), ROWS[0]]
        logits = decode(rows, [start, 9])
        assert logits is not None
        torch.testing.assert_close(
            logits, eager(llava, arena, rows, [start, 9]), rtol=1e-4, atol=1e-4
        )
    assert decode.steps == {"captured": 10}


def test_bucket_whose_capture_fails_goes_on_uncaptured(
    llava: Llava, arena: KVArena, caplog: pytest.LogCaptureFixture
) -> None:
    decode = StaticDecode(llava, arena, GATHERED, capture=refuse, after=1)
    results = [decode(ROWS, [9, 40]) for _ in range(4)]
    assert decode.steps == {"static": 4}
    for one in results:
        assert one is not None
        assert torch.equal(one, results[0])
    assert caplog.text.count("cannot be captured") == 1
    assert decode.capture_refused == "RuntimeError: no graphs here"


def test_what_cannot_be_compiled_is_captured_as_it_is(
    llava: Llava, arena: KVArena, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(rows: int) -> Any:
        raise RuntimeError("no Triton")

    decode = StaticDecode(llava, arena, GATHERED, compile=no_compiler, after=0)
    decode(ROWS, [9, 40])
    decode(ROWS[:1], [9])
    assert decode.steps == {"captured": 2}
    assert caplog.text.count("compiling is left out") == 1
    assert decode.compile_refused == "RuntimeError: no Triton"


def test_step_that_fails_is_left_to_the_eager_pass(
    llava: Llava, arena: KVArena, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    kernel = Kernel("broken", broken, padded=False)
    decode = StaticDecode(llava, arena, kernel, after=1)
    assert decode(ROWS, [9, 40]) is None
    assert decode(ROWS, [9, 40]) is None
    assert caplog.text.count("eager from now on") == 1


@pytest.mark.parametrize("kernel", [GATHERED, VARLEN], ids=lambda kernel: kernel.name)
def test_static_step_never_asks_the_device_for_a_number(tiny: TinyModel, kernel: Kernel) -> None:
    """On the meta device there are no numbers: whoever wanted one to decide would raise."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tiny.path))
    llava = Llava(model)
    devices = [torch.device("meta")] * llava.layers
    arena = KVArena(devices, 2000, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    logits = StaticDecode(llava, arena, kernel, after=9)(ROWS, [9, 40])
    assert logits is not None
    assert (logits.device.type, tuple(logits.shape)) == ("meta", (2, llava.vocab_size))


def test_token_that_only_the_device_knows_is_read_there(llava: Llava, arena: KVArena) -> None:
    decode = StaticDecode(llava, arena, GATHERED)
    known = decode(ROWS, [9, 40])
    assert known is not None
    drawn = torch.tensor([77, 40, 9])
    ahead = decode(ROWS, [0, 40], [2, -1], drawn)
    assert torch.equal(known.clone(), ahead)
    stale = decode(ROWS, [0, 40], [0, -1], drawn)
    assert not torch.equal(known, stale)


def test_warm_up_captures_every_usual_shape_once_and_touches_no_sequence(
    llava: Llava, arena: KVArena
) -> None:
    captured: list[Step] = []

    def capture(step: Step) -> Step:
        captured.append(step)
        step()
        return step

    before = [slots[:, : arena.scratch].clone() for slots in (*arena.keys, *arena.values)]
    decode = StaticDecode(llava, arena, VARLEN_LIKE, capture=capture, after=16, fill=64)
    told: list[tuple[int, int, str]] = []
    decode.warm_up(20, lambda *one: told.append(one))
    assert len(captured) == len(told) == told[-1][0] == told[-1][1]
    assert told[-1][2].startswith("1 rows")
    for old, slots in zip(before, (*arena.keys, *arena.values), strict=True):
        assert torch.equal(old, slots[:, : arena.scratch])
    for count in (1, 2, 7, 20):
        for prefix in ((), (Extent(900, 300),)):
            decode([Row(prefix, 100 * n, 90, 1) for n in range(count)], [7] * count)
    assert decode.steps["captured"] == 8, "no step waited for a capture"
    assert len(captured) == len(told)


def test_tree_that_is_too_deep_is_left_to_the_eager_pass(llava: Llava, arena: KVArena) -> None:
    deep = Row(tuple(Extent(900 + place, 1) for place in range(MOST_PIECES)), 0, 0, 1)
    assert StaticDecode(llava, arena, GATHERED)([deep], [9]) is None


def test_compiled_halves_have_no_graph_breaks_and_are_not_compiled_again(
    llava: Llava, arena: KVArena
) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    compile = functools.partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    decode = StaticDecode(llava, arena, GATHERED, compile=lambda rows: compile, after=0)
    for start in range(20, 40):
        rows = [Row((Extent(900, 300),), 0, start, 1), Row((), 320, start, 1)]
        logits = decode(rows, [9, start])
        assert logits is not None
        torch.testing.assert_close(
            logits, eager(llava, arena, rows, [9, start]), rtol=1e-4, atol=1e-4
        )
    assert decode.steps == {"captured": 20, "compiled": 20}
    # The half before the attention and the one behind it: for all layers once.
    assert len(graphs) == 2
    # More batch sizes than torch.compile specialises a function for of itself.
    for count in (1, 4, 8, 16, 24, 32, 48, 64, 80):
        decode([Row((), 20 * place, 3, 1) for place in range(count)], [7] * count)
    assert decode.steps == {"captured": 29, "compiled": 28}, "80 rows are not worth compiling"
    torch._dynamo.reset()


# Through the whole engine


def engine_of(reader: Reader, llava: Llava, **settings: Any) -> Engine:
    config = EngineConfig(str(reader.path), static_decode=True, **settings)
    return Engine(reader, config, llava)


def test_static_decode_equals_generate_through_the_whole_engine(
    tiny: TinyModel, reader: Reader, llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavakit.engine.decode.CAPTURE_AFTER", 4)
    engine = engine_of(reader, llava, max_concurrency=8)
    texts = WORDS * 2
    pictures = [PICTURES[place % 3] for place in range(len(texts))]
    for count in (1, 3, len(texts)):
        drawn = ask(engine, texts[:count], pictures[:count])
        for text, picture, tokens in zip(texts, pictures, drawn, strict=False):
            assert tokens == tiny.generate([("user", [picture, text])], 20)
    stats = engine.stats()
    engine.close()
    assert stats["halved_steps"] == 0
    assert stats["captured_steps"] >= 20
    assert stats["static_steps"] >= 20
    assert stats["eager_steps"] >= 3, "steps with a prefill are eager"
    done = stats["captured_steps"] + stats["static_steps"] + stats["eager_steps"]
    assert done == stats["steps"]


def test_engine_answers_when_nothing_can_be_captured(
    tiny: TinyModel, reader: Reader, llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavakit.engine.decode.CAPTURE_AFTER", 1)
    monkeypatch.setattr("llavakit.engine.decode.as_it_is", refuse)
    engine = engine_of(reader, llava)
    (tokens,) = ask(engine, ["What is it?"], PICTURES[:1])
    (again,) = ask(engine, ["And now?"], PICTURES[:1])
    assert tokens == tiny.generate([("user", [PICTURES[0], "What is it?"])], 20)
    assert again == tiny.generate([("user", [PICTURES[0], "And now?"])], 20)
    stats = engine.stats()
    engine.close()
    assert (stats["captured_steps"], stats["failed"], stats["halved_steps"]) == (0, 0, 0)


def test_cpu_decodes_eagerly_unless_asked_otherwise(reader: Reader, llava: Llava) -> None:
    engine = Engine(reader, EngineConfig(str(reader.path)), llava)
    ask(engine, ["hi"], PICTURES[:1])
    stats = engine.stats()
    engine.close()
    assert stats["eager_steps"] == stats["steps"]


@pytest.mark.parametrize("setting", ["static_decode", "compile"])
def test_settings_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(ParameterError, match=setting):
        EngineConfig("demo", **{setting: "sometimes"})


def test_compiling_without_static_shapes_is_refused() -> None:
    with pytest.raises(ParameterError, match="static_decode"):
        EngineConfig("demo", compile=True, static_decode=False)


def test_capture_without_graphs_runs_the_step_so_that_it_fails_there() -> None:
    with pytest.raises(RuntimeError, match="not here"):
        as_it_is(functools.partial(_fail, "not here"))


def _fail(what: str) -> torch.Tensor:
    raise RuntimeError(what)
