"""``python -m benchmarks.peers.seven_billion FOLDER``: a 7B in 4 bits, beside llama.cpp's q4_0.

Random weights in LLaVA-1.5-7B's shape (32 layers of 4096; 18,000 words). They are tiles of one
stretch of noise, which no engine can notice, so that the files are written in minutes; the answers
of the two say nothing about each other. One question without an image, for every token of a prompt
costs what a token of the answer does times the threads' arithmetic. Needs 25 GB on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.peers import layouts
from benchmarks.peers.askers.llama_cpp import LlamaServer
from benchmarks.peers.checkpoint import Shape, _save_processor, _shape, _tokenizer, words_of
from benchmarks.peers.child import Job, peak_memory
from benchmarks.peers.engines import AbsentError, find

SHAPE = _shape((1024, 4096, 24, 16), (4096, 11008, 32, 32), vocabulary=18000)
NOISE = 1 << 24
SHARD = 1 << 30
TOKENS = 24


def main() -> None:
    """Make the files, ask both engines in turns, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.seven_billion")
    parser.add_argument("folder", type=Path, help="the files are made here, if they are not there")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_ask_llavakit(options.folder, int(options.child))))
        return
    engines, skipped = find(["llavakit", "llama.cpp"])
    rival = next((one for one in engines if one.asker == "llama_cpp"), None)
    print(skipped or "", flush=True)
    checkpoint, packed = options.folder / "checkpoint", options.folder / "packed"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, SHAPE)
    figures: dict[str, Any] = {one.name: {"version": one.version} for one in engines}
    figures["llavakit"]["from 16 bits"] = _child(checkpoint, options.threads[-1])
    print(figures, flush=True)
    if not packed.exists():
        export = ("-m", "llavakit.cli", "export", checkpoint, packed, "--quantize", "4bit")
        subprocess.run([sys.executable, *map(str, export)], check=True)
    if rival is not None and not (options.folder / "q4_0.gguf").exists():
        write_q4_0(options.folder / "q4_0.gguf", SHAPE)
    for threads in options.threads:
        found: dict[str, list[dict[str, float]]] = {"llavakit": [], "llama.cpp": []}
        for _ in range(options.rounds):
            found["llavakit"].append(_child(packed, threads))
            if rival is not None:
                found["llama.cpp"].append(_ask_rival(rival, options.folder, threads))
        for name, results in found.items():
            if results:
                merged = {key: round(median(one[key] for one in results), 2) for key in results[0]}
                figures[name][f"{threads} threads"] = merged
                print(name, threads, merged, flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def write_checkpoint(path: Path, shape: Shape) -> None:
    """Write random weights in bfloat16, a shard at a time."""
    from safetensors.torch import save_file
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    path.mkdir(parents=True)
    text = {"model_type": "llama", "vocab_size": shape.vocabulary, **shape.text}
    places = {"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
        | shape.vision,
        text_config={**text, **places, "pad_token_id": 0},
        image_token_index=3,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    index: dict[str, str] = {}
    for number, shard in enumerate(_shards(model.state_dict(), noise)):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    record = {"metadata": {}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(record))
    _save_processor(path, _tokenizer(shape), shape.image_size)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(path)


def _shards(tensors: dict[str, Tensor], noise: Tensor) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for place, (name, like) in enumerate(tensors.items()):
        if "norm" in name:
            made = (torch.ones if name.endswith("weight") else torch.zeros)(like.shape)
            shard[name] = made.bfloat16()
        else:
            tiles = noise.roll(997 * place).repeat(-(-like.numel() // NOISE))
            shard[name] = tiles[: like.numel()].view(like.shape).clone()
        if sum(one.nbytes for one in shard.values()) > SHARD:
            yield shard
            shard = {}
    yield shard


def write_q4_0(file: Path, shape: Shape) -> None:
    """Write a text model of the same shape: layers in q4_0, head in q8_0, as llavakit's 4 bit."""
    import gguf
    import numpy as np
    from transformers import LlamaConfig

    kinds = gguf.GGMLQuantizationType
    noise = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32) * 0.02
    blocks = {kind: gguf.quants.quantize(noise, kind) for kind in (kinds.Q4_0, kinds.Q8_0)}
    text = shape.text
    size, inner = text["hidden_size"], text["intermediate_size"]
    shapes = {"q_proj": (size, size), "k_proj": (size, size), "v_proj": (size, size)}
    shapes |= {"o_proj": (size, size), "gate_proj": (inner, size), "up_proj": (inner, size)}
    shapes |= {"down_proj": (size, inner)}
    inside = "model.language_model."
    tensors: dict[str, Any] = {f"{inside}norm.weight": np.ones(size, np.float32)}
    for name in ("lm_head", f"{inside}embed_tokens"):
        tensors[f"{name}.weight"] = np.empty((shape.vocabulary, size), np.float16)
    for layer in range(text["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{inside}layers.{layer}.{norm}.weight"] = np.ones(size, np.float32)
        for name, matrix in shapes.items():
            block = "self_attn" if name[0] in "qkvo" else "mlp"
            tensors[f"{inside}layers.{layer}.{block}.{name}.weight"] = np.empty(matrix, np.float16)

    class Tiled(gguf.GGUFWriter):  # type: ignore[misc]
        def add_tensor(self, name: str, tensor: Any, **unused: Any) -> None:
            if tensor.ndim == 1:
                super().add_tensor(name, tensor)
                return
            kind = kinds.Q8_0 if name == "output.weight" else kinds.Q4_0
            tile = blocks[kind]
            wanted = tensor.size // len(noise) + 1
            row = tile.size * tensor.shape[1] // len(noise)
            made = np.tile(tile, wanted)[: tensor.shape[0] * row].reshape(-1, row)
            super().add_tensor(name, made, raw_shape=made.shape, raw_dtype=kind)

    config = LlamaConfig(vocab_size=shape.vocabulary, max_position_embeddings=4096, **text)
    with mock.patch.object(gguf, "GGUFWriter", Tiled):
        layouts._write_text(config, _tokenizer(shape), tensors, file)


def _child(checkpoint: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.peers.seven_billion", str(checkpoint)]
    done = subprocess.run(
        [*command, "--child", str(threads)], check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _question() -> str:
    return " ".join(words_of(SHAPE)[100:116])


def _ask_llavakit(checkpoint: Path, threads: int) -> dict[str, float]:
    import llavakit
    from llavakit import Message, SamplingParams

    torch.set_num_threads(threads)
    began = time.perf_counter()
    packed = checkpoint.name == "packed"
    backend = llavakit.load(checkpoint, device="cpu", load_in_4bit=not packed)
    params = SamplingParams(temperature=0, max_tokens=TOKENS)
    rate = 0.0
    loaded = 0.0
    for _ in range(2):
        ends = []
        for chunk in backend.stream([Message("user", [_question()])], params):
            ends += [time.perf_counter()] * bool(chunk.text)
            loaded = loaded or ends[0] - began
        rate = max(rate, (len(ends) - 1) / (ends[-1] - ends[0]))
    return {
        "tokens a second": rate,
        "seconds to load and to the first token": loaded,
        "peak MB": peak_memory(),
    }


def _ask_rival(engine: Any, folder: Path, threads: int) -> dict[str, float]:
    from benchmarks.peers.work import Request

    class TextOnly(LlamaServer):
        def _command(self) -> list[str]:
            command = super()._command()
            place = command.index("--mmproj")
            return command[:place] + command[place + 2 :]

        def _prompt(self, request: Request) -> Any:
            return f"USER: {request.questions[0]} ASSISTANT:"

    began = time.perf_counter()
    job = Job("llama_cpp", "q4_0", threads, 1, [], str(folder / "q4_0.gguf"), str(folder))
    server = TextOnly(Job(**{**job.__dict__, "program": engine.program}))
    try:
        replies = []
        for _ in range(2):
            replies += server.ask([Request(0, [_question()], TOKENS)])
            if len(replies) == 1:
                loaded = time.perf_counter() - began - replies[0].last + replies[0].first
        rates = [(one.tokens - 1) / (one.last - one.first) for one in replies]
        return {
            "tokens a second": max(rates),
            "seconds to load and to the first token": loaded,
            "peak MB": server.peak_memory(),
        }
    finally:
        server.close()


if __name__ == "__main__":
    try:
        main()
    except AbsentError as absent:
        sys.exit(str(absent))
