"""Language models that no test has proven: compared with transformers before they answer.

Twice: on a miniature of random weights while the checkpoint's small files are read, so that what
cannot be right is refused before gigabytes are; and on the weights themselves once they are there,
on their device and in their type, with an image.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llavakit.errors import CheckpointError
from llavakit.images import Picture
from llavakit.model.families import SINGLE_VIEW
from llavakit.model.language_models import proven
from llavakit.model.layer_decoder import LayerDecoder
from llavakit.model.layout import image_ids
from llavakit.model.llava import Llava
from llavakit.model.reader import Reader
from llavakit.model.trial import LARGEST_TOLERANCE, compare, key_shape
from llavakit.prompts.conversation import Turn
from llavakit.values import Image, Text

log = logging.getLogger(__name__)

LARGEST_MINIATURE = 50_000_000
"""Weights. What cannot be made smaller is compared when its own weights are there."""

_WIDTH, _VOCABULARY, _DEPTH, _EXPERTS = 128, 512, 8, 16
_TOKENS = 24
_CALM = 0.9
"""Of a row's length in a random matrix: scores of attention are then neither flat nor one-hot."""


def check_language_model(path: Path, text: Any) -> None:
    """Refuse a language model whose miniature is not computed as by transformers.

    Args:
        path: the checkpoint's directory, for the message.
        text: the HF configuration of the language model.

    Raises:
        CheckpointError: it is not, or transformers has no such language model.
    """
    if proven(text):
        return
    wrong = _tried(json.dumps(text.to_dict(), sort_keys=True, default=str), _Hidden(text))
    if wrong is not None:
        raise _refusal(path, text, wrong)


def check_weights(reader: Reader, model: Llava) -> None:
    """Refuse a loaded model whose logits are not those of transformers' forward.

    Nothing is done where tests have proven the language model.

    Raises:
        CheckpointError: they are not, for a text or for a text with an image.
    """
    text = reader.config.text_config
    if proven(text) or model.by_layers is None:
        return
    decoder = model.by_layers
    with torch.inference_mode():
        words = model.embed(torch.tensor(_prompt(reader, None), device=model.device))
        ids, inputs, at = _with_image(reader)
        seen = model.embed(torch.tensor(ids, device=model.device))
        features = model.encode_images([inputs])[0]
        seen[at : at + len(features)] = features

        def reference(embeddings: Tensor) -> Tensor:
            with decoder.as_in_transformers():
                out = model.hf(inputs_embeds=embeddings[None], use_cache=False, return_dict=True)
            logits: Tensor = out.logits[0]
            return logits.to(model.device)

        wrong = _caught(
            lambda: compare(decoder, reference, (seen, words), key_shape(text), model.logits)
        )
        wrong = wrong or _whole_prompt(model, ids, inputs, reference(seen))
    if wrong is not None:
        raise _refusal(reader.path, text, wrong)
    log.info("%s: logits are those of transformers (%s)", reader.path.name, text.model_type)


def _whole_prompt(model: Llava, ids: list[int], inputs: Any, ours: Tensor) -> str | None:
    """Compare with HF's forward of ids and pixels, which puts the image in by itself."""
    made = inputs.inputs()
    pixels = made["pixel_values"].to(model.device, model.dtype)
    options: dict[str, Any] = {"pixel_values": pixels}
    if "row_ends" in made:
        options["image_sizes"] = made["image_sizes"][None]
    elif model.config.model_type not in SINGLE_VIEW:
        options = {"pixel_values": pixels[None], "image_sizes": made["image_sizes"][None]}
    assert model.by_layers is not None, "only such models are compared"
    with model.by_layers.as_in_transformers():
        out = model.hf(
            input_ids=torch.tensor([ids], device=model.device), use_cache=False, **options
        )
    theirs = out.logits[0].to(ours).float()
    apart = (theirs - ours.float()).square().mean().sqrt() / theirs.std().clamp_min(1e-12)
    if float(apart) <= LARGEST_TOLERANCE or not torch.isfinite(theirs).all():
        return None
    return "its answers to images are other ones"


def _refusal(path: Path, text: Any, wrong: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has a language model of type {text.model_type!r}, which llavakit cannot run as "
        f"transformers does: {wrong.rstrip('.')}. Run it with transformers itself, or on a server "
        "that supports it (base_url=)."
    )


class _Hidden:
    """An argument that a cache does not look at."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@cache
def _tried(_: str, text: _Hidden) -> str | None:
    """What is wrong with a miniature of a language model; None if nothing is, or none is made."""
    return _caught(lambda: _compare_miniature(text.value))


def _compare_miniature(text: Any) -> str | None:
    random = torch.Generator().manual_seed(2)
    failure: Exception | None = None
    for config in miniatures(text):
        model = _random_model(config)
        if not hasattr(model, "embed_tokens"):
            return "transformers' own LLaVA classes do not take it"
        sequences = [
            torch.randn(count, config.hidden_size, generator=random)
            for count in (_TOKENS, _TOKENS // 3)
        ]
        reference = partial(_hidden, model)
        try:
            with torch.inference_mode():
                reference(sequences[0])
        except Exception as error:  # a miniature that does not fit together
            failure = error
            continue
        decoder = LayerDecoder(model)

        def there(embeddings: Tensor, decoder: LayerDecoder = decoder, run: Any = reference) -> Any:
            with decoder.as_in_transformers():
                return run(embeddings)

        with torch.inference_mode():
            return compare(decoder, there, sequences, key_shape(config))
    if failure is not None:
        raise failure
    log.info("no miniature of %s: its weights are compared", text.model_type)
    return None


def _hidden(model: Any, embeddings: Tensor) -> Tensor:
    """Hidden states as transformers computes them, [T, hidden]."""
    out = model(inputs_embeds=embeddings[None], use_cache=False, return_dict=True)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def _caught(check: Callable[[], str | None]) -> str | None:
    """What a comparison says; whatever it raises is a reason, too."""
    try:
        return check()
    except CheckpointError as error:
        return str(error)
    except Exception as error:  # code of many models, which fails as it likes
        log.debug("a comparison failed", exc_info=True)
        first = (str(error).splitlines() or [""])[0]
        return f"computed token by token it fails ({type(error).__name__}: {first})"


def miniatures(text: Any) -> Iterator[Any]:
    """Configurations of small language models with the structure of a given one, smallest first.

    Only those that transformers can build, and that are not too large to be tried in a second.

    Args:
        text: the HF configuration of the language model; it is not changed.
    """
    from transformers import AutoModel

    shallow = _shallow(text)
    narrow = _narrowed(shallow)
    for config in (_fewer_experts(narrow), narrow, shallow):
        try:
            with torch.device("meta"):
                size = sum(one.numel() for one in AutoModel.from_config(config).parameters())
        except Exception:  # settings that do not go together
            log.debug("no such miniature of %s", text.model_type, exc_info=True)
            continue
        if size <= LARGEST_MINIATURE:
            yield config


def _random_model(config: Any) -> Any:
    """A language model of random weights, in fp32 on the processor."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for weight in model.parameters():
                _shake(weight)
    return model


def _shake(weight: nn.Parameter) -> None:
    """Random values under which everything that a layer does shows in its numbers."""
    if weight.dim() >= 2:
        weight.normal_(0, _CALM / weight.shape[-1] ** 0.5)
    else:  # norms, biases
        weight.add_(0.2 * torch.randn_like(weight))


def _shallow(text: Any) -> Any:
    """A copy with as many layers as it takes to have every kind of them, and a small vocabulary."""
    config = copy.deepcopy(text)
    layers = int(text.num_hidden_layers)
    kinds = list(getattr(text, "layer_types", None) or [])
    depth = min(layers, max(2, min(_DEPTH, _until_all(kinds))))
    if depth < layers:
        for name, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(config, name, value[:depth])
        config.num_hidden_layers = depth
    sizes = [name for name in vars(config) if name.startswith("vocab_size")]
    if any(int(getattr(config, name) or 0) > _VOCABULARY for name in sizes):
        for name in sizes:
            setattr(config, name, _VOCABULARY)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, None)
    return config


def _until_all(kinds: list[str]) -> int:
    """How many layers there are until every kind of them has come."""
    return max((kinds.index(kind) + 1 for kind in set(kinds)), default=2)


def _narrowed(text: Any) -> Any:
    """A copy whose widths and heads are divided by one power of two, so that ratios stay."""
    config = copy.deepcopy(text)
    names = ("num_attention_heads", "hidden_size", "num_key_value_heads", "intermediate_size")
    found = {name: getattr(config, name, None) for name in names}
    parts = {name: one for name, one in found.items() if isinstance(one, int) and one > 1}
    by = 1
    while config.hidden_size // by > _WIDTH and all(one % (2 * by) == 0 for one in parts.values()):
        by *= 2
    for name, one in parts.items():
        setattr(config, name, one // by)
    return config


def _fewer_experts(text: Any) -> Any:
    """A copy with few and narrow experts, where it has many."""
    config = copy.deepcopy(text)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if isinstance(count := getattr(config, name, None), int) and count > _EXPERTS:
            setattr(config, name, _EXPERTS)
    for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if isinstance(width := getattr(config, name, None), int):
            setattr(config, name, min(width, _WIDTH))
    return config


def _prompt(reader: Reader, picture: Picture | None) -> list[int]:
    image = () if picture is None else (Image(picture),)
    return reader.tokenizer.encode([Turn("user", (*image, Text("What is it?")))])


def _with_image(reader: Reader) -> tuple[list[int], Any, int]:
    """Token ids of a question about a small image, what the tower reads of it, and its place."""
    from PIL import Image as PILImage

    from llavakit.images import open_picture
    from llavakit.sources import SourcePolicy

    gradient = PILImage.linear_gradient("L").resize((32, 24)).convert("RGB")
    picture = open_picture(gradient, SourcePolicy())
    pixels = reader.preprocess(picture)
    prompt = _prompt(reader, picture)
    at = prompt.index(reader.special.image)
    image = image_ids(reader.layout, reader.special.image, pixels.size, 1)
    return [*prompt[:at], *image, *prompt[at + 1 :]], pixels, at
