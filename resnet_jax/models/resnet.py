"""Residual networks: v1 (He et al. 2015, arXiv:1512.03385), v2 (He et al. 2016, arXiv:1603.05027), plain twins."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models.blocks import (
    BasicBlock,
    Block,
    BottleneckBlock,
    BottleneckBlockV1,
    PreActBasicBlock,
    PreActBottleneckBlock,
    no_activation,
    norm_and_relu,
    stochastic_depth,
)
from resnet_jax.models.conv import Pool, conv2d
from resnet_jax.models.downsample import stride_in_conv
from resnet_jax.models.norm import announced, batch_norm
from resnet_jax.models.scan import kept, repeated
from resnet_jax.models.shortcuts import no_shortcut
from resnet_jax.models.stems import Stem, check_images, warn_if_stem_disagrees


def stride_in_first_block(stage: int, blocks: int, stages: int) -> tuple[int, ...]:
    """Strides of the blocks of a stage (from 1): every stage after the first begins by halving the image."""
    return (2 if stage > 1 else 1, *[1] * (blocks - 1))


def stride_in_last_block(stage: int, blocks: int, stages: int) -> tuple[int, ...]:
    """Strides of the blocks of a stage (from 1): every stage before the last ends by halving the image (TF-slim)."""
    return (*[1] * (blocks - 1), 2 if stage < stages else 1)


class ResNet(nn.Module):
    """A stem, stages of blocks, global average pooling and a linear head.

    Attributes:
      num_classes: size of the logits.
      stage_sizes: blocks per stage; every stage after the first doubles the width.
      block: class of blocks, a subclass of `Block` (or a partial one).
      first_block: class of the very first block, where it is another.
      last_activation: `no_activation`, or `norm_and_relu` after the last block of pre-activation nets.
      stem: one of the values of `STEMS`, or another `Stem`.
      shortcut: one of the functions in `SHORTCUTS`.
      width: channels of the stem and the (inner) width of the first stage.
      strides: `stride_in_first_block` or `stride_in_last_block`.
      conv: one of the functions in `CONVS`, which make all convolutions.
      norm: one of the functions in `NORMS`.
      downsample: one of the functions in `DOWNSAMPLES`, for the convolutions of the blocks.
      gate: one of the functions in `GATES`, of the end of each branch, or None.
      groups: number of groups in the 3x3 convolutions of bottlenecks; ResNeXt-50 32x4d has 32 and `base_width` 4.
      base_width: channels of each group of a bottleneck in the first stage of a net of width 64.
      stochastic_depth: the probability that training drops the branch of the last block; see `drop_rates`.
      zero_init_last_scale: start each branch at zero, so that blocks begin as the identity: by the scale of its last
        norm (Goyal et al. 2017, section 5.1), in pre-activation blocks by its last kernel.
      dtype: precision of the computation. Parameters and batch statistics are float32 always.
      scan_blocks: run the equal blocks of a stage as one in a loop; see `models/scan.py`.
      remat: keep what convolutions give for the backward pass, and compute the rest of the blocks again.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: Callable[..., nn.Module]
    stem: Stem
    shortcut: Callable
    width: int = 64
    first_block: Callable[..., nn.Module] | None = None
    last_activation: Callable = no_activation
    strides: Callable = stride_in_first_block
    conv: Callable = conv2d
    norm: Callable = batch_norm
    downsample: Callable = stride_in_conv
    gate: Callable | None = None
    groups: int = 1
    base_width: int = 64
    stochastic_depth: float = 0.0
    zero_init_last_scale: bool = False
    scan_blocks: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Names of the blocks of each stage, `stage1_block1` and so on, in the order of the forward pass."""
        return tuple(
            tuple(f"stage{stage}_block{index}" for index in range(1, blocks + 1))
            for stage, blocks in enumerate(self.stage_sizes, start=1)
        )

    @property
    def layers_of_blocks(self) -> tuple[dict[str, tuple[str, ...]], ...]:
        """For each stage, names of the layers that run its blocks, and of the blocks in each.

        Without `scan_blocks` every block is a layer. With it the longest run of equal blocks is one, `stage1_blocks`:
        the first block of a stage is left out, as it may change the channels, and one that strides has another output.
        """
        layers = []
        for stage, names in enumerate(self.stages, start=1):
            strides = self.strides(stage, len(names), len(self.stages))
            equal = [name for name, stride in zip(names[1:], strides[1:], strict=True) if stride == 1]
            layer_of = dict.fromkeys(equal, f"stage{stage}_blocks") if self.scan_blocks and len(equal) > 1 else {}
            pairs = [(layer_of.get(name, name), name) for name in names]
            layers.append({layer: tuple(name for own, name in pairs if own == layer) for layer, _ in pairs})
        return tuple(layers)

    @property
    def smallest_image(self) -> int:
        """The smallest height or width that leaves every strided layer two pixels to stride over."""
        total_stride = self.stem.stride * 2 ** (len(self.stage_sizes) - 1)
        return total_stride // 2 + 1

    @property
    def drop_rates(self) -> list[float]:
        """The probability that training drops its branch, for each block.

        It grows linearly from 0 in the first block to `stochastic_depth` in the last: timm's rule, and so that of
        "ResNet strikes back" (arXiv:2110.00476). In Huang et al. 2016 (arXiv:1603.09382, equation 4) block l of L has
        l / L of the last one's.

        Raises:
          UserError: a rate outside [0, 1), or one for a plain net.
        """
        if not 0 <= self.stochastic_depth < 1:
            raise UserError(f"model.stochastic_depth: expected 0 to less than 1, found {self.stochastic_depth}")
        if self.stochastic_depth and self.shortcut is no_shortcut:
            raise UserError(
                f"model.stochastic_depth: expected 0 without shortcuts, found {self.stochastic_depth}; a plain net is "
                "cut where a branch is dropped. Try another model.shortcut"
            )
        if self.stochastic_depth and self.scan_blocks:
            raise UserError(
                f"model.stochastic_depth: expected 0 with scan_blocks, found {self.stochastic_depth}: blocks that are "
                "one in a loop have one rate. Try model.scan_blocks=False"
            )
        return np.linspace(0, self.stochastic_depth, sum(self.stage_sizes)).tolist()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False):
        """Logits of normalised images.

        Args:
          images: (batch, height, width, 1 or 3), floating point, already normalised.
          train: normalise by the batch and update `batch_stats` (pass `mutable=["batch_stats"]`), or by running
            statistics; and drop branches by `stochastic_depth`, if it is not 0 (pass `rngs={"dropout": key}`).
          features: also return a dict of activations: `stem`, `stage1`.., `pre_logits`, `logits`.

        Returns:
          float32 logits (batch, num_classes), or `(logits, activations)`.

        Raises:
          UserError: images of another rank, dtype or number of channels, or too small for the strides; or what
            `drop_rates` refuses.
        """
        advice = "the stem for small images (model.stem=small) or larger images (data.image_size)"
        check_images(images, self.smallest_image, advice)
        warn_if_stem_disagrees(self.stem, images.shape)
        conv = functools.partial(self.conv, dtype=self.dtype)
        side_norm = functools.partial(self.norm, train=train, dtype=self.dtype)
        norm = announced(side_norm)
        activations = {}

        x = images.astype(self.dtype)
        x = activations["stem"] = self.stem.layers(x, self.width, conv=conv, norm=norm)
        block, conv = self.first_block or self.block, self.downsample(conv)
        drop_rates = iter(self.drop_rates)
        for stage, layers in enumerate(self.layers_of_blocks, start=1):
            strides = iter(self.strides(stage, self.stage_sizes[stage - 1], len(self.stages)))
            for name, blocks in layers.items():
                stride, *_ = [next(strides) for _ in blocks]
                drop_rate, *_ = [next(drop_rates) for _ in blocks]
                layer = block(
                    width=self.width * 2 ** (stage - 1),
                    stride=stride,
                    shortcut=self.shortcut,
                    conv=kept(conv) if self.remat else conv,
                    norm=norm,
                    side_norm=side_norm,
                    gate=self.gate,
                    drop=functools.partial(stochastic_depth, rate=drop_rate, train=train),
                    zero_init=self.zero_init_last_scale,
                    groups=self.groups,
                    base_width=self.base_width,
                    name=name,
                )
                if not isinstance(layer, Block):
                    raise UserError(f"model.block: expected a subclass of models.blocks.Block, found {layer}")
                x, block = repeated(len(blocks), self.remat)(layer, x), self.block
            activations[f"stage{stage}"] = x
        x = self.last_activation(x, norm, "bn_last")
        global_mean = functools.partial(jnp.mean, axis=(1, 2), dtype=jnp.float32)
        x = activations["pre_logits"] = Pool(global_mean, name="pool")(x)
        logits = activations["logits"] = nn.Dense(self.num_classes, dtype=jnp.float32, name="fc")(x)
        return (logits, activations) if features else logits


V1_BASIC = {"block": BasicBlock}
V1_BOTTLENECK = {"block": BottleneckBlock}
V1_BOTTLENECK_STRIDE_FIRST = {"block": BottleneckBlockV1}
# Of Wide ResNets, timm, BiT and Keras: every block begins with a norm, since there is none in the stem.
V2_BASIC_ALL = {"block": PreActBasicBlock, "last_activation": norm_and_relu}
V2_BOTTLENECK_ALL = {"block": PreActBottleneckBlock, "last_activation": norm_and_relu}
V2_BASIC = V2_BASIC_ALL | {"first_block": functools.partial(PreActBasicBlock, preactivation=no_activation)}
V2_BOTTLENECK = V2_BOTTLENECK_ALL | {
    "first_block": functools.partial(PreActBottleneckBlock, preactivation=no_activation)
}
