"""Checkpoints in the original's format, made for tests, and what they must answer.

The reference puts LLaVA together from its parts by hand (CLIP, projector, Llama), so that it
shares nothing with the code that is tested but the image processor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

PARITY = Path(__file__).parent / "data" / "parity"
FIXTURES = PARITY / "fixtures"
CLIP = FIXTURES / "clip-tiny"

State = dict[str, Tensor]

SETTINGS: dict[str, Any] = {
    "model_type": "llava_llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "mm_vision_tower": str(CLIP),
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
}


def random_state(settings: Mapping[str, Any], rows: int = 1000, seed: int = 0) -> State:
    """Weights under the original's names."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    hidden, middle = settings["hidden_size"], settings["intermediate_size"]
    keys = hidden // settings["num_attention_heads"] * settings["num_key_value_heads"]
    state = {
        "model.embed_tokens.weight": drawn(rows, hidden),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": drawn(rows, hidden),
    }
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (middle, hidden),
            "mlp.up_proj": (middle, hidden),
            "mlp.down_proj": (hidden, middle),
        }.items():
            state[f"{prefix}{name}.weight"] = drawn(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = torch.ones(hidden)
    return state | random_projector(settings, seed)


def random_projector(settings: Mapping[str, Any], seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed + 1000)
    hidden, seen = settings["hidden_size"], settings["mm_hidden_size"]
    kind = settings.get("mm_projector_type", "linear")
    if kind == "identity":
        return {}
    depth = 1 if kind == "linear" else int(kind[3])
    state: State = {}
    for number in range(depth):
        name = "model.mm_projector" + ("" if kind == "linear" else f".{2 * number}")
        width = seen if number == 0 else hidden
        state[f"{name}.weight"] = torch.randn(hidden, width, generator=generator) * 0.2
        state[f"{name}.bias"] = torch.randn(hidden, generator=generator) * 0.2
    return state


def write(
    path: Path,
    settings: Mapping[str, Any],
    state: State | None,
    *,
    tokenizer: Path | None = FIXTURES / "tok-legacy-True",
    shards: int = 1,
    pickled: bool = False,
) -> Path:
    """A checkpoint directory; without weights if ``state`` is None."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            shutil.copy(file, path)
    if state is not None:
        _write_weights(path, state, shards, pickled)
    return path


def _write_weights(path: Path, state: State, shards: int, pickled: bool) -> None:
    save: Callable[[State, Path], None] = torch.save if pickled else save_file  # type: ignore[assignment]
    stem, end = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    if shards == 1:
        save(state, path / f"{stem}.{end}")
        return
    weight_map = {}
    names = sorted(state)
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{end}"
        mine = {name: state[name] for name in names[number::shards]}
        save(mine, path / file)
        weight_map |= dict.fromkeys(mine, file)
    (path / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@dataclass
class Reference:
    """What the parts of a checkpoint answer when they are put together by hand."""

    settings: Mapping[str, Any]
    state: State
    text_class: str = "Llama"

    @cached_property
    def language(self) -> Any:
        import transformers

        known = {
            key: value
            for key, value in self.settings.items()
            if not key.startswith(("mm_", "image_", "model_type"))
        }
        known["vocab_size"] = len(self.state["model.embed_tokens.weight"])
        config = getattr(transformers, f"{self.text_class}Config")(**known)
        model = getattr(transformers, f"{self.text_class}ForCausalLM")(config)
        mine = {k: v for k, v in self.state.items() if "mm_" not in k and "newline" not in k}
        model.load_state_dict(mine, strict=True)
        return model.eval()

    def features(self, pixels: Tensor) -> Tensor:
        """[views, 3, side, side] -> [views, tokens, hidden]"""
        from transformers import CLIPVisionModel

        tower = CLIPVisionModel.from_pretrained(CLIP, dtype=torch.float32).eval()
        layer = self.settings.get("mm_vision_select_layer", -2)
        seen = tower(pixels, output_hidden_states=True).hidden_states[layer]
        if self.settings.get("mm_vision_select_feature", "patch") == "patch":
            seen = seen[:, 1:]
        layers = sorted({k.rpartition(".")[0] for k in self.state if "mm_projector" in k})
        for number, name in enumerate(layers):
            seen = F.gelu(seen) if number else seen
            seen = F.linear(seen, self.state[f"{name}.weight"], self.state[f"{name}.bias"])
        return seen

    @torch.inference_mode()
    def greedy(
        self, ids: list[int], image_id: int, pictures: list[Tensor], count: int
    ) -> list[int]:
        """Tokens of the answer; ``pictures`` are features [T, hidden] in their order."""
        left = list(pictures)
        embed = self.language.get_input_embeddings()
        rows = [left.pop(0) if i == image_id else embed(torch.tensor([i])) for i in ids]
        inputs, answer = torch.cat(rows)[None], []
        for _ in range(count):
            logits = self.language(inputs_embeds=inputs).logits[0, -1]
            answer.append(int(logits.argmax()))
            if answer[-1] == 2:
                break
            inputs = torch.cat([inputs, embed(torch.tensor([[answer[-1]]]))], dim=1)
        return answer
