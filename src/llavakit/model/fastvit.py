"""FastViT-HD, the vision tower of FastVLM, without timm.

transformers' FastVLM takes its tower from timm, which needs torchvision, and the torchvision of
PyPI does not load beside a torch for processors alone: transformers itself cannot be imported then.
So the tower is built here, in the form in which its weights are published: every block of
parallel branches is one convolution (FastViT, https://arxiv.org/abs/2303.14189, section 3;
FastVLM, https://arxiv.org/abs/2412.13303, section 3). Modules have the names of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.timm_wrapper.configuration_timm_wrapper import TimmWrapperConfig

from llavakit.errors import CheckpointError

ARCHITECTURE = "fastvit_mci3"

_HEAD_DIM = 32
_NORM_EPS = 1e-5
_GATE = 16  # channels of the last gate are so many times fewer inside it


@dataclass(frozen=True, slots=True)
class FastViTSizes:
    """Sizes of the tower, one number for each of its stages.

    Attributes:
        layers: blocks.
        embed_dims: channels.
        mlp_ratios: channels inside an MLP, as a multiple of those outside.
    """

    layers: tuple[int, ...] = (2, 12, 24, 4, 2)
    embed_dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4, 4)

    @property
    def stride(self) -> int:
        """Pixels along one side of what becomes one feature: the stem takes 4, each stage 2."""
        return 4 << (len(self.layers) - 1)

    @property
    def features(self) -> int:
        """Channels of a feature."""
        return 2 * self.embed_dims[-1]

    def attends(self, stage: int) -> bool:
        """Whether a stage mixes places by attention: the last two do."""
        return stage >= len(self.layers) - 2

    @classmethod
    def of(cls, path: Path, vision: Any) -> FastViTSizes:
        """Return the sizes that a checkpoint's ``vision_config`` declares.

        Args:
            path: the checkpoint's directory, for messages.
            vision: the HF configuration of the tower.

        Raises:
            CheckpointError: it is another tower of timm's, or one in the form for its training.
        """
        name = str(vision.architecture)
        if name.partition(".")[0] != ARCHITECTURE:
            raise CheckpointError(
                f"{path} has a vision tower of timm's called {name!r}, and of those only "
                f"{ARCHITECTURE!r} (FastViT-HD) is supported; use fastvlm-0.5b."
            )
        options = dict(vision.model_args or {})
        if not options.pop("inference_mode", False):
            raise CheckpointError(
                f"{path} holds its FastViT tower in the form for training (inference_mode is not "
                "set in model_args of its vision_config); merge its branches with timm's "
                "reparameterize_model, or use fastvlm-0.5b."
            )
        sizes = {one.name: options.pop(one.name) for one in fields(cls) if one.name in options}
        if options:
            raise CheckpointError(
                f"{path} changes {', '.join(sorted(options))} of its FastViT tower (model_args of "
                "its vision_config), which is not supported; use fastvlm-0.5b."
            )
        return _sizes(path, sizes)


def _sizes(path: Path, declared: Mapping[str, Any]) -> FastViTSizes:
    default = FastViTSizes()
    wanted = len(default.layers)
    for key, value in declared.items():
        numbers = isinstance(value, Sequence) and not isinstance(value, str)
        if not numbers or len(value) != wanted:
            raise CheckpointError(
                f"{path} declares {key}={value!r} for its FastViT tower, which takes one number "
                f"for each of its {wanted} stages; copy the config.json of the weights."
            )
    return FastViTSizes(**{key: tuple(value) for key, value in declared.items()})


class FastViTConfig(TimmWrapperConfig):  # type: ignore[misc]
    """The configuration of timm's tower, by which transformers finds the one built here.

    Attributes:
        image_size: pixels along one side of a view.
        patch_size: pixels along one side of what becomes one feature.
    """

    image_size: int = 1024
    patch_size: int = 64


def own_tower(path: Path, config: Any, side: int) -> None:
    """Make a FastVLM configuration ask for the tower built here.

    Args:
        path: the checkpoint's directory, for messages.
        config: the HF configuration of the whole; its ``vision_config`` is replaced.
        side: pixels along one side of what the image processor makes.

    Raises:
        CheckpointError: it declares a tower that is not supported, or the image processor's views
            are not whole features of it.
    """
    sizes = FastViTSizes.of(path, config.vision_config)
    if side < sizes.stride or side % sizes.stride:
        raise CheckpointError(
            f"The image processor in {path} makes views of {side}x{side} pixels, and the vision "
            f"tower takes multiples of {sizes.stride}; copy the preprocessor_config.json that "
            "belongs to the weights."
        )
    settings = {**config.vision_config.to_dict(), "image_size": side, "patch_size": sizes.stride}
    settings["label_names"] = []  # or timm is asked for ImageNet's
    config.vision_config = FastViTConfig.from_dict(settings)


class _Convolution(nn.Module):
    """Several branches as one convolution, and what follows it."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.reparam_conv(x)
        return mixed


class _Activated(_Convolution):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


class _Gate(nn.Module):
    """Weigh channels by all of them (squeeze and excitation, https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _GATE, 1)
        self.fc2 = nn.Conv2d(channels // _GATE, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weight)


class _Gated(_Convolution):
    def __init__(self, inputs: int, outputs: int, kernel: int, *, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, groups=groups)
        self.se = _Gate(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.se(super().forward(x)))


class _Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _FixedNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the weights, also where the rest of a model is trained."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class _Normed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.bn = _FixedNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x))
        return normed


class _Mlp(nn.Module):
    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.conv = _Normed(channels)
        self.fc1 = nn.Conv2d(channels, int(channels * ratio), 1)
        self.fc2 = nn.Conv2d(int(channels * ratio), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(F.gelu(self.fc1(self.conv(x))))
        return mixed


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [n, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Attention(nn.Module):
    """Attention of all places of a view with all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        parts = self.qkv(tokens).unflatten(-1, (3, -1, _HEAD_DIM)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out.transpose(1, 2).view_as(x)


class _MixingBlock(nn.Module):
    """Places are mixed with their neighbours by a convolution, residual included."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.token_mixer = _Convolution(channels, channels, 3, groups=channels)
        self.mlp = _Mlp(channels, ratio)
        self.layer_scale = _Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.token_mixer(x)
        out: Tensor = mixed + self.layer_scale(self.mlp(mixed))
        return out


class _AttentionBlock(nn.Module):
    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.norm = _ChannelNorm(channels, eps=_NORM_EPS)
        self.token_mixer = _Attention(channels)
        self.layer_scale_1 = _Scale(channels)
        self.mlp = _Mlp(channels, ratio)
        self.layer_scale_2 = _Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.layer_scale_1(self.token_mixer(self.norm(x)))
        out: Tensor = mixed + self.layer_scale_2(self.mlp(mixed))
        return out


class _Halving(nn.Module):
    """Half as many places along each side, with more channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            _Activated(inputs, outputs, 7, stride=2, groups=inputs),
            _Activated(outputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.proj(x)
        return halved


class _Stage(nn.Module):
    def __init__(self, sizes: FastViTSizes, number: int) -> None:
        super().__init__()
        channels, attends = sizes.embed_dims[number], sizes.attends(number)
        before = sizes.embed_dims[max(0, number - 1)]
        self.downsample = _Halving(before, channels) if number else nn.Identity()
        self.pos_emb = (
            _Convolution(channels, channels, 7, groups=channels) if attends else nn.Identity()
        )
        block = _AttentionBlock if attends else _MixingBlock
        blocks = [block(channels, sizes.mlp_ratios[number]) for _ in range(sizes.layers[number])]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.blocks(self.pos_emb(self.downsample(x)))
        return mixed


class _Tower(nn.Module):
    def __init__(self, sizes: FastViTSizes) -> None:
        super().__init__()
        first, last = sizes.embed_dims[0], sizes.embed_dims[-1]
        self.stem = nn.Sequential(
            _Activated(3, first, 3, stride=2),
            _Activated(first, first, 3, stride=2, groups=first),
            _Activated(first, first, 1),
        )
        self.stages = nn.Sequential(*(_Stage(sizes, i) for i in range(len(sizes.layers))))
        self.final_conv = _Gated(last, sizes.features, 3, groups=last)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.final_conv(self.stages(self.stem(x)))
        return features


class FastViT(PreTrainedModel):  # type: ignore[misc]
    """FastViT-HD: [n, 3, height, width] -> [n, channels, height / 64, width / 64]."""

    config_class = FastViTConfig
    base_model_prefix = "timm_model"
    main_input_name = "pixel_values"
    _no_split_modules = ["FastViT"]  # noqa: RUF012 - transformers asks for a list
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        sizes = FastViTSizes.of(Path(config.name_or_path or "."), config)
        self.timm_model = _Tower(sizes)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Return the features of all places, and on demand what the projector reads of them.

        Args:
            pixel_values: [n, 3, height, width].
            output_hidden_states: whether ``hidden_states`` are given, one of [n, places, channels].
        """
        features = self.timm_model(pixel_values)
        read = (features.flatten(2).transpose(1, 2),) if output_hidden_states else None
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=read)


AutoModel.register(FastViTConfig, FastViT)
