"""Every family of the catalog can be trained, on the pixels and tokens that it answers with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llavakit.images import open_picture
from llavakit.model.llava import Llava
from llavakit.model.loader import load_reader
from llavakit.training.data import conversation_of
from llavakit.training.examples import Collator, Encoder
from llavakit.training.run import train
from tests.families import FAMILIES, tiny_family
from tests.training.lessons import settings, write_lessons

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
MODES = {"llama": "v1", "yi": "chatml_direct", "llama3": "llava_llama_3", "qwen": "qwen_1_5"}


@pytest.mark.parametrize("key", FAMILIES)
def test_a_batch_has_the_features_that_the_engine_sees(key: str, tmp_path: Path):
    """Losses of a batch, against logits of each row alone with the engine's own features."""
    family = tiny_family(tmp_path / "model", key)
    write_lessons(tmp_path)
    reader = load_reader(family.path, conv_mode=MODES[FAMILIES[key].vocabulary])
    encode = Encoder(reader, 2048)
    two = ["red.png", "green.png"]
    asked = [
        {"image": "blue.png", "conversations": [("human", "<image>\nWhich?"), ("gpt", "blue")]},
        {"image": two, "conversations": [("human", "<image> <image>?"), ("gpt", "both")]},
        {"conversations": [("human", "Hello"), ("gpt", "Good day.")]},
    ]
    records = [
        {
            **one,
            "conversations": [{"from": who, "value": said} for who, said in one["conversations"]],
        }  # type: ignore[misc]
        for one in asked
    ]
    examples = [encode(conversation_of(one, tmp_path)) for one in records]
    model = reader.build({"dtype": torch.float32}).eval()
    with torch.inference_mode():
        batch = Collator(0, reader.config.model_type)(examples)
        seen = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        engine = Llava(model)
        for row, example in enumerate(examples):
            features = engine.encode_images(example.pixels) if example.pixels else []
            ids = torch.tensor(example.ids)
            inputs = engine.embed(ids).clone()
            if features:
                inputs[ids == reader.special.image] = torch.cat(features)
            alone = model.lm_head(
                model.model.language_model(inputs_embeds=inputs[None]).last_hidden_state[0]
            )
            torch.testing.assert_close(seen[row, : len(ids)], alone, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("key", ["1.6-mistral", "onevision"])
def test_models_with_tiles_are_trained(key: str, tmp_path: Path):
    found = next(one for one in FAMILIES if one.startswith(key) or key in one)
    family = tiny_family(tmp_path / "model", found)
    data = write_lessons(tmp_path)
    mode = MODES[FAMILIES[found].vocabulary]
    done = train(settings("instruct", family.path, data, tmp_path / "out", conv_mode=mode,
                          learning_rate=0.01))  # fmt: skip
    assert sum(done.losses[-2:]) < 0.9 * sum(done.losses[:2])
    size = open_picture(tmp_path / "red.png").size
    out = load_reader(done.out)
    assert out.layout.tokens(size) == load_reader(family.path).layout.tokens(size)
