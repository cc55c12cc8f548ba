"""The files of a comparison: checkpoint, its copies for the peers, images and requests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from benchmarks.peers.checkpoint import SHAPES, build, save_images, words_of
from benchmarks.peers.engines import Engine
from benchmarks.peers.layouts import write_gguf, write_vllm
from benchmarks.peers.work import IMAGES, make_work

GGUF = ("f32", "q8_0", "q4_0")


def prepare(folder: Path, engines: Collection[Engine]) -> Path:
    """Make what the engines load and are asked, unless ``folder`` has all of it already.

    The name of the folder is that of the model's shape. Files are the same each time.
    """
    asked = {engine.asker: engine for engine in engines}
    needed = [folder / "work.json"]
    if "vllm" in asked:
        needed.append(folder / "vllm" / "config.json")
    if "llama_cpp" in asked:
        needed += [folder / f"{kind}.gguf" for kind in ("vision", *GGUF)]
    if all(file.exists() for file in needed):
        return folder

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape = SHAPES[folder.name]
    model, tokenizer = build(folder / "checkpoint", shape)
    if "vllm" in asked:
        write_vllm(folder / "checkpoint", folder / "vllm")
    if "llama_cpp" in asked:
        write_gguf(model, tokenizer, folder / "f32.gguf", folder / "vision.gguf")
        for kind in GGUF[1:]:
            _quantise(asked["llama_cpp"], folder, kind)
    save_images(folder / "images", IMAGES, shape.image_size)
    # Written last: a folder that has it is complete.
    scale = 0.2 if folder.name == "tiny" else 1.0
    make_work(words_of(shape), scale=scale).save(folder / "work.json")
    return folder


def model_file(folder: Path, engine: Engine, precision: str) -> Path:
    """What an engine loads, in a folder that :func:`prepare` made."""
    if engine.asker == "llama_cpp":
        return folder / f"{precision}.gguf"
    return folder / ("vllm" if engine.asker == "vllm" else "checkpoint")


def _quantise(engine: Engine, folder: Path, kind: str) -> None:
    program = Path(engine.program)
    source, target = folder / "f32.gguf", folder / f"{kind}.gguf"
    subprocess.run(
        [program.with_name("llama-quantize"), source, target, kind.upper(), "1"],
        check=True,
        capture_output=True,
        env=os.environ | {"LD_LIBRARY_PATH": str(program.parent)},
    )
