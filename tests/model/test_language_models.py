"""A language model is computed as transformers does, or refused by its name while it is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llavakit
from llavakit import SamplingParams
from llavakit.errors import CheckpointError
from llavakit.model import language_models, self_check
from llavakit.model.loader import load_reader
from tests.engine.oracle import submitted
from tests.families import FAMILIES, RELATIVES, VICUNA, Family, TinyFamily, tiny_checkpoint
from tests.model.test_families import CONVERSATIONS, messages

ASKED = ("words", "an image", "three pictures", "a second turn")

SHOWN_TWICE = ("granite-in-llava", "bakllava", "next-video")

LIKE_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8, "sliding_window": 1024},
    "phi": {},
    "stablelm": {"qk_layernorm": True, "use_parallel_residual": True},
    "cohere": {"logit_scale": 0.0625},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
}
"""Language models without a row in the table that pass the comparison."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": (
        {"head_dim": 8, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 8},
        "softcap",
    ),
    "gpt_oss": ({"num_local_experts": 4, "head_dim": 8}, "s_aux"),
    "gptj": ({"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}, "classes do not take it"),
    "diffllama": ({}, "attend"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "attend"),
    "falcon_h1": (
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "head_dim": 8},
        "spread",
    ),
}
"""Others, each refused for another reason."""


def tiny(path: Path, kind: str, text: dict[str, Any]) -> TinyFamily:
    family = Family((), "llava", "clip", {"model_type": kind, **text}, "llama", VICUNA)
    return tiny_checkpoint(path, family)


def check_answers(made: TinyFamily, **options: Any) -> llavakit.Backend:
    """Greedy answers to all kinds of conversations, and a log probability, as by transformers."""
    backend = llavakit.load(made.path, prefill_chunk=24, **options)
    running = [
        (CONVERSATIONS[key], *submitted(backend, messages(CONVERSATIONS[key]), 12)) for key in ASKED
    ]
    for said, stream, sequence in running:
        list(stream)
        assert sequence.tokens[sequence.prompt_length :] == made.generate(said, 12)
    said = messages(CONVERSATIONS["words"])
    answer = backend.generate(said, SamplingParams(temperature=0, max_tokens=1, logprobs=0))
    prompt = made.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    with torch.inference_mode():
        scores = made.model(**made.processor(text=prompt, return_tensors="pt")).logits[0, -1]
    scores = scores.clone()
    scores[made.forbidden] = float("-inf")
    expected = torch.log_softmax(scores.float(), -1).max().item()
    assert answer.logprobs is not None
    assert answer.logprobs[0].logprob == pytest.approx(expected, abs=1e-3)
    return backend


@pytest.mark.parametrize(
    "key",
    [
        # What the others show as well.
        pytest.param(key, marks=pytest.mark.slow if key in SHOWN_TWICE else ())
        for key in RELATIVES
    ],
)
def test_relatives_of_llava_answer_as_transformers_does(key: str, tmp_path: Path):
    backend = check_answers(tiny_checkpoint(tmp_path / "m", RELATIVES[key]))
    try:
        said = messages(CONVERSATIONS["a picture in each turn"])
        answer = backend.generate(said, SamplingParams(max_tokens=1, temperature=0))
        assert backend.count_tokens(said) == answer.usage.prompt_tokens
        check_streams(backend)
    finally:
        backend.close()


def check_streams(backend: llavakit.Backend) -> None:
    """A stream, and several answers at once, are what one answer is."""
    said = messages(CONVERSATIONS["three pictures"])
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=1)
    whole = backend.generate(said, params)
    chunks = list(backend.stream(said, params))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    streamed = [one.logprob for chunk in chunks for one in chunk.logprobs]
    assert streamed == pytest.approx([one.logprob for one in whole.logprobs], abs=1e-3)
    assert [one.text for one in backend.choices(said, params, n=3)] == [whole.text] * 3


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("key", ["granite-vision", "vip-llava"])
def test_quantised_relatives_stream_and_batch(key: str, bits: str, tmp_path: Path):
    made = tiny_checkpoint(tmp_path / "m", RELATIVES[key])
    backend = llavakit.load(made.path, device="cpu", quantization=bits)
    try:
        check_streams(backend)
    finally:
        backend.close()


def test_the_table_holds_what_is_proven_here():
    rows = language_models.LAYER_BY_LAYER
    assert {one.text.get("model_type", "llama") for one in RELATIVES.values()} | {"qwen2"} == rows


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("phi", "gemma3_text") else pytest.mark.slow)
        for kind in LIKE_TRANSFORMERS
    ],
)
def test_other_language_models_answer_as_transformers_where_the_comparison_allows_it(
    kind: str, tmp_path: Path
):
    assert kind not in language_models.LAYER_BY_LAYER
    check_answers(tiny(tmp_path / "m", kind, LIKE_TRANSFORMERS[kind])).close()


@pytest.mark.parametrize("key", ["vip-llava", "fastvlm"])
def test_models_of_one_view_are_compared_with_an_image_too(key: str, tmp_path: Path):
    family = FAMILIES.get(key) or RELATIVES[key]
    other = replace(family, text={**family.text, "model_type": "olmo2"})
    check_answers(tiny_checkpoint(tmp_path / "m", other)).close()


@pytest.mark.parametrize("kind", list(REFUSED))
def test_a_language_model_that_would_answer_otherwise_is_refused_before_its_weights_are_read(
    kind: str, tmp_path: Path
):
    text, reason = REFUSED[kind]
    made = tiny(tmp_path / "m", kind, text)
    (made.path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=kind) as refused:
        load_reader(made.path)
    assert reason in str(refused.value) and "base_url" in str(refused.value)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("proven", [True, False])
def test_packed_weights_are_compared_too(kind: str, proven: bool, tmp_path: Path):
    name, text = ("granite", RELATIVES["granite-vision"].text) if proven else ("olmo2", {})
    made = tiny(tmp_path / "m", name, text)
    backend = llavakit.load(made.path, device="cpu", quantization=kind)
    try:
        assert backend.generate("Hi", SamplingParams(temperature=0, max_tokens=4)).text is not None
    finally:
        backend.close()


def test_weights_that_answer_otherwise_than_the_miniature_are_refused_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = tiny(tmp_path / "m", "olmo2", {})
    reader = load_reader(made.path)
    from llavakit.model.loader import load_weights

    def otherwise(options: dict[str, Any]) -> Any:
        model = reader.build(options)
        inner = model.model.language_model.layers[1]
        run = inner.forward

        def forward(hidden: Any, *rest: Any, **more: Any) -> Any:
            # As if this layer looked at how many tokens a pass has.
            return run(hidden, *rest, **more).roll(int(hidden.shape[1] < 4), -1)

        inner.forward = forward
        return model

    with pytest.raises(CheckpointError, match="off those of transformers"):
        load_weights(replace(reader, build=otherwise), device="cpu", dtype="float32")
    assert load_weights(reader, device="cpu", dtype="float32").by_layers is not None


@pytest.mark.parametrize(
    ("kind", "large"),
    [
        ("cohere", {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}),
        ("gemma3_text", {"hidden_size": 2560, "num_attention_heads": 8, "num_hidden_layers": 34}),
        ("qwen3_moe", {"num_experts": 128, "num_hidden_layers": 48}),
    ],
)
def test_large_models_are_tried_in_a_miniature_with_all_kinds_of_their_layers(kind, large):
    from transformers import AutoConfig

    text = AutoConfig.for_model(kind, vocab_size=256_000, **large)
    config = next(self_check.miniatures(text))
    assert config.num_hidden_layers <= 8 and config.hidden_size <= 1024
    if getattr(text, "layer_types", None):
        assert {*config.layer_types} == {*text.layer_types}
    self_check.check_language_model(Path("x"), text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ({"max_position_embeddings": 4096, "sliding_window": 512}, 512),
        (
            {"max_position_embeddings": 4096, "sliding_window": 512, "use_sliding_window": False},
            4096,
        ),
        ({"max_position_embeddings": 4096, "attention_chunk_size": 256}, 256),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096},
            },
            4096,
        ),
    ],
)
def test_a_context_ends_where_attention_would_begin_to_differ(text: dict[str, Any], limit: int):
    from types import SimpleNamespace

    assert language_models.context_limit(SimpleNamespace(**text)) == limit
