"""The same weights in the files that vLLM and llama.cpp read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

MEAN = [0.48145466, 0.4578275, 0.40821073]
DEVIATION = [0.26862954, 0.26130258, 0.27577711]


def write_vllm(source: Path, target: Path) -> None:
    """Copy a checkpoint, with the tower's tensors under the names that vLLM looks for."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors = {_with_vision_model(name): x for name, x in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


def _with_vision_model(name: str) -> str:
    if "vision_tower.vision_model." in name:
        return name
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def write_gguf(model: Any, tokenizer: Any, text: Path, vision: Path) -> None:
    """Write the two files of llama.cpp, in float32: text model, and tower with projector.

    llama.cpp's own converter is no part of a package, so the tensors are named here. Needs the
    package ``gguf``.
    """
    tensors = {name: x.detach().float().numpy() for name, x in model.state_dict().items()}
    _write_text(model.config.text_config, tokenizer, tensors, text)
    _write_vision(model.config.vision_config, tensors, vision)


def _write_text(config: Any, tokenizer: Any, tensors: dict[str, np.ndarray], file: Path) -> None:
    import gguf

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer)

    inner = "model.language_model."
    writer.add_tensor("token_embd.weight", tensors[f"{inner}embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors[f"{inner}norm.weight"])
    writer.add_tensor("output.weight", tensors["lm_head.weight"])
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    rotated = {"attn_q": heads, "attn_k": kv_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            weight = tensors[f"{inner}layers.{layer}.{ours}.weight"]
            if theirs in rotated:
                weight = _interleave(weight, rotated[theirs])
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    _write(writer)


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    import gguf

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    kinds = gguf.TokenType
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [kinds.CONTROL if number in special else kinds.NORMAL for _, number in vocabulary]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(True)


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder a projection's rows: llama.cpp rotates neighbours, transformers rotates halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _write_vision(config: Any, tensors: dict[str, np.ndarray], file: Path) -> None:
    import gguf

    # Features are those before the last layer, which is therefore left out.
    layers = config.num_hidden_layers - 1
    writer = gguf.GGUFWriter(str(file), "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_bool("clip.use_gelu", False)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    numbers = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "projection_dim": config.projection_dim,
        "attention.head_count": config.num_attention_heads,
        "block_count": layers,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config.layer_norm_eps)
    writer.add_array("clip.vision.feature_layer", [layers])
    writer.add_array("clip.vision.image_mean", MEAN)
    writer.add_array("clip.vision.image_std", DEVIATION)

    inner = "model.vision_tower."
    if f"{inner}embeddings.class_embedding" not in tensors:
        inner += "vision_model."
    embeddings = f"{inner}embeddings."
    writer.add_tensor("v.class_embd", tensors[f"{embeddings}class_embedding"])
    writer.add_tensor("v.patch_embd.weight", tensors[f"{embeddings}patch_embedding.weight"])
    writer.add_tensor("v.position_embd.weight", tensors[f"{embeddings}position_embedding.weight"])
    # Linear layers and norms, with a bias each: the name in llama.cpp, the name here.
    pairs = [("v.pre_ln", f"{inner}pre_layrnorm")]
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_out": "self_attn.out_proj",
        "ln1": "layer_norm1",
        "ln2": "layer_norm2",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
    }
    for layer in range(layers):
        encoder = f"{inner}encoder.layers.{layer}."
        pairs += [(f"v.blk.{layer}.{theirs}", encoder + ours) for theirs, ours in names.items()]
    projector = "model.multi_modal_projector."
    pairs += [("mm.0", f"{projector}linear_1"), ("mm.2", f"{projector}linear_2")]
    for theirs, ours in pairs:
        for part in ("weight", "bias"):
            writer.add_tensor(f"{theirs}.{part}", tensors[f"{ours}.{part}"])
    _write(writer)


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
