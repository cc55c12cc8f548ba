"""Language models that people put behind LLaVA: each answers as in transformers, or is refused.

A wide net, run with the slow tests: for every one of them a tiny random checkpoint is built, and
either loading it raises a sentence, or its greedy answers are those of ``transformers.generate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import llavakit
from llavakit import SamplingParams
from llavakit.errors import CheckpointError, ContextLengthError
from tests.engine.oracle import submitted
from tests.families import VICUNA, Family, TinyFamily, tiny_checkpoint
from tests.model.test_families import CONVERSATIONS, messages

ASKED = ("words", "an image", "three pictures", "a second turn")
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
SMALL = {"moe_intermediate_size": 16, "head_dim": 8}
SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # Settings of language models that have a row in the table.
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with gelu": ("llama", {"hidden_act": "gelu"}),
    "llama with wide heads": ("llama", {"head_dim": 16}),
    "llama with one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, linear rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, dynamic rope": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama, yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3}},
    ),
    "llama 3.1": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral with a window": ("mistral", {"sliding_window": 64}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, **SLIDING}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "head_dim": 8}),
    "phi3, part of a head turned": ("phi3", {"partial_rotary_factor": 0.5}),
    "gemma with wide heads": ("gemma", {"head_dim": 16}),
    # Others, each with what is its own.
    **{
        kind: (kind, {})
        for kind in (
            *("afmoe", "apertus", "arcee", "aria_text", "bitnet", "codegen", "cwm", "doge"),
            *("ernie4_5", "exaone4", "falcon", "glm", "glm4", "gpt2", "gpt_neox", "helium"),
            *("mpt", "nanochat", "nemotron", "olmo", "olmo3"),
            *("opt", "persimmon", "phi", "seed_oss", "smollm3", "stablelm", "starcoder2"),
            *("vaultgemma", "xglm", "bloom", "gpt_bigcode", "biogpt"),
        )
    },
    **{
        kind: (kind, {**MOE, **SMALL})
        for kind in (
            *("ernie4_5_moe", "flex_olmo", "granitemoe", "granitemoeshared", "hunyuan_v1_moe"),
            *("jetmoe", "llama4_text", "mixtral", "minimax", "olmoe", "phimoe", "qwen2_moe"),
            "qwen3_moe",
        )
    },
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 8}),
    "ministral": ("ministral", {"head_dim": 8}),
    "cohere, scaled": ("cohere", {"logit_scale": 0.0625, "use_qk_norm": True}),
    "cohere2": ("cohere2", {"head_dim": 8, **SLIDING}),
    "smollm3, some layers without positions": ("smollm3", {"no_rope_layers": [1, 0]}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "gemma2 without caps": (
        "gemma2",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma2 with a cap of logits": (
        "gemma2",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma2 with caps": (
        "gemma2",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, **SLIDING}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
    "lfm2": ("lfm2", {"layer_types": ["full_attention", "full_attention"]}),
    "deepseek_v3": (
        "deepseek_v3",
        {"n_routed_experts": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4},
    ),
    "recurrent_gemma": ("recurrent_gemma", {"head_dim": 8}),
}


def unbuilt(error: Exception) -> bool:
    """Whether transformers' own LLaVA classes do not take such a language model."""
    return "embed_tokens" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_a_language_model_answers_as_in_transformers_or_is_refused_while_loading(
    name: str, tmp_path: Path
):
    kind, text = MODELS[name]
    family = Family((), "llava", "clip", {"model_type": kind, **text}, "llama", VICUNA)
    try:
        made = tiny_checkpoint(tmp_path / "m", family)
        expected = answers(made)
    except CheckpointError as refused:
        assert kind in str(refused) and str(refused).endswith(".")
        return
    except AttributeError as error:
        assert unbuilt(error)
        return
    backend = llavakit.load(made.path, prefill_chunk=24)
    try:
        for key, tokens in expected.items():
            stream, sequence = submitted(backend, messages(CONVERSATIONS[key]), 12)
            list(stream)
            found = sequence.tokens[sequence.prompt_length :]
            cut = len(sequence.tokens) >= backend.info.context_length  # a documented limit
            assert found == (tokens[: len(found)] if cut else tokens), key
        check_log_probability(made, backend)
    except ContextLengthError as error:  # a window is a documented limit
        assert "sliding_window" in text, error
    finally:
        backend.close()


def answers(made: TinyFamily) -> dict[str, list[int]]:
    return {key: made.generate(CONVERSATIONS[key], 12) for key in ASKED}


def check_log_probability(made: TinyFamily, backend: llavakit.Backend) -> None:
    """Greedy tokens may agree by chance; numbers do not."""
    prompt = made.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    with torch.inference_mode():
        scores = made.model(**made.processor(text=prompt, return_tensors="pt")).logits[0, -1]
    scores = scores.float().clone()
    scores[made.forbidden] = float("-inf")
    expected = torch.log_softmax(scores, -1).max().item()
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    answer = backend.generate(messages(CONVERSATIONS["words"]), params)
    assert answer.logprobs[0].logprob == pytest.approx(expected, abs=2e-3)
