"""The LLaVA models that have a short name: ids, sizes, templates. No torch, no network.

Any other checkpoint works by its directory or hub id; the catalog only saves typing, and says
before a download what a model needs. Parameter counts are those of the transformers classes
built from the published configurations; ids are those of the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from llavakit.errors import CheckpointError
from llavakit.model.families import VIDEO_TYPES
from llavakit.model.json_files import read_json
from llavakit.model.language_models import context_limit
from llavakit.model.layout import AnyresLayout, FixedLayout, ImageLayout, RowsLayout
from llavakit.prompts.templates import OWN

Preprocessing = Literal["pad", "anyres", "squash", "rows", "crop"]
"""``pad`` to a square (1.5); ``anyres``: the whole image and tiles of it (1.6, OneVision);
``squash`` to a square (interleave); ``rows`` of patches in the image's own shape (Pixtral);
``crop`` to the square in the middle (FastVLM in HF format)."""

PLANNED_TOKENS = 4096
"""The conversation that :meth:`CatalogEntry.memory` reckons with."""

# bitsandbytes: nf4 with double quantisation takes 4.127 bits a weight (Dettmers et al. 2023,
# QLoRA, section 3); 8-bit rows carry one float scale each, which is under 0.1%.
_BITS = {16: 16.0, 8: 8.0, 4: 4.127}

# Groups of 32 weights share a scale of 16 bits where layers are packed for a processor.
_PACKED_BITS = {16: 16.0, 8: 8.5, 4: 4.5}

RUNTIME = 1_000_000_000
"""Bytes beside the model: Python with torch, activations, and what CUDA takes for itself."""

Bits = Literal[16, 8, 4]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model.

    Attributes:
        name: the short name for ``llavakit.load``.
        original_id: where its authors published it, in LLaVA's own format; empty where they never
            did.
        hf_id: the same weights in transformers' format.
        parameters: of language model, vision tower and projector together.
        embeddings: those of them in token embeddings and output head, which stay in 16 bit.
        layers: layers of the language model.
        kv_heads: heads of keys and values of each layer.
        head_dim: numbers of a key or value per head.
        context_length: tokens of prompt and answer that it was trained for.
        template: the conversation template.
        preprocessing: what happens to an image before the vision tower.
        layout: counts an image's tokens.
        also: further names, such as Ollama's.
        videos: whether it takes videos, in transformers' format.
    """

    name: str
    original_id: str
    hf_id: str
    parameters: int
    embeddings: int
    layers: int
    kv_heads: int
    head_dim: int
    context_length: int
    template: str
    preprocessing: Preprocessing
    layout: ImageLayout
    also: tuple[str, ...] = ()
    videos: bool = False

    @property
    def of_original(self) -> bool:
        """Whether it is one of the original LLaVA's own models, as its name shows."""
        return self.original_id.startswith("liuhaotian/")

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token, in 16 bit."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def memory(self, bits: Bits = 16) -> int:
        """Bytes that one conversation takes: weights, and keys and values in 16 bit.

        The conversation has :data:`PLANNED_TOKENS` tokens, or the whole context where that is
        shorter: a full context of 32,768 tokens would hide the weights of some models, and
        who needs it can add :attr:`kv_bytes_per_token`. Quantised are all weights but the
        embeddings and the output head. Not counted: activations (some hundred MB, more for
        long prompts) and what CUDA takes for itself (about 0.5 GB).
        """
        return self._memory(_BITS[bits], 2)

    def memory_in_ram(self, bits: Bits = 16) -> int:
        """The same on a processor.

        16 bit is ``dtype="bfloat16"``. Packed layers are computed in fp32 unless a ``dtype`` is
        given, and embeddings, keys and values are then fp32 too.
        """
        return self._memory(_PACKED_BITS[bits], 2 if bits == 16 else 4)

    def fits(self, bits: Bits, gpu: int | None = None, ram: int | None = None) -> bool:
        """Whether one conversation fits into so many free bytes of a GPU, or of main memory."""
        if gpu is not None and self.memory(bits) + RUNTIME <= gpu:
            return True
        return ram is not None and self.memory_in_ram(bits) + RUNTIME <= ram

    def _memory(self, bits: float, width: int) -> int:
        quantised = (self.parameters - self.embeddings) * bits / 8
        tokens = min(self.context_length, PLANNED_TOKENS)
        keys_and_values = tokens * self.kv_bytes_per_token * width // 2
        return round(quantised + self.embeddings * width) + keys_and_values


_CLIP = FixedLayout(576)  # 24 x 24 patches of 14 pixels in 336
_SIGLIP = FixedLayout(729)  # 27 x 27 of 14 in 384
_NEXT = AnyresLayout(
    ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), view=336, side=24
)
_ONEVISION = AnyresLayout(
    tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)),
    view=384,
    side=27,
    most_views=9,
    together=True,
)

# Twenty-seven grids, of up to ten views.
_GRANITE = AnyresLayout(
    tuple(
        (384 * rows, 384 * columns)
        for rows in range(1, 11)
        for columns in range(1, 11)
        if rows * columns <= 10
    ),
    view=384,
    side=27,
)
_FASTVIT = FixedLayout(256)  # 16 x 16 of 64 pixels in 1024
_PIXTRAL = RowsLayout((1024, 1024), 16, row_end=12, image_end=13)

CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry("demo", "", "", 3_300_288, 368_640, 4, 2, 64, 4096, OWN, "pad", FixedLayout(64)),
    CatalogEntry(
        "llava-1.5-7b",
        "liuhaotian/llava-v1.5-7b",
        "llava-hf/llava-1.5-7b-hf",
        *(7_063_427_072, 262_668_288, 32, 32, 128, 4096),
        "llava_v1",
        "pad",
        _CLIP,
    ),
    CatalogEntry(
        "llava-1.5-13b",
        "liuhaotian/llava-v1.5-13b",
        "llava-hf/llava-1.5-13b-hf",
        *(13_351_494_656, 328_335_360, 40, 40, 128, 4096),
        "llava_v1",
        "pad",
        _CLIP,
    ),
    CatalogEntry(
        "llava-v1.6-vicuna-7b",
        "liuhaotian/llava-v1.6-vicuna-7b",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        *(7_063_427_072, 262_668_288, 32, 32, 128, 4096),
        "llava_v1",
        "anyres",
        _NEXT,
    ),
    CatalogEntry(
        "llava-v1.6-vicuna-13b",
        "liuhaotian/llava-v1.6-vicuna-13b",
        "llava-hf/llava-v1.6-vicuna-13b-hf",
        *(13_351_494_656, 328_335_360, 40, 40, 128, 4096),
        "llava_v1",
        "anyres",
        _NEXT,
        also=("llava:13b",),
    ),
    CatalogEntry(
        "llava-v1.6-mistral-7b",
        "liuhaotian/llava-v1.6-mistral-7b",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        *(7_566_747_648, 262_668_288, 32, 8, 128, 32768),
        "mistral_instruct",
        "anyres",
        _NEXT,
        also=("llava", "llava:7b", "llava:latest"),
    ),
    CatalogEntry(
        "llava-v1.6-34b",
        "liuhaotian/llava-v1.6-34b",
        "llava-hf/llava-v1.6-34b-hf",
        *(34_752_083_968, 918_421_504, 60, 8, 128, 4096),
        "chatml_direct",
        "anyres",
        _NEXT,
        also=("llava:34b",),
    ),
    CatalogEntry(
        "llama3-llava-next-8b",
        "lmms-lab/llama3-llava-next-8b",
        "llava-hf/llama3-llava-next-8b-hf",
        *(8_355_276_800, 1_051_197_440, 32, 8, 128, 8192),
        "llava_llama_3",
        "anyres",
        _NEXT,
    ),
    CatalogEntry(
        "llava-next-72b",
        "lmms-lab/llava-next-72b",
        "llava-hf/llava-next-72b-hf",
        *(72_667_998_208, 2_492_465_152, 80, 64, 128, 32768),
        "qwen_1_5",
        "anyres",
        _NEXT,
    ),
    CatalogEntry(
        "llava-next-110b",
        "lmms-lab/llava-next-110b",
        "llava-hf/llava-next-110b-hf",
        *(111_589_992_448, 2_492_465_152, 80, 8, 128, 32768),
        "qwen_1_5",
        "anyres",
        _NEXT,
    ),
    CatalogEntry(
        "llava-interleave-qwen-0.5b",
        "lmms-lab/llava-next-interleave-qwen-0.5b",
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        *(864_031_264, 155_648_000, 24, 16, 64, 32768),
        "qwen_1_5",
        "squash",
        _SIGLIP,
    ),
    CatalogEntry(
        "llava-interleave-qwen-7b",
        "lmms-lab/llava-next-interleave-qwen-7b",
        "llava-hf/llava-interleave-qwen-7b-hf",
        *(8_141_100_576, 1_245_184_000, 32, 32, 128, 32768),
        "qwen_1_5",
        "squash",
        _SIGLIP,
    ),
    CatalogEntry(
        "llava-onevision-qwen2-0.5b",
        "lmms-lab/llava-onevision-qwen2-0.5b-ov",
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        *(893_675_552, 136_192_000, 24, 2, 64, 32768),
        "qwen_1_5",
        "anyres",
        _ONEVISION,
        videos=True,
    ),
    CatalogEntry(
        "llava-onevision-qwen2-7b",
        "lmms-lab/llava-onevision-qwen2-7b-ov",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        *(8_030_807_584, 1_090_453_504, 28, 4, 128, 32768),
        "qwen_1_5",
        "anyres",
        _ONEVISION,
        videos=True,
    ),
    CatalogEntry(
        "llava-onevision-qwen2-72b",
        "lmms-lab/llava-onevision-qwen2-72b-ov-sft",
        "llava-hf/llava-onevision-qwen2-72b-ov-hf",
        *(73_181_570_592, 2_492_465_152, 80, 8, 128, 32768),
        "qwen_1_5",
        "anyres",
        _ONEVISION,
        videos=True,
    ),
    CatalogEntry(
        "llava-next-video-7b",
        "lmms-lab/LLaVA-NeXT-Video-7B",
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
        *(7_063_431_168, 262_668_288, 32, 32, 128, 4096),
        "llava_v1",
        "anyres",
        _NEXT,
        videos=True,
    ),
    CatalogEntry(
        "llava-next-video-34b",
        "lmms-lab/LLaVA-NeXT-Video-34B",
        "llava-hf/LLaVA-NeXT-Video-34B-hf",
        *(34_752_083_968, 918_421_504, 60, 8, 128, 4096),
        "chatml_direct",
        "anyres",
        _NEXT,
        videos=True,
    ),
    CatalogEntry(
        "vip-llava-7b",
        "",
        "llava-hf/vip-llava-7b-hf",
        *(7_080_214_528, 262_668_288, 32, 32, 128, 4096),
        OWN,
        "pad",
        _CLIP,
    ),
    CatalogEntry(
        "vip-llava-13b",
        "",
        "llava-hf/vip-llava-13b-hf",
        *(13_372_476_416, 328_335_360, 40, 40, 128, 4096),
        OWN,
        "pad",
        _CLIP,
    ),
    CatalogEntry(
        "granite-vision-3.3-2b",
        "",
        "ibm-granite/granite-vision-3.3-2b",
        *(2_960_158_576, 100_671_488, 40, 8, 64, 131_072),
        OWN,
        "anyres",
        _GRANITE,
    ),
    CatalogEntry(
        "pixtral-12b",
        "",
        "mistral-community/pixtral-12b",
        *(12_682_739_712, 1_342_177_280, 40, 8, 128, 131_072),
        OWN,
        "rows",
        _PIXTRAL,
    ),
    CatalogEntry(
        "fastvlm-0.5b",
        "apple/FastVLM-0.5B",
        "KamilaMila/FastVLM-0.5B",
        *(620_361_440, 136_192_000, 24, 2, 64, 131_072),
        OWN,
        "crop",
        _FASTVIT,
    ),
    CatalogEntry(
        "fastvlm-1.5b",
        "apple/FastVLM-1.5B",
        "KamilaMila/FastVLM-1.5B",
        *(1_673_607_776, 233_472_000, 28, 2, 128, 131_072),
        OWN,
        "crop",
        _FASTVIT,
    ),
    CatalogEntry(
        "fastvlm-7b",
        "apple/FastVLM-7B",
        "KamilaMila/FastVLM-7B",
        *(7_762_651_744, 1_090_453_504, 28, 4, 128, 131_072),
        OWN,
        "crop",
        _FASTVIT,
    ),
)
"""All known models, the bundled one first."""


def resolve(name: str) -> CatalogEntry | None:
    """The model of a short name, an id of the hub, or the last part of one; None if unknown.

    Case does not matter. An id with another owner is another checkpoint, so it is unknown.
    """
    return _by_name().get(name.strip().lower())


def of_repository(name: str) -> CatalogEntry | None:
    """The model whose repository on the hub is called so, without its owner; None if unknown.

    For directories, which may be called like a short name and hold something else.
    """
    entry = resolve(name)
    ids = [] if entry is None else [entry.original_id, entry.hf_id]
    ends = [full.rpartition("/")[2].lower() for full in ids]
    return entry if name.strip().lower() in ends else None


def context_length(model: str) -> int | None:
    """Tokens that a model was made for: of the catalog, or of a directory's ``config.json``.

    None where neither declares it; the model is never opened for it.
    """
    entry = resolve(model)
    if entry is not None:
        return entry.context_length
    config = _declared(model)
    if config is None:
        return None
    try:
        return context_limit(SimpleNamespace(**{**config, **config.get("text_config", {})}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def takes_videos(model: str) -> bool:
    """Whether a model takes videos: by its layout, or by a directory's ``config.json``.

    False where neither says it; the model is never opened for it.
    """
    entry = resolve(model)
    if entry is not None:
        return entry.videos
    return (_declared(model) or {}).get("model_type") in VIDEO_TYPES


def _declared(model: str) -> dict[str, Any] | None:
    """What a directory's ``config.json`` says; None where there is none that can be read."""
    try:
        return read_json(Path(model) / "config.json")
    except CheckpointError:
        return None


def nearest(name: str, count: int = 3) -> list[str]:
    """Short names that look like ``name``, the likeliest first, for "did you mean"."""
    wanted = name.strip().lower().rpartition("/")[2]
    found = get_close_matches(wanted, list(_by_name()), n=4 * count, cutoff=0.6)
    names = dict.fromkeys(_by_name()[match].name for match in found)
    return list(names)[:count]


@cache
def _by_name() -> dict[str, CatalogEntry]:
    return {name.lower(): entry for entry in CATALOG for name in _names(entry)}


def _names(entry: CatalogEntry) -> Iterator[str]:
    yield entry.name
    yield from entry.also
    for full in filter(None, (entry.original_id, entry.hf_id)):
        yield full
        yield full.rpartition("/")[2]
