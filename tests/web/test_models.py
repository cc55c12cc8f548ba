"""The list of models, and which of them are in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavakit.errors import ParameterError, QueueFullError
from llavakit.model.catalog import CATALOG, resolve
from llavakit.testing import FakeBackend
from llavakit.web.accounts import read_accounts
from llavakit.web.catalog import ListedModel, listed_models
from llavakit.web.model_cache import ModelCache
from llavakit.web.moderation import load_hook


def test_the_list_tells_the_memory_of_the_catalog_and_of_directories(tmp_path: Path) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 2048}')
    (model / "model.safetensors").write_bytes(bytes(4_000_000))
    (tmp_path / "no-model").mkdir()
    listed = listed_models(["demo"], [tmp_path], catalog=True, bits=4)
    assert [offer.name for offer in listed[:2]] == ["demo", str(model)]
    assert len(listed) == len(CATALOG) + 1  # demo stands there once
    assert listed[1].label == "mine · needs 1.0 MB"
    assert listed[1].context == 2048
    large = resolve("llava-1.5-7b")
    assert large is not None
    [seven] = [offer for offer in listed if offer.name == "llava-1.5-7b"]
    assert seven.memory == large.memory(4)
    assert seven.label == f"llava-1.5-7b · needs {large.memory(4) / 1e9:.1f} GB"


def test_a_list_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        listed_models([])
    assert [offer.name for offer in listed_models("demo")] == ["demo"]  # and not d, e, m, o
    with pytest.raises(ParameterError, match="no directory"):
        listed_models(["demo"], [tmp_path / "none"])


def test_only_offers_are_loaded_and_the_others_take_turns() -> None:
    made: dict[str, FakeBackend] = {}

    def load(name: str) -> FakeBackend:
        made[name] = FakeBackend(name=name)
        return made[name]

    model_cache = ModelCache(
        [ListedModel(name, name) for name in ("mine", "other", "third")], 1, load
    )
    with pytest.raises(ParameterError), model_cache.using("secret"):
        pass
    with model_cache.using("mine"), model_cache.using("other"):
        with pytest.raises(QueueFullError, match="other is answering"), model_cache.using("third"):
            pass
        with model_cache.using("other") as again:
            assert again is made["other"]
    with model_cache.using("third"):
        assert made["other"].closed
        assert not made["mine"].closed
    model_cache.close()
    assert all(backend.closed for backend in made.values())


def test_accounts_are_read_without_telling_a_password(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    file.write_text("# people\nanna:with:colon\n\nben:b\n")
    assert read_accounts(file) == (("anna", "with:colon"), ("ben", "b"))
    file.write_text("anna:a\nsecretword\n")
    with pytest.raises(ParameterError, match="Line 2") as caught:
        read_accounts(file)
    assert "secretword" not in str(caught.value)
    file.write_text("# nobody\n")
    with pytest.raises(ParameterError, match="no account"):
        read_accounts(file)


def test_a_hook_is_found_by_its_name() -> None:
    assert load_hook("os.path:exists")("/") is True  # type: ignore[arg-type]
    for wrong in ("os.path", "no_such_module:f", "os:no_such_function", "os:sep"):
        with pytest.raises(ParameterError):
            load_hook(wrong)
