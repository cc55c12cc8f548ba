"""Published retrievers: the vectors that transformers' own scores are computed from, and places."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import llavakit
from llavakit.embeddings import Embedding, maxsim
from llavakit.errors import (
    CheckpointError,
    ContextLengthError,
    EngineClosedError,
    ImageDecodeError,
    InputError,
    ModelNotFoundError,
    ParameterError,
    SourceNotAllowedError,
    UnsupportedImageError,
)
from llavakit.retrieval import PageIndex, published_model
from llavakit.retrieval.embedder import load_embedder
from llavakit.retrieval.published import PublishedRetriever, is_published_retriever
from llavakit.sources import SourcePolicy
from tests.retrieval.checkpoints import BUILDERS, DIMENSIONS

SIZES = ((50, 50), (40, 120), (150, 33), (28, 28), (300, 211), (7, 9))
QUERIES = ["What is the total?", "Who?", "7", "Größe — 量 of <s> the thing " * 4]


def image(width, height, seed=0):
    """Noise with a gradient: no two patches alike."""
    rng = np.random.default_rng(seed + 7 * width + height)
    pixels = rng.integers(0, 200, (height, width, 3))
    pixels[..., 0] += np.linspace(0, 55, width).astype(int)
    return PILImage.fromarray(pixels.astype(np.uint8))


IMAGES = [image(*size) for size in SIZES]


class Tiny:
    """A checkpoint, the retriever on it, and transformers' own model of it."""

    def __init__(self, kind, path):
        self.kind, self.path = kind, path
        BUILDERS[kind](path)
        self.ours = PublishedRetriever(path)

    @cached_property
    def processor(self):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.path, backend="pil")

    @cached_property
    def model(self):
        import transformers

        (name,) = json.loads((self.path / "config.json").read_text())["architectures"]
        kind = getattr(transformers, name)
        return kind.from_pretrained(self.path, dtype=torch.float32).eval()

    def theirs(self, images=None, texts=None):
        """Inputs of a batch, and its embeddings with the padding."""
        made = (
            self.processor.process_images(images=images)
            if texts is None
            else self.processor.process_queries(text=texts)
        )
        with torch.inference_mode():
            return made, self.model(**made).embeddings


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def tiny(request, tmp_path_factory):
    return Tiny(request.param, tmp_path_factory.mktemp("published") / request.param)


@pytest.fixture(scope="module")
def one_kind(tmp_path_factory):
    """For what does not depend on the kind."""
    return Tiny("colqwen2", tmp_path_factory.mktemp("one") / "colqwen2")


def same(one, other):
    return len(one) == len(other) and np.allclose(one.vectors, other.vectors, atol=1e-5)


def test_scores_are_those_of_transformers(tiny):
    _, pages = tiny.theirs(images=IMAGES)
    _, queries = tiny.theirs(texts=QUERIES)
    # Padding is a vector of zeros to transformers, which wins where all products are negative.
    products = torch.einsum("qnd,psd->qpns", queries, pages).max(dim=3)[0]
    assert (products[queries.abs().sum(-1).bool()[:, None].expand(products.shape)] > 0).all()
    expected = tiny.processor.score_retrieval(queries, pages).numpy()
    found = tiny.ours.embed(images=IMAGES)
    asked = tiny.ours.embed(texts=QUERIES)
    scores = np.array([[maxsim(query, page) for page in found] for query in asked])
    assert np.abs(scores - expected).max() < 1e-4
    assert len(np.unique(scores.round(3))) == scores.size


def test_vectors_are_the_real_tokens_alone(tiny):
    for found, (made, expected) in (
        (tiny.ours.embed(images=IMAGES), tiny.theirs(images=IMAGES)),
        (tiny.ours.embed(texts=QUERIES), tiny.theirs(texts=QUERIES)),
    ):
        mask = made["attention_mask"].bool()
        assert made["input_ids"].shape[0] == len(found)
        for embedding, row, real in zip(found, expected, mask, strict=True):
            assert embedding.vectors.shape == (int(real.sum()), DIMENSIONS)
            assert embedding.vectors.dtype == np.float32
            assert np.allclose(embedding.vectors, row[real].numpy(), atol=1e-5)
            assert np.allclose(np.linalg.norm(embedding.vectors, axis=1), 1, atol=1e-6)


def test_a_batch_gives_what_each_gives_alone(tiny, monkeypatch):
    together = tiny.ours.embed(images=IMAGES), tiny.ours.embed(texts=QUERIES)
    alone = (
        [tiny.ours.embed(images=[one])[0] for one in IMAGES],
        [tiny.ours.embed(texts=[one])[0] for one in QUERIES],
    )
    monkeypatch.setattr(published_model.memory, "available", lambda: 0)
    batches = []
    run = published_model.LoadedRetriever._vectors
    monkeypatch.setattr(
        published_model.LoadedRetriever,
        "_vectors",
        lambda self, inputs: batches.append(len(inputs["input_ids"])) or run(self, inputs),
    )
    scarce = tiny.ours.embed(images=IMAGES), tiny.ours.embed(texts=QUERIES)
    assert batches == [1] * (len(IMAGES) + len(QUERIES))
    for kind in range(2):
        for whole, one, other in zip(together[kind], alone[kind], scarce[kind], strict=True):
            assert same(whole, one) and same(whole, other)
            assert whole.words == one.words == other.words


def test_images_are_opened_one_batch_at_a_time(one_kind, monkeypatch):
    monkeypatch.setattr(published_model, "MOST_ROWS", 2)
    events = []
    run = published_model.LoadedRetriever._image_batch
    monkeypatch.setattr(
        published_model.LoadedRetriever,
        "_image_batch",
        lambda self, rows: events.append(len(rows)) or run(self, rows),
    )
    opened = PublishedRetriever._open
    monkeypatch.setattr(
        PublishedRetriever, "_open", lambda self, one: events.append("o") or opened(self, one)
    )
    one_kind.ours.embed(images=IMAGES[:5])
    assert events == ["o", "o", "o", 2, "o", "o", 2, 1]


def test_a_batch_without_memory_is_halved(one_kind, monkeypatch):
    expected = one_kind.ours.embed(images=IMAGES)
    run = published_model.LoadedRetriever._vectors

    def scarce(self, inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, inputs)

    monkeypatch.setattr(published_model.LoadedRetriever, "_vectors", scarce)
    found = one_kind.ours.embed(images=IMAGES)
    assert all(map(same, found, expected)) and len(found) == len(expected)


def test_one_input_without_memory_is_an_error_in_words(one_kind, monkeypatch):
    def none(self, inputs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried")

    monkeypatch.setattr(published_model.LoadedRetriever, "_vectors", none)
    with pytest.raises(llavakit.errors.OutOfMemoryError, match="no memory for one input"):
        one_kind.ours.embed(texts=["a", "b"])


def test_other_errors_of_the_model_are_raised_as_they_are(one_kind, monkeypatch):
    def broken(self, inputs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(published_model.LoadedRetriever, "_vectors", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        one_kind.ours.embed(texts=["a", "b"])


GRIDS = {
    # Of the sizes above: rows and columns of the patches, as the processors cut them.
    "colpali": [(4, 4)] * 6,
    "colqwen2": [(4, 4), (9, 3), (2, 11), (2, 2), (5, 7), (2, 2)],
}


@pytest.mark.parametrize("tiny", sorted(GRIDS), indirect=True)
def test_places_are_the_patches_of_the_image(tiny):
    for found, (rows, columns) in zip(
        tiny.ours.embed(images=IMAGES), GRIDS[tiny.kind], strict=True
    ):
        whole = (found.places == (0, 0, 1, 1)).all(axis=1)
        patches = found.places[~whole]
        assert len(patches) == rows * columns
        for number, (left, top, right, bottom) in enumerate(patches):
            row, column = divmod(number, columns)
            assert np.allclose((left, right), (column / columns, (column + 1) / columns))
            assert np.allclose((top, bottom), (row / rows, (row + 1) / rows))


TILES = [(3, 3), (3, 1), (1, 3), (3, 3), (3, 3), (3, 3)]
"""Of the sizes above, for tiles of 28 pixels and a longest edge of 84: rows and columns."""


@pytest.mark.parametrize("tiny", ["colmodernvbert"], indirect=True)
def test_places_of_tiles_cover_the_image_and_the_view_of_the_whole_does_again(tiny):
    for found, (rows, columns) in zip(tiny.ours.embed(images=IMAGES), TILES, strict=True):
        patches = found.places[~(found.places == (0, 0, 1, 1)).all(axis=1)]
        areas = (patches[:, 2] - patches[:, 0]) * (patches[:, 3] - patches[:, 1])
        assert len(patches) == 4 * (rows * columns + 1)
        assert np.allclose(areas[:-4], 1 / (4 * rows * columns)) and np.allclose(areas[-4:], 1 / 4)
        first, second = patches[0], patches[4]
        assert np.allclose(first, (0, 0, 1 / (2 * columns), 1 / (2 * rows)))
        step = (1 / columns, 0) if columns > 1 else (0, 1 / rows)
        assert np.allclose(second[:2], step)
        assert np.allclose(patches[-1], (0.5, 0.5, 1, 1))


ATTENTION = ("o_proj.weight", "out_proj.weight", "out_proj.bias", "attn.proj.weight",
             "attn.proj.bias", "attn.Wo.weight")  # fmt: skip


def test_places_are_where_the_pixels_are(tiny, tmp_path):
    """Without attention, a vector sees its own patch alone: a dot moves those that hold it."""
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny.path, copy)
    tensors = load_file(copy / "model.safetensors")
    off = [name for name in tensors if name.endswith(ATTENTION)]
    assert len(off) >= 4
    tensors |= {name: torch.zeros_like(tensors[name]) for name in off}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    retriever = PublishedRetriever(copy)
    plain = PILImage.new("RGB", (84, 84), "white")
    for x, y in ((10, 10), (75, 10), (10, 75), (53, 31)):
        dotted = plain.copy()
        dotted.paste((0, 0, 0), (x - 2, y - 2, x + 2, y + 2))
        before, after = retriever.embed(images=[plain, dotted])
        patches = ~(before.places == (0, 0, 1, 1)).all(axis=1)
        moved = np.linalg.norm(before.vectors - after.vectors, axis=1) > 1e-3
        left, top, right, bottom = 84 * before.places.T
        holds = (left < x) & (x < right) & (top < y) & (y < bottom)
        assert (moved == (holds & patches)).all() and moved.any()


def test_words_are_the_tokens_of_the_query(tiny):
    (found,) = tiny.ours.embed(texts=["Sum"])
    assert len(found.words) == len(found)
    assert "".join(found.words).count("Sum") == 1
    assert found.places is None
    (page,) = tiny.ours.embed(images=IMAGES[:1])
    assert page.words == () and page.places.shape == (len(page), 4)
    assert page.places.min() == 0 and page.places.max() == 1


def test_anything_that_is_an_image_is_opened_under_the_policy(one_kind, tmp_path):
    path = tmp_path / "page.png"
    IMAGES[0].save(path)
    (expected,) = one_kind.ours.embed(images=[IMAGES[0]])
    forms = [path, str(path), path.read_bytes(), llavakit.Image(path), np.asarray(IMAGES[0])]
    assert all(same(one, expected) for one in one_kind.ours.embed(images=forms))
    closed = PublishedRetriever(one_kind.path, policy=SourcePolicy(roots=()))
    with pytest.raises(SourceNotAllowedError):
        closed.embed(images=[path])
    assert same(closed.embed(images=[path.read_bytes()])[0], expected)
    with pytest.raises(SourceNotAllowedError):
        one_kind.ours.embed(images=[llavakit.Image(path.as_uri(), from_url_field=True)])
    with pytest.raises(ImageDecodeError):
        one_kind.ours.embed(images=[IMAGES[0], path.read_bytes()[:200]])


def test_nothing_gives_nothing_and_both_or_neither_are_refused(one_kind):
    assert one_kind.ours.embed(images=[]) == [] and one_kind.ours.embed(texts=[]) == []
    for given in (
        {},
        {"images": [], "texts": []},
        {"texts": "one query"},
        {"images": "page.png"},
        {"texts": ["a", 3]},
        {"texts": ["a", " "]},
    ):
        with pytest.raises(ParameterError, match=r"images|text"):
            one_kind.ours.embed(**given)


def test_a_query_with_the_mark_of_an_image_is_refused(tiny):
    mark = tiny.processor.tokenizer.decode([tiny.processor.image_token_id])
    with pytest.raises(InputError, match="stands for an image"):
        tiny.ours.embed(texts=["fine", f"What is {mark}?"])


def test_a_query_that_is_too_long_is_refused(one_kind):
    with pytest.raises(ContextLengthError, match="the model takes 512") as error:
        one_kind.ours.embed(texts=["short", "long " * 200])
    assert error.value.prompt_tokens > 512 == error.value.context_length


def test_an_image_that_the_model_cannot_take_is_an_error_in_words(one_kind):
    strip = PILImage.new("RGB", (2100, 10))  # ColQwen2 takes sides up to 1 to 200
    with pytest.raises(UnsupportedImageError, match="cannot take an image of 2100x10"):
        one_kind.ours.embed(images=[IMAGES[0], strip])


def test_threads_share_one_retriever(one_kind):
    expected = one_kind.ours.embed(images=IMAGES), one_kind.ours.embed(texts=QUERIES)
    fresh = PublishedRetriever(one_kind.path)

    def work(number):
        kind = number % 2
        given = {"texts": QUERIES} if kind else {"images": IMAGES}
        return all(map(same, fresh.embed(**given), expected[kind]))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


def test_retrievers_of_one_model_share_its_weights_until_the_last_is_closed(tmp_path):
    BUILDERS["colpali"](tmp_path)
    one = PublishedRetriever(tmp_path)
    other = PublishedRetriever(str(tmp_path) + "/.", policy=SourcePolicy(roots=()))
    one.embed(texts=["a"])
    other.embed(texts=["a"])
    assert one._retriever is other._retriever
    with one:
        pass
    assert one.closed and not other.closed
    with pytest.raises(EngineClosedError):
        one.embed(texts=["a"])
    one.close()
    assert other.embed(texts=["a"])
    other.close()
    from llavakit.retrieval import published

    assert not [key for key in published._retrievers if key[0].model == str(tmp_path)]


def test_closing_lets_what_is_under_way_finish(one_kind, monkeypatch):
    entered, closed = threading.Event(), threading.Event()
    run = published_model.LoadedRetriever._vectors

    def slow(self, inputs):
        entered.set()
        assert closed.wait(10)
        return run(self, inputs)

    monkeypatch.setattr(published_model.LoadedRetriever, "_vectors", slow)
    fresh = PublishedRetriever(one_kind.path)
    with ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(fresh.embed, texts=["a"])
        assert entered.wait(10)
        fresh.close()
        closed.set()
        assert isinstance(under_way.result()[0], Embedding)


def test_sixteen_bits_are_near_and_of_length_one(tiny):
    half = PublishedRetriever(tiny.path, dtype="bfloat16")
    for one, other in zip(half.embed(images=IMAGES), tiny.ours.embed(images=IMAGES), strict=True):
        assert np.allclose(np.linalg.norm(one.vectors, axis=1), 1, atol=1e-6)
        assert (one.vectors * other.vectors).sum(axis=1).mean() > 0.98
    assert half.fingerprint == tiny.ours.fingerprint


def test_dimensions_and_fingerprint_need_no_weights(one_kind, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(one_kind.path, copy)
    retriever = PublishedRetriever(copy)
    assert retriever.dimensions == DIMENSIONS
    assert retriever._retriever is None
    before = retriever.fingerprint
    assert PublishedRetriever(copy).fingerprint == before
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert PublishedRetriever(copy).fingerprint != before
    changed = PublishedRetriever(copy).fingerprint
    settings = copy / "processor_config.json"
    settings.write_text(settings.read_text() + " ")
    assert PublishedRetriever(copy).fingerprint not in (before, changed)


def test_an_index_takes_its_retriever_from_another_directory(one_kind, tmp_path):
    with PageIndex(tmp_path / "index", PublishedRetriever(one_kind.path)):
        pass
    copy = shutil.copytree(one_kind.path, tmp_path / "another name")
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    with PageIndex(tmp_path / "index", PublishedRetriever(copy), must_exist=True) as index:
        assert len(index) == 0
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ParameterError, match="another embedder"):
        PageIndex(tmp_path / "index", PublishedRetriever(copy), must_exist=True)


def test_published_retrievers_are_known_by_their_settings(tiny, tmp_path, demo_dir):
    assert is_published_retriever(tiny.path)
    assert not is_published_retriever(demo_dir) and not is_published_retriever(tmp_path)
    settings = tmp_path / "config.json"
    settings.write_text("[]")
    assert not is_published_retriever(tmp_path)
    settings.write_text(json.dumps({"model_type": "x", "architectures": ["ColQwen2ForRetrieval"]}))
    assert is_published_retriever(tmp_path)
    settings.write_text(json.dumps({"model_type": ["colpali"], "architectures": "ColPali"}))
    assert not is_published_retriever(tmp_path)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"model_type": "colqwen3", "architectures": ["ColQwen3ForRetrieval"]}, "ColQwen3"),
        ({"model_type": "llama"}, "llama"),
        ({}, "a model without a name"),
    ],
)
def test_a_kind_that_is_not_known_is_refused_by_name(tmp_path, settings, named):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    retriever = PublishedRetriever(tmp_path)
    with pytest.raises(CheckpointError, match=f"holds {named}.*ColPali, ColQwen2, ColModernVBERT"):
        retriever.embed(texts=["a"])
    with pytest.raises(CheckpointError):
        _ = retriever.dimensions


def test_an_adapter_alone_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"an adapter and no whole model.*-hf"):
        _ = PublishedRetriever(tmp_path).dimensions


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ModelNotFoundError):
        _ = PublishedRetriever("no-such-retriever").fingerprint


@pytest.mark.parametrize("name, match", [
    ("processor_config.json", "processor"),
    ("tokenizer.json", "processor"),
])  # fmt: skip
def test_missing_files_are_refused(one_kind, tmp_path, name, match):
    copy = tmp_path / "copy"
    shutil.copytree(one_kind.path, copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=match):
        PublishedRetriever(copy).embed(texts=["a"])


def test_weights_that_are_missing_or_of_another_shape_are_refused(one_kind, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(one_kind.path, copy)
    tensors = load_file(copy / "model.safetensors")
    name = "embedding_proj_layer.weight"
    whole = tensors.pop(name)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors, among them {name}"):
        PublishedRetriever(copy).embed(texts=["a"])
    save_file(
        {**tensors, name: whole[:8].clone()}, copy / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=rf"{name} as \[8, 32\]"):
        PublishedRetriever(copy).embed(texts=["a"])


def test_numbers_that_are_not_finite_are_an_error(one_kind, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(one_kind.path, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["embedding_proj_layer.weight"][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(llavakit.errors.EngineError, match="not finite"):
        PublishedRetriever(copy).embed(texts=["a"])


@pytest.mark.parametrize(
    "settings",
    [{"device": "no-such"}, {"dtype": "int3"}, {"model": ""}, {"model": 3}, {"policy": "all"}],
)
def test_settings_that_do_not_exist_are_refused(one_kind, settings):
    with pytest.raises(ParameterError):
        PublishedRetriever(**{"model": one_kind.path, **settings}).embed(texts=["a"])


def test_published_retrievers_are_loaded_by_name_as_every_embedder_is(tiny, tmp_path):
    loaded = load_embedder(tiny.path, source_policy=SourcePolicy(roots=()), device="cpu")
    assert isinstance(loaded, PublishedRetriever) and loaded.policy.roots == ()
    (found,), (expected,) = loaded.embed(texts=["Sum"]), tiny.ours.embed(texts=["Sum"])
    assert same(found, expected) and loaded.fingerprint == tiny.ours.fingerprint
    with pytest.raises(ParameterError, match=r"adapter.*leave it out"):
        load_embedder(tiny.path, adapter=tmp_path)
    with pytest.raises(ParameterError, match="quantization has no effect on"):
        load_embedder(tiny.path, quantization="4bit")
    with pytest.raises(ParameterError, match="quantisation has no effect on"):
        load_embedder(tiny.path, quantisation="4bit")


def test_importing_it_loads_no_torch():
    program = (
        "import sys, llavakit.retrieval.published as p; p.PublishedRetriever('demo');"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
