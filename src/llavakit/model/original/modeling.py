"""What transformers' LLaVA classes leave out of the original's models.

Three things: views of an image that are put together in another way than ``spatial_unpad``,
rows of features counted as the original counts them, and projectors of more than two layers.
Everything else is a plain HF class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    FastVlmForConditionalGeneration,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from llavakit.model.original.anyres import AnyresFeatures
from llavakit.model.original.config import OriginalConfig, projector_depth


class DeepProjector(nn.Sequential):
    """``mlpNx_gelu``: N linear layers with GELU between them, numbered as in the original."""

    def __init__(self, config: Any, depth: int) -> None:
        text = config.text_config.hidden_size
        layers: list[nn.Module] = [nn.Linear(config.vision_config.hidden_size, text)]
        for _ in range(1, depth):
            layers += [nn.GELU(), nn.Linear(text, text)]
        super().__init__(*layers)


class AnyresModel(LlavaNextModel):  # type: ignore[misc]
    """``LlavaNextModel`` that lays out views as ``prepare_inputs_labels_for_multimodal`` does."""

    features: AnyresFeatures

    def pack_image_features(
        self,
        image_features: Any,
        image_sizes: Any,
        vision_feature_select_strategy: str,
        image_newline: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Each image's views [n, tokens, hidden] as one [T, hidden]; also every T."""
        packed = [
            self._packed(views, (int(width), int(height)), image_newline)
            for views, (height, width) in zip(image_features, image_sizes, strict=True)
        ]
        return packed, torch.tensor([len(one) for one in packed], device=packed[0].device)

    def _packed(self, views: Tensor, size: tuple[int, int], newline: Tensor | None) -> Tensor:
        if self.features.merge == "flat":
            return views.flatten(0, 1)
        columns, rows = self.features.grid(size)
        side = self.features.side
        whole, tiles = views[0], views[1:].view(rows, columns, side, side, -1)
        if self.features.merge == "spatial":
            # The original's own order: rows of tiles, rows of patches, and so on.
            return torch.cat((whole, tiles.permute(0, 2, 1, 3, 4).flatten(0, 3)))
        plane = tiles.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
        top, left = self.features.margins(size)
        plane = plane[top : len(plane) - top, left : plane.shape[1] - left]
        assert newline is not None
        ends = newline.to(plane).expand(len(plane), 1, -1)
        return torch.cat((whole, torch.cat((plane, ends), dim=1).flatten(0, 1)))


def model_class(config: OriginalConfig, features: AnyresFeatures | None) -> type[Any]:
    """The class whose ``from_pretrained`` makes the model."""
    depth = projector_depth(config.projector) or 0

    class Anyres(AnyresModel):
        pass

    if features is not None:
        Anyres.features = features
    base: type[Any] = LlavaForConditionalGeneration
    if config.fastvit_side is not None:
        base = FastVlmForConditionalGeneration
    elif features is not None:
        base = LlavaNextForConditionalGeneration

    class Original(base):  # type: ignore[misc]
        def __init__(self, hf_config: Any) -> None:
            super().__init__(hf_config)
            # Modules are made without memory here, so making two costs nothing.
            if features is not None:
                self.model = Anyres(hf_config)
            if depth > 2:
                self.model.multi_modal_projector = DeepProjector(hf_config, depth)

    if features is None and depth <= 2:
        return base
    Original.__name__ = base.__name__  # of which it is one
    return Original
