"""Retrieval adapters: trained from pairs, gone on with after a kill, used by the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import llavakit
from examples.demo_model.retrieval import write_pairs
from llavakit.embeddings import maxsim
from llavakit.errors import DataError, ModelError, ParameterError
from llavakit.training.config import TrainConfig
from llavakit.training.data_files import open_records
from llavakit.training.progress import LOG, PLOT
from llavakit.training.retrieval.contrast import contrastive_loss
from llavakit.training.retrieval.contrast import maxsim as batch_maxsim
from llavakit.training.retrieval.mining import MINED
from llavakit.training.retrieval.pairs import check_pairs
from llavakit.training.run import Trained, train
from llavakit.training.trainer import CHECKPOINTS
from tests.tiny import TinyModel, tiny_llava

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_llava(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 12, size=64)


def run(base: TinyModel, data: Path, out: Path, **settings: Any) -> Trained:
    given = {
        "model": str(base.path),
        "data": str(data),
        "out": str(out),
        "device": "cpu",
        "batch_size": 4,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "learning_rate": 5e-3,
        "dimensions": 16,
        "epochs": 3,
        "gradient_checkpointing": False,
        **settings,
    }
    return train(TrainConfig.of("retrieve", given))


@pytest.fixture(scope="module")
def whole(base: TinyModel, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("whole") / "adapter"
    return run(base, data, out, hard_negatives=2, save_steps=5)


def test_the_adapter_that_is_written_finds_the_pages_that_it_learnt(
    base: TinyModel, data: Path, tmp_path: Path
):
    made = run(base, data, tmp_path / "out", epochs=40, learning_rate=2e-2)
    assert made.losses[-1] < made.losses[0] / 4
    records = [json.loads(line) for line in data.read_text().splitlines()]
    backend = llavakit.load(base.path, device="cpu")
    pages = backend.embed(images=[data.parent / one["image"] for one in records], adapter=made.out)
    queries = backend.embed(texts=[one["query"] for one in records], adapter=made.out)
    best = [int(np.argmax([maxsim(query, page) for page in pages])) for query in queries]
    assert sum(found == number for number, found in enumerate(best)) >= 10
    assert (made.out / LOG).is_file() and (made.out / PLOT).is_file()
    assert json.loads((made.out / "retrieval.json").read_text())["dimensions"] == 16
    backend.close()


def test_a_run_that_is_gone_on_with_ends_with_the_same_weights(
    base: TinyModel, data: Path, whole: Trained, tmp_path: Path
):
    out = tmp_path / "adapter"

    class Killed(Exception):
        pass

    def die(line: str) -> None:
        if "hard negatives" in line:
            raise Killed

    settings = TrainConfig.of("retrieve", {**_settings(whole.out), "out": str(out)})
    with pytest.raises(Killed):  # in the middle: at the beginning of the second epoch
        train(settings, die)
    assert not (out / "adapter_model.safetensors").is_file()
    again = TrainConfig.of("retrieve", {**_settings(whole.out), "out": str(out), "resume": True})
    train(again)
    one, other = (load_file(path / "adapter_model.safetensors") for path in (whole.out, out))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


def _settings(out: Path) -> dict[str, Any]:
    held = json.loads((out / "llavakit_training.json").read_text())
    return {name: value for name, value in held.items() if value is not None}


def test_hard_negatives_are_wrong_pages_and_are_kept_for_a_resumed_run(whole: Trained, data: Path):
    mined = json.loads((whole.out / MINED.format(epoch=1)).read_text())
    assert len(mined) == 12
    for own, others in mined.items():
        assert len(others) == 2 and int(own) not in others
    assert (whole.out / CHECKPOINTS / "checkpoint-5").is_dir()


def test_the_loss_does_not_push_a_query_from_any_page_that_answers_it():
    scores = torch.tensor([[2.0, 1.0, -1.0]])
    both = contrastive_loss(scores, torch.tensor([[True, True, False]]))
    wanted = torch.logsumexp(scores, 1) - torch.logsumexp(scores[:, :2], 1)
    torch.testing.assert_close(both, wanted[0])
    one = contrastive_loss(scores, torch.tensor([[True, False, False]]))
    torch.testing.assert_close(one, torch.nn.functional.cross_entropy(scores, torch.tensor([0])))


def test_padding_takes_no_part_in_scores():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 3, 4, generator=generator)
    pages = torch.randn(2, 5, 4, generator=generator)
    asked = torch.tensor([[True, True, False], [True, True, True]])
    shown = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = batch_maxsim(queries, asked, pages, shown)
    for q in range(2):
        for p in range(2):
            products = queries[q][asked[q]] @ pages[p][shown[p]].T
            torch.testing.assert_close(found[q, p], products.amax(1).mean())


def _write(folder: Path, *records: object) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


def test_faults_of_the_data_are_named_by_their_lines(data: Path):
    file = _write(
        data.parent,
        {"query": "a", "image": "00000.png"},
        {"query": "a", "image": "none.png"},
        {"query": " ", "image": "00000.png"},
        {"query": 3, "image": "00000.png"},
        {"query": "a"},
        {"query": "a", "image": "00000.png", "positives": ["00001.png"]},
        {"query": "a", "image": "00000.png", "negatives": "00001.png"},
        {"query": None, "image": "00002.png"},
        {"query": "b", "image": "00001.png", "negatives": ["pairs.jsonl"]},
        ["a"],
        {"query": "https", "image": "https://example.org/a.png"},
    )
    report = check_pairs(open_records(str(file)), data.parent)
    assert report.good == (0,) and report.pages == (7,)
    kinds = {fault.place.record: fault.kind for fault in report.faults}
    assert kinds == {
        2: "missing-image",
        3: "empty-question",
        4: "malformed",
        5: "missing-image",
        6: "unsupported",
        7: "malformed",
        9: "unreadable-image",
        10: "malformed",
        11: "missing-image",
    }
    with pytest.raises(DataError, match="line 2: missing-image"):
        report.refuse_faults()


def test_rows_of_vidore_are_pairs_and_those_without_a_query_are_pages(data: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    image = (data.parent / "00000.png").read_bytes()
    rows = {
        "query": ["What is the total?", None],
        "image": [{"bytes": image, "path": None}, {"bytes": image, "path": "a.png"}],
        "image_filename": ["a.png", "b.png"],
        "answer": ["3", None],
        "source": ["x", "y"],
    }
    features = datasets.Features(
        {
            "query": datasets.Value("string"),
            "image": datasets.Image(),
            "image_filename": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "source": datasets.Value("string"),
        }
    )
    file = tmp_path / "test.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    report = check_pairs(open_records(str(file)), None)
    assert report.faults == () and report.good == (0,) and report.pages == (1,)


def test_settings_of_retrieval_are_refused_elsewhere(base: TinyModel, data: Path):
    given = {"model": str(base.path), "data": str(data), "out": "out"}
    with pytest.raises(ParameterError, match="temperature is for the stage retrieve"):
        TrainConfig.of("lora", {**given, "temperature": 0.1})
    with pytest.raises(ParameterError, match="share_images"):
        TrainConfig.of("retrieve", {**given, "share_images": True})
    with pytest.raises(ParameterError, match="temperature"):
        TrainConfig.of("retrieve", {**given, "temperature": 0})
    assert TrainConfig.of("retrieve", given).per_device_batch_size == 32


def test_a_loss_that_is_not_finite_ends_the_run(base: TinyModel, data: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="not finite"):
        run(base, data, tmp_path / "out", temperature=1e-45)
