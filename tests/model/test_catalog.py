import json
import math
import struct
import subprocess
import sys

import pytest

from llavakit.model import catalog

GB = 1e9


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", "demo"),
        ("llava-1.5-7b", "llava-1.5-7b"),
        ("liuhaotian/llava-v1.5-7b", "llava-1.5-7b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("llava-v1.5-7b", "llava-1.5-7b"),
        ("LLaVA-1.5-7B", "llava-1.5-7b"),
        (" llava-1.5-7b ", "llava-1.5-7b"),
        ("llava:34b", "llava-v1.6-34b"),
        ("lmms-lab/llava-onevision-qwen2-7b-ov", "llava-onevision-qwen2-7b"),
        ("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava-next-video-7b"),
        ("mistral-community/pixtral-12b", "pixtral-12b"),
        ("ibm-granite/granite-vision-3.3-2b", "granite-vision-3.3-2b"),
    ],
)
def test_a_model_is_known_by_each_of_its_names(name, expected):
    assert catalog.resolve(name).name == expected


@pytest.mark.parametrize("name", ["", "gpt-4", "someone/llava-v1.5-7b", "./llava-1.5-7b"])
def test_other_names_are_unknown(name):
    assert catalog.resolve(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dmeo", "demo"),
        ("llava-1.5-7", "llava-1.5-7b"),
        ("llava-v1.6-mistral7b", "llava-v1.6-mistral-7b"),
        ("liuhaotian/llava-v1.5-13", "llava-1.5-13b"),
        ("llava-onevision-7b", "llava-onevision-qwen2-7b"),
    ],
)
def test_a_misspelt_name_has_its_model_among_the_nearest(name, expected):
    assert expected in catalog.nearest(name)


def test_nothing_is_near_to_nonsense():
    assert catalog.nearest("zzzzzzzz") == []


def test_names_are_unique():
    names = [
        name for entry in catalog.CATALOG for name in {one.lower() for one in catalog._names(entry)}
    ]
    assert len(names) == len(set(names))


def test_memory_is_weights_and_one_conversation():
    entry = catalog.resolve("llava-1.5-7b")
    conversation = 4096 * 2 * 32 * 32 * 128 * 2
    assert entry.memory(16) == entry.parameters * 2 + conversation
    assert entry.memory(16) / GB == pytest.approx(16.3, abs=0.1)
    assert entry.memory(8) / GB == pytest.approx(9.5, abs=0.1)
    assert entry.memory(4) / GB == pytest.approx(6.2, abs=0.1)


@pytest.mark.parametrize("entry", catalog.CATALOG, ids=lambda entry: entry.name)
def test_fewer_bits_take_less(entry):
    assert entry.memory(4) < entry.memory(8) < entry.memory(16)
    assert entry.embeddings < entry.parameters


def test_sizes_agree_with_the_names():
    for entry in catalog.CATALOG:
        size = entry.name.rpartition("-")[2].removesuffix("b")
        if entry.name == "demo":
            continue
        # The vision tower of 0.4 billion counts for much in the smallest ones.
        assert float(size) - 0.1 < entry.parameters / 1e9 < float(size) * 1.03 + 1.2


def test_the_demo_entry_agrees_with_its_checkpoint(demo_dir):
    if not (demo_dir / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not built")
    entry = catalog.resolve("demo")
    text = json.loads((demo_dir / "config.json").read_text())["text_config"]
    assert entry.context_length == text["max_position_embeddings"]
    assert entry.layers == text["num_hidden_layers"]
    with (demo_dir / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    assert entry.parameters == sum(math.prod(one["shape"]) for one in header.values())


def test_the_catalog_imports_no_torch():
    code = "import sys, llavakit.model.catalog; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_models_that_take_videos_are_known_before_they_are_opened(tmp_path):
    assert catalog.takes_videos("llava-onevision-qwen2-7b")
    assert catalog.takes_videos("llava-hf/LLaVA-NeXT-Video-7B-hf")
    assert not catalog.takes_videos("llava-1.5-7b")
    assert not catalog.takes_videos("nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llava_next_video"}')
    assert catalog.takes_videos(str(tmp_path))


def test_granite_has_the_grids_of_its_configuration():
    grids = catalog.resolve("granite-vision-3.3-2b").layout.grids
    assert len(grids) == 27 and grids[9] == (384, 3840) and grids[-1] == (3840, 384)
