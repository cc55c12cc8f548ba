"""Embeddings from the engine are PEFT's and transformers', and no answer is another for them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import llavakit
from llavakit import SamplingParams
from llavakit.backend import Backend, question_about
from llavakit.embeddings import maxsim
from llavakit.engine.extents import Extent
from llavakit.engine.prefix import PrefixTree, Segment, common_prefix
from llavakit.engine.sequence import virtual_ids
from llavakit.errors import (
    CheckpointError,
    EngineError,
    InputError,
    ModelNotFoundError,
    ParameterError,
    RequestTimeoutError,
)
from tests.families import tiny_family
from tests.model.test_families import picture
from tests.retrieval.adapters import DIMENSIONS, Reference, random_adapter
from tests.tiny import tiny_llava

TEXTS = ["What is it?", "A", "the number of the invoice, please"]
IMAGES = [picture(1, 40, 16), picture(2, 30, 90), picture(3, 64, 64)]
FAMILIES = ["llava-1.5", "1.6-mistral", "onevision", "granite-vision", "qwen3", "interleave"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("family")
    model = tiny_family(folder / "base", request.param)
    return random_adapter(folder / "adapter", model.path, model.model)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("plain")
    model = tiny_llava(folder / "base")
    return random_adapter(folder / "adapter", model.path, model.model)


@pytest.fixture
def backend(plain: Reference) -> Iterator[Backend]:
    """Whose steps are short, so that embeddings take several, beside answers."""
    with llavakit_of(plain, prefill_chunk=16) as made:
        yield made


class llavakit_of:
    """A backend of a reference's base, closed behind a test."""

    def __init__(self, reference: Reference, **options: object) -> None:
        self._backend = llavakit.load(
            reference.checkpoint, dtype="float32", device="cpu", **options
        )

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(self, *error: object) -> None:
        self._backend.close()


def test_vectors_of_every_family_are_those_of_peft_and_transformers(family: Reference):
    with llavakit_of(family, prefill_chunk=24) as backend:
        for contents, given_as in ((IMAGES, "images"), (TEXTS, "texts")):
            found = backend.embed(**{given_as: contents}, adapter=family.path)
            for one, content in zip(found, contents, strict=True):
                value = content if isinstance(content, str) else llavakit.Image(content)
                wanted = family.vectors(value).numpy()
                np.testing.assert_allclose(one.vectors, wanted, atol=2e-5)
                assert one.vectors.shape[1] == DIMENSIONS
                assert (one.places is not None) == (given_as == "images")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_weights_take_the_adapter_too(plain: Reference, bits: str):
    with llavakit_of(plain, quantization=bits) as backend:
        (found,) = backend.embed(images=IMAGES[:1], adapter=plain.path)
    wanted = plain.vectors(llavakit.Image(IMAGES[0])).numpy()
    # The base is another one by its rounding; the adapter's part is far larger than that.
    assert (found.vectors * wanted).sum(axis=1).min() > 0.9


def test_answers_are_the_same_token_for_token_beside_embeddings(plain: Reference):
    params = SamplingParams(temperature=0, max_tokens=48)
    asked = [question_about(image, text) for image in IMAGES for text in TEXTS]
    with llavakit_of(plain, prefill_chunk=16) as backend:
        alone = [backend.generate(one, params).text for one in asked]
        vectors = backend.embed(images=IMAGES, adapter=plain.path)
    with llavakit_of(plain, prefill_chunk=16) as backend:
        stop = threading.Event()
        found: list[np.ndarray] = []

        def embed() -> None:
            while not stop.is_set():
                found.extend(
                    one.vectors for one in backend.embed(images=IMAGES, adapter=plain.path)
                )

        threads = [threading.Thread(target=embed) for _ in range(2)]
        for thread in threads:
            thread.start()
        streams = [backend.stream(one, params) for one in asked]
        beside = ["".join(chunk.text for chunk in stream) for stream in streams]
        stop.set()
        for thread in threads:
            thread.join()
        assert backend.stats()["steps"] > 0
    assert beside == alone
    assert len(found) >= len(IMAGES), "embeddings were computed meanwhile"
    for number, one in enumerate(found):
        np.testing.assert_allclose(one, vectors[number % len(IMAGES)].vectors, atol=1e-5)


def test_an_image_that_was_asked_about_has_the_same_vectors_and_answers_the_same(
    backend: Backend, plain: Reference
):
    params = SamplingParams(temperature=0, max_tokens=16)
    question = question_about(IMAGES[0], TEXTS[0])
    (before,) = backend.embed(images=IMAGES[:1], adapter=plain.path)
    answer = backend.generate(question, params).text
    encoded = backend.stats()["images_encoded"]
    (behind,) = backend.embed(images=IMAGES[:1], adapter=plain.path)
    assert np.array_equal(before.vectors, behind.vectors)
    assert backend.stats()["images_encoded"] == encoded, "features are shared"
    with llavakit_of(plain) as fresh:
        assert fresh.generate(question, params).text == answer


@given(
    tokens=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    salts=st.lists(st.integers(1, 2**62 - 1), min_size=2, max_size=2, unique=True),
)
@settings(max_examples=100)
def test_no_prefix_is_shared_between_adapters_or_with_answers(tokens: list[int], salts: list[int]):
    plain = virtual_ids(tokens, ())
    one, other = (virtual_ids(tokens, (), salt) for salt in salts)
    assert common_prefix(plain, one) == common_prefix(one, other) == 0
    assert common_prefix(one, virtual_ids(tokens, (), salts[0])) == len(tokens)
    tree = PrefixTree()
    segment = Segment(Extent(0, len(tokens)))
    segment._ids = one
    tree.add(segment)
    assert tree.best(plain) == tree.best(other) == (None, 0)
    assert tree.best(one) == (segment, len(tokens))


def test_words_of_a_query_stand_beside_its_vectors(demo_backend: Backend, tmp_path: Path):
    from transformers import AutoModelForImageTextToText

    from llavakit.demo import checkpoint_path

    model = AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype=torch.float32)
    adapter = random_adapter(tmp_path / "adapter", checkpoint_path(), model)
    (found,) = demo_backend.embed(texts=["What colour is the circle?"], adapter=adapter.path)
    assert [word for word in found.words if word] == ["What", "colour", "is", "the", "circle", "?"]
    assert len(found.words) == len(found.vectors) > 6, "the template's end has read all words"
    assert found.words[-1] == ""


def test_an_embedding_fails_alone(backend: Backend, plain: Reference, tmp_path: Path):
    with pytest.raises(InputError):
        backend.embed(images=[IMAGES[0], tmp_path / "none.png"], adapter=plain.path)
    with pytest.raises(RequestTimeoutError):
        backend.embed(images=IMAGES, adapter=plain.path, timeout=1e-9)
    assert len(backend.embed(images=IMAGES, adapter=plain.path)) == len(IMAGES)
    stats = backend.stats()
    assert stats["running"] == stats["waiting"] == 0


def test_vectors_that_are_not_finite_fail_their_own_embedding(tmp_path: Path):
    base = tiny_llava(tmp_path / "base")
    file = base.path / "model.safetensors"
    weights = load_file(file)
    (name,) = (one for one in weights if "embed_tokens" in one)
    last_byte = "¿".encode()[-1]
    weights[name][5 + last_byte] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    made = random_adapter(tmp_path / "adapter", base.path, base.model)
    params = SamplingParams(temperature=0, max_tokens=8)
    with llavakit_of(made, prefill_chunk=16) as backend:
        (alone,) = backend.embed(texts=TEXTS[:1], adapter=made.path)
        answer = backend.generate("Hi", params).text
        stream = backend.stream("Hi", params)
        with pytest.raises(EngineError, match=r"not finite.*no embedding.*float32"):
            backend.embed(texts=["¿"], adapter=made.path)
        assert "".join(chunk.text for chunk in stream) == answer
        (again,) = backend.embed(texts=TEXTS[:1], adapter=made.path)
    np.testing.assert_array_equal(alone.vectors, again.vectors)


def test_wrong_arguments_are_named(backend: Backend, plain: Reference, tmp_path: Path):
    for wrong in (
        {},
        {"images": [IMAGES[0]], "texts": ["a"]},
        {"images": "page.png"},
        {"texts": "a"},
        {"texts": [" "]},
        {"texts": [3]},
    ):
        with pytest.raises(ParameterError):
            backend.embed(**wrong, adapter=plain.path)
    with pytest.raises(ParameterError, match="without a retrieval adapter"):
        backend.embed(texts=["a"])
    with pytest.raises(ModelNotFoundError):
        backend.embed(texts=["a"], adapter=tmp_path / "none")


def test_a_space_has_the_weights_and_the_adapter_in_its_name(
    plain: Reference, backend: Backend, tmp_path: Path
):
    space = backend.embedding_space(plain.path)
    assert space.dimensions == DIMENSIONS
    changed = _copied(plain, tmp_path / "changed", lambda name, one: one + 0.001)
    assert backend.embedding_space(changed).fingerprint != space.fingerprint
    same = _copied(plain, tmp_path / "same", lambda name, one: one)
    assert backend.embedding_space(same).fingerprint == space.fingerprint


def test_a_space_is_the_same_for_a_copy_and_another_for_other_weights_or_words_around_a_query(
    plain: Reference, tmp_path: Path
):
    copy = shutil.copytree(plain.checkpoint, tmp_path / "a copy")
    other = shutil.copytree(plain.checkpoint, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)

    def space(path: Path, **settings: Any) -> str:
        with closing(llavakit.load(path, **settings)) as loaded:
            return loaded.embedding_space(plain.path).fingerprint

    first = space(plain.checkpoint)
    assert space(copy) == first
    assert space(other) != first
    assert space(plain.checkpoint, conv_mode="llama_2") != first


def _copied(reference: Reference, path: Path, change: object) -> Path:
    """The adapter with its tensors changed; a change to None leaves one out."""
    path.mkdir()
    for name in ("adapter_config.json", "retrieval.json"):
        (path / name).write_bytes((reference.path / name).read_bytes())
    state = load_file(reference.path / "adapter_model.safetensors")
    made = {name: change(name, one) for name, one in state.items()}  # type: ignore[operator]
    kept = {name: one for name, one in made.items() if one is not None}
    save_file(kept, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return path


def test_adapters_that_do_not_fit_are_refused_by_the_tensor(
    plain: Reference, backend: Backend, tmp_path: Path
):
    def without(part: str) -> object:
        return lambda name, one: None if part in name else one

    first = "layers.0.self_attn.q_proj.lora_"
    changes = {
        "lacks one half": without(f"{first}B"),
        "lacks retrieval_projection": without("retrieval_projection"),
        "not finite": lambda name, one: one * float("nan") if "v_proj" in name else one,
        "hidden states have": lambda name, one: (
            torch.cat([one, one], dim=1) if "retrieval_projection" in name else one
        ),
        r"and the model's \[": lambda name, one: one[:-1] if f"{first}B" in name else one,
    }
    for number, (message, change) in enumerate(changes.items()):
        path = _copied(plain, tmp_path / str(number), change)
        with pytest.raises(CheckpointError, match=message):
            backend.embed(texts=["a"], adapter=path)
    assert backend.embed(texts=["a"], adapter=plain.path), "the engine goes on"


def test_an_adapter_of_the_vision_tower_is_refused(
    plain: Reference, backend: Backend, tmp_path: Path
):
    path = _copied(plain, tmp_path / "tower", lambda name, one: one)
    file = path / "adapter_model.safetensors"
    state = load_file(file)
    state["base_model.model.model.vision_tower.layers.0.q_proj.lora_A.weight"] = torch.ones(4, 4)
    save_file(state, file)
    with pytest.raises(CheckpointError, match="only the language model"):
        backend.embed(texts=["a"], adapter=path)
    settings_file = path / "adapter_config.json"
    settings_file.write_text(json.dumps({"peft_type": "LORA", "use_dora": True}))
    with pytest.raises(CheckpointError, match="DORA"):
        llavakit.load(plain.checkpoint, device="cpu").embed(texts=["a"], adapter=path)


def test_a_server_gives_no_embeddings():
    backend = llavakit.load("demo", base_url="http://127.0.0.1:1", api_key="")
    with pytest.raises(ParameterError, match="in this process"):
        backend.embed(texts=["a"])
    backend.close()


def test_scores_of_an_image_are_highest_for_itself(backend: Backend, plain: Reference):
    found = backend.embed(images=IMAGES, adapter=plain.path)
    again = backend.embed(images=[PILImage.fromarray(np.asarray(IMAGES[1]))], adapter=plain.path)
    scores = [maxsim(again[0], one) for one in found]
    assert int(np.argmax(scores)) == 1
    assert scores[1] == pytest.approx(len(again[0]), abs=1e-3)
