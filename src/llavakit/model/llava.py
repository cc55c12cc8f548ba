"""A LLaVA model in three verbs: encode images, run the decoder, read logits.

The mathematics are those of the HF classes; what is left out is their bookkeeping (caches,
masks, output records), which the engine does itself. Callers run it under
``torch.inference_mode``. Knows no requests.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llavakit.kernels.calibration import calibrate
from llavakit.kernels.native import KINDS
from llavakit.kernels.products import Weights
from llavakit.model.decoder import FusedDecoder, decoder_of, device_of
from llavakit.model.families import ONEVISION, SINGLE_VIEW
from llavakit.model.layer_decoder import Attend, LayerDecoder
from llavakit.model.preprocess import Pixels
from llavakit.model.videos import VideoPixels

_VIDEO = "pixel_values_videos"


class Llava:
    """A loaded LLaVA model.

    Args:
        model: ``LlavaForConditionalGeneration`` or that of another family of ``families.TOWERS``.

    Attributes:
        layers, kv_heads, head_dim: the shape of the decoder's keys and values.
        heads: of its queries.
        vocab_size: rows of the output layer.
        language_model, decoder: HF's, and what runs its layers here.
    """

    def __init__(self, model: Any) -> None:
        self.hf = model.eval()
        self.config = model.config
        self.language_model = model.model.language_model
        self._embeddings = model.get_input_embeddings()
        self.decoder = decoder_of(self.language_model)
        text = self.config.text_config
        self.layers = int(text.num_hidden_layers)
        self.heads = int(text.num_attention_heads)
        self.kv_heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        self.head_dim = int(
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        self.vocab_size = int(text.vocab_size)
        self._head = _head(model.lm_head)
        calibrate(self.matrices)
        skip_unread_vision_layers(model)

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the decoder's inputs belong; the model stays where it was first used."""
        return device_of(self._embeddings)

    @property
    def layer_devices(self) -> list[torch.device]:
        """Where each decoder layer computes, and its keys and values belong."""
        layers = getattr(self.language_model, "layers", None)
        if layers is None:  # of another name: then all is taken to the first device
            return [self.device] * self.layers
        return [device_of(layer) for layer in layers[: self.layers]]

    @property
    def fused(self) -> FusedDecoder | None:
        """The decoder, if it is one whose steps can be compiled and captured."""
        return self.decoder if isinstance(self.decoder, FusedDecoder) else None

    @property
    def by_layers(self) -> LayerDecoder | None:
        """The decoder, if it is HF's own with the engine's attention in it."""
        return self.decoder if isinstance(self.decoder, LayerDecoder) else None

    @property
    def matrices(self) -> list[tuple[Weights, ...]]:
        """Weights that compiled kernels read, in groups that a step multiplies the same way."""
        groups = [] if self.fused is None else self.fused.matrices
        return [*groups, (self._head,)] if isinstance(self._head, Weights) else groups

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations, keys and values."""
        dtype: torch.dtype = self._embeddings.weight.dtype
        return dtype

    def encode_images(self, pictures: Sequence[Pixels | VideoPixels]) -> list[Tensor]:
        """Projected features of each image or video, [tokens, hidden].

        Images take one pass of the tower, and OneVision's that share a prompt with others a pass
        of their own; each video takes one, since it has as many views as a batch of images.
        """
        inputs = [picture.inputs() for picture in pictures]
        images = [one for one in inputs if _VIDEO not in one]
        found = iter(self._of_images(images) if images else ())
        return [self._of_video(one[_VIDEO]) if _VIDEO in one else next(found) for one in inputs]

    def _of_video(self, frames: Tensor) -> Tensor:
        """[frames, 3, height, width] -> [tokens, hidden]."""
        values = frames[None].to(self.device, self.dtype)
        found = self.hf.model.get_video_features(pixel_values_videos=values, return_dict=True)
        features: Tensor = found.pooler_output[0]  # [frames, tokens, hidden] before 5.23
        return features.flatten(0, -2).to(self.device, self.dtype)

    def _of_rows(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features of an image's patches, with the words that stand behind its rows.

        Alone: of several, transformers computes scores of all patches with all.
        """
        made = self.hf.model.get_image_features(
            pixel_values=inputs["pixel_values"].to(self.device, self.dtype),
            image_sizes=inputs["image_sizes"][None].to(self.device),
            return_dict=True,
        )
        features = made.pooler_output[0].to(self.device, self.dtype)
        patch = int(self.config.vision_config.patch_size)
        columns = int(inputs["image_sizes"][1]) // patch
        rows = features.view(-1, columns, features.shape[-1])
        behind, last = self.embed(inputs["row_ends"].to(self.device))
        ends = torch.cat([behind.expand(len(rows) - 1, -1), last[None]])
        return torch.cat([rows, ends[:, None]], dim=1).flatten(0, 1)

    def _of_images(self, inputs: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        if "row_ends" in inputs[0]:
            return [self._of_rows(one) for one in inputs]
        if self.config.model_type != ONEVISION:
            return self._features(inputs, {})
        result: list[Tensor] = [torch.empty(0)] * len(inputs)
        # Tiles, or one view of each; HF asks for the number of images in each prompt, and any
        # other than one means one view.
        for alone in (True, False):
            chosen = [i for i, one in enumerate(inputs) if (len(one["pixel_values"]) > 1) == alone]
            if chosen:
                options = {} if alone else {"batch_num_images": [len(chosen) + 1]}
                found = self._features([inputs[i] for i in chosen], options)
                for i, features in zip(chosen, found, strict=True):
                    result[i] = features
        return result

    def _features(
        self, inputs: Sequence[dict[str, Tensor]], options: dict[str, Any]
    ) -> list[Tensor]:
        views = [one["pixel_values"] for one in inputs]
        if self.config.model_type in SINGLE_VIEW:
            pixel_values = torch.cat(views)
        else:
            pixel_values = stacked(views)
            sizes = [one.get("image_sizes", torch.tensor([1, 1])) for one in inputs]
            options = {**options, "image_sizes": torch.stack(sizes)}
        pixel_values = pixel_values.to(self.device, self.dtype)
        features = self.hf.model.get_image_features(
            pixel_values=pixel_values, return_dict=True, **options
        ).pooler_output
        return [one.to(self.device, self.dtype) for one in features]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of text tokens: [T] -> [T, hidden]."""
        embeddings: Tensor = self._embeddings(ids)
        return embeddings

    def decode(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run the decoder over tokens of any sequences, packed in one row.

        Args:
            embeddings: [T, hidden].
            positions: [T], each token's place in its own sequence.
            attend: stores keys and values and computes attention, once a layer.

        Returns:
            Hidden states after the last norm, [T, hidden].
        """
        return self.decoder(embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token in fp32: [N, hidden] -> [N, vocab]."""
        scores: Tensor = self._head(hidden)
        return scores.float().to(self.device)


def _head(layer: Any) -> Any:
    """The output layer, by the compiled kernels where they read it."""
    weight = layer.weight
    plain = type(layer) is torch.nn.Linear and not hasattr(layer, "_hf_hook")
    if plain and weight.device.type == "cpu" and weight.dtype in KINDS and weight.is_contiguous():
        return Weights(weight, layer.bias)
    return layer


def stacked(views: Sequence[Tensor]) -> Tensor:
    """[n_i, 3, H, W] of different n_i as one [N, max n, 3, H, W], padded with zeros."""
    most = max(len(one) for one in views)
    result = views[0].new_zeros(len(views), most, *views[0].shape[1:])
    for row, one in zip(result, views, strict=True):
        row[: len(one)] = one
    return result


def skip_unread_vision_layers(model: Any) -> None:
    """Drop the vision tower's layers behind the last one that LLaVA reads.

    LLaVA takes the second last layer's output (``vision_feature_layer=-2``), so the last
    one is computed for nothing. Only done where the layers lie in the usual place and the
    feature layer is one negative number; then the result is the same bit for bit.
    """
    layer = getattr(model.config, "vision_feature_layer", None)  # ViP-LLaVA has a list of them
    tower = model.model.vision_tower
    inner = getattr(tower, "vision_model", tower)
    encoder = getattr(inner, "encoder", None)
    if not isinstance(layer, int) or layer >= -1 or encoder is None:
        return
    unread = -layer - 1
    if unread >= len(encoder.layers):
        return
    del encoder.layers[len(encoder.layers) - unread :]
    # transformers resolves negative layers by the configured number of them.
    tower.config.num_hidden_layers = len(encoder.layers)
    model.config.vision_feature_layer = -1
