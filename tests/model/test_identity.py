"""Which model a checkpoint is, by its content."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llavakit.errors import CheckpointError
from llavakit.model import identity
from llavakit.model.identity import identity_of

CONFIG = {"model_type": "llava", "_name_or_path": "/home/one/model", "hidden_size": 8}


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory whose weights are so large that they are not read as a whole."""
    path = tmp_path / "here"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    write(path / request.param, tensors())
    return path


def tensors(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    found = {f"layer.{n}": torch.randn(500_000, generator=drawn) for n in range(6)}
    return {**found, **changed}


def write(file: Path, weights: dict[str, torch.Tensor]) -> None:
    if file.suffix == ".bin":
        torch.save(weights, file)
    else:
        save_file(weights, file)


def weights_of(path: Path) -> Path:
    (file,) = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    assert file.stat().st_size > identity._SMALL
    return file


def test_a_copy_in_another_directory_at_another_time_is_the_same(
    checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "under another name")
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    (copy / "README.md").write_text("A note.")
    (copy / "training_args.bin").write_bytes(b"no weights")
    moved = {**CONFIG, "_name_or_path": "/srv/models/model"}
    (copy / "config.json").write_text(json.dumps(moved))
    assert identity_of([copy]) == identity_of([checkpoint])


@pytest.mark.parametrize("layer", range(6))
def test_one_trained_tensor_is_another_model(checkpoint: Path, layer: int) -> None:
    before, file = identity_of([checkpoint]), weights_of(checkpoint)
    name = f"layer.{layer}"
    status = file.stat()
    write(file, tensors(**{name: tensors()[name] + 1e-3}))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert identity_of([checkpoint]) != before


CHANGES: dict[str, Callable[[Path], object]] = {
    "a setting": lambda at: (at / "config.json").write_text(json.dumps({**CONFIG, "x": 1})),
    "the tokenizer": lambda at: (at / "tokenizer.json").write_text('{"a": 1}'),
    "image settings": lambda at: (at / "preprocessor_config.json").write_text("{}"),
    "a shard more": lambda at: (at / "model-2.safetensors").write_bytes(b"x" * 100),
    "a file that is cut off": lambda at: os.truncate(weights_of(at), 9_000_000),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_changes_results_is_another_model(checkpoint: Path, change: str) -> None:
    before = identity_of([checkpoint])
    CHANGES[change](checkpoint)
    assert identity_of([checkpoint]) != before


def test_pickled_weights_beside_their_safetensors_do_not_count(checkpoint: Path) -> None:
    write(checkpoint / "model.safetensors", tensors())
    (checkpoint / "pytorch_model.bin").unlink(missing_ok=True)
    before = identity_of([checkpoint])
    write(checkpoint / "pytorch_model.bin", tensors())
    assert identity_of([checkpoint]) == before


def test_all_directories_count_in_their_order(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    both = identity_of([adapter, checkpoint])
    assert len({both, identity_of([checkpoint]), identity_of([checkpoint, adapter])}) == 3


def test_damaged_weights_have_an_identity_and_their_reader_says_what_is_wrong(
    tmp_path: Path,
) -> None:
    for number, head in enumerate([b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{]", b"PK\x03\x04"]):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "model.safetensors").write_bytes(head + b"\0" * identity._SMALL)
        assert len(identity_of([path])) == 16


def test_weights_that_cannot_be_read_are_named(checkpoint: Path) -> None:
    (checkpoint / "model-2.safetensors").symlink_to("a blob that was never downloaded")
    with pytest.raises(CheckpointError, match=r"model-2.safetensors cannot be read \(No such file"):
        identity_of([checkpoint])
