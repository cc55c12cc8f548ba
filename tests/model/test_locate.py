"""Which files of a repository are downloaded, with the hub played by a list of names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from llavakit.errors import ModelNotFoundError
from llavakit.model.locate import locate

ALWAYS = ["config.json", "tokenizer.model", "tokenizer_config.json"]
NEVER = ["modeling_llava.py", "training_args.bin", "tf_model.h5", "flax_model.msgpack"]
ORIGINAL = "liuhaotian/llava-v1.5-7b"
TWIN = "llava-hf/llava-1.5-7b-hf"

Hub = Callable[..., list[str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub of these repositories; gives the list of what is downloaded from now on."""

    def of(repositories: dict[str, list[str]], cached: tuple[str, ...] = ()) -> list[str]:
        taken: list[str] = []

        def model_info(repo: str, revision: str | None = None, timeout: float = 0) -> Any:
            if repo not in repositories:
                raise OfflineModeIsEnabled("offline")
            files = [SimpleNamespace(rfilename=name) for name in repositories[repo]]
            return SimpleNamespace(siblings=files)

        def snapshot_download(
            repo: str,
            revision: str | None = None,
            allow_patterns: list[str] | None = None,
            local_files_only: bool = False,
        ) -> str:
            if local_files_only and repo not in cached:
                raise LocalEntryNotFoundError("not cached")
            if repo not in repositories and repo not in cached:
                raise LocalEntryNotFoundError("offline")
            folder = tmp_path / repo
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "pytorch_model.bin"):
                (folder / name).touch()
            wanted = allow_patterns or []
            names = repositories.get(repo, [])
            taken.extend(name for name in names if any(fnmatch(name, one) for one in wanted))
            return str(folder)

        monkeypatch.setattr("huggingface_hub.model_info", model_info)
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return taken

    return of


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
        (
            ["adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin"],
            ["adapter_model.safetensors", "non_lora_trainables.bin"],
        ),
        (["adapter_model.bin", "non_lora_trainables.bin"],) * 2,
        (["mm_projector.bin"],) * 2,
    ],
)
def test_pickled_weights_are_taken_only_where_there_are_no_others(hub, weights, taken):
    downloaded = hub({"some/model": [*ALWAYS, *NEVER, *weights]})
    locate("some/model")
    assert downloaded == [*ALWAYS, *taken]


def test_without_a_network_the_cache_is_asked(hub):
    hub({}, cached=("some/model",))
    assert locate("some/model").name == "model"
    with pytest.raises(ModelNotFoundError, match="not in the local cache"):
        locate("other/model")


def test_a_hub_that_cannot_be_reached_is_told_at_once_and_in_one_sentence():
    command = [sys.executable, "-m", "llavakit.cli", "ask", "hi", "--model", "llava-1.5-7b"]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        command, env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=120
    )
    (sentence,) = done.stderr.splitlines()  # and no line for each attempt
    assert done.returncode == 1 and "the hub cannot be reached" in sentence


def test_the_bundled_model_is_found_whatever_the_case_of_its_name(demo_dir):
    for name in ("demo", "Demo", " DEMO "):
        assert locate(name) == demo_dir


def test_catalog_names_stand_for_the_twin_in_hf_format(hub):
    downloaded = hub({TWIN: ["model.safetensors"], ORIGINAL: ["pytorch_model.bin"]})
    for name in ("llava-1.5-7b", ORIGINAL, TWIN):
        assert str(locate(name)).endswith(TWIN)
    assert set(downloaded) == {"model.safetensors"}


def test_original_id_means_the_original_where_it_is_in_the_cache(hub):
    hub({TWIN: ["model.safetensors"]}, cached=(ORIGINAL,))
    assert str(locate(ORIGINAL)).endswith(ORIGINAL)
    assert str(locate("llava-1.5-7b")).endswith(TWIN)


def test_base_of_a_lora_is_the_original(hub):
    hub({TWIN: ["model.safetensors"], ORIGINAL: ["pytorch_model.bin"]})
    assert str(locate("llava-1.5-7b", original=True)).endswith(ORIGINAL)
    hub({"lmsys/vicuna-7b-v1.5": ["pytorch_model.bin"]})
    assert locate("lmsys/vicuna-7b-v1.5", original=True).name == "vicuna-7b-v1.5"
