"""Residual networks: v1 (He et al. 2015, arXiv:1512.03385), v2 (He et al. 2016, arXiv:1603.05027), plain twins."""

import functools
import warnings
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import layers


class Block(nn.Module):
    """What all blocks have: a branch, and a shortcut that it is added to.

    Attributes:
      width: number of channels inside.
      stride: of the block.
      shortcut: one of the functions in `layers.SHORTCUTS`.
      norm: one of the functions in `layers.NORMS`.
      zero_init: start the branch at zero.
      dtype: of the computation.
      conv: one of the functions in `layers.DOWNSAMPLES`.
      drop: a function of the branch: `layers.stochastic_depth` with its rate.
    """

    width: int
    stride: int
    shortcut: Callable
    norm: Callable
    zero_init: bool
    dtype: jnp.dtype
    conv: Callable = layers.conv
    drop: Callable = layers.stochastic_depth

    @property
    def last_scale_init(self) -> Callable:
        """Initialiser of the scale of the branch's last norm, in blocks whose branch ends with one."""
        return nn.initializers.zeros if self.zero_init else nn.initializers.ones

    @property
    def shortcut_norm(self) -> Callable:
        """The norm after a projection on the shortcut."""
        return self.norm

    def joined(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        """The sum of shortcut and branch; both, as they are added, can be looked at in the collection "addends"."""
        skip, branch = self.shortcut(x, branch, self.stride, self.shortcut_norm, self.dtype, self.conv)
        branch = self.drop(branch)
        if not self.is_initializing():  # where every collection is kept
            self.sow("addends", "skip", skip)
            self.sow("addends", "branch", branch)
        return skip + branch


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5 left), `width` channels inside and out."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y)
        return nn.relu(self.joined(x, y))


class BottleneckBlock(Block):
    """1x1 to `width` channels, 3x3, 1x1 to four times `width` (Figure 5 right).

    The stride is on the 3x3 convolution (`stride_on_first=False`, "v1.5": torchvision, fb.resnet.torch) or on the
    first 1x1 convolution (the paper and its Caffe release, "v1").
    """

    stride_on_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = (self.stride, 1) if self.stride_on_first else (1, self.stride)
        y = self.conv(self.width, 1, first, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.width, 3, second, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.width, 1, dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(y)
        return nn.relu(self.joined(x, y))


BottleneckBlockV1 = functools.partial(BottleneckBlock, stride_on_first=True)


class PreActBlock(Block):
    """What the blocks of He et al. 2016 (Figure 4e) have: norm and ReLU stand before the convolutions.

    As in the released code, a block that changes the shape gives its shortcut the activated input and projects by
    the convolution alone; every other block gives it the raw input.

    Attributes:
      preactivation: `layers.norm_and_relu`, or `layers.no_activation` for the first block, whose input has been
        activated by the stem (appendix: "right after conv1 and before splitting into two paths").
    """

    preactivation: Callable = layers.norm_and_relu

    @property
    def shortcut_norm(self) -> Callable:
        return layers.identity_norm

    @property
    def last_kernel_init(self) -> Callable:
        """Initialiser of the last convolution, which ends the branch.

        With `zero_init` it is the kernel that starts at zero. A zero scale in the norm before it would start the
        branch at zero too, and leave it there: behind a ReLU of zeros neither scale, shift nor kernel has a gradient.
        """
        return nn.initializers.zeros if self.zero_init else layers.he_normal_fan_out


class PreActBasicBlock(PreActBlock):
    """Two 3x3 convolutions, `width` channels inside and out."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activated = self.preactivation(x, self.norm, "bn1")
        y = self.conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(activated)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(self.width, 3, dtype=self.dtype, kernel_init=self.last_kernel_init, name="conv2")(y)
        return self.joined(x if x.shape == y.shape else activated, y)


class PreActBottleneckBlock(PreActBlock):
    """1x1 to `width` channels, 3x3 with the stride, 1x1 to four times `width`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activated = self.preactivation(x, self.norm, "bn1")
        y = self.conv(self.width, 1, dtype=self.dtype, name="conv1")(activated)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(self.width, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(self.norm(name="bn3")(y))
        y = self.conv(4 * self.width, 1, dtype=self.dtype, kernel_init=self.last_kernel_init, name="conv3")(y)
        return self.joined(x if x.shape == y.shape else activated, y)


class ResNet(nn.Module):
    """A stem, stages of blocks, global average pooling and a linear head.

    Attributes:
      num_classes: size of the logits.
      stage_sizes: blocks per stage; every stage after the first halves the image and doubles the width.
      block: block class.
      first_block: class of the very first block, where it is another.
      last_activation: `layers.no_activation`, or `layers.norm_and_relu` after the last block of pre-activation nets.
      stem: `layers.IMAGENET_STEM` or `layers.SMALL_IMAGE_STEM`.
      shortcut: one of the functions in `layers.SHORTCUTS`.
      width: channels of the stem and the (inner) width of the first stage.
      norm: one of the functions in `layers.NORMS`.
      downsample: one of the functions in `layers.DOWNSAMPLES`, which make the convolutions of the blocks.
      stochastic_depth: the probability that training drops the branch of the last block; see `drop_rates`.
      zero_init_last_scale: start each branch at zero, so that blocks begin as the identity: by the scale of its last
        norm (Goyal et al. 2017, section 5.1), in pre-activation blocks by its last kernel.
      dtype: of the computation. Parameters and batch statistics are float32 always.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: Callable[..., nn.Module]
    stem: layers.Stem
    shortcut: Callable
    width: int = 64
    first_block: Callable[..., nn.Module] | None = None
    last_activation: Callable = layers.no_activation
    norm: Callable = layers.batch_norm
    downsample: Callable = layers.conv
    stochastic_depth: float = 0.0
    zero_init_last_scale: bool = False
    dtype: jnp.dtype = jnp.float32

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
        if self.stochastic_depth and self.shortcut is layers.no_shortcut:
            raise UserError(
                f"model.stochastic_depth: expected 0 without shortcuts, found {self.stochastic_depth}; a plain net is "
                "cut where a branch is dropped. Try another model.shortcut"
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
        layers.check_images(images, self.smallest_image, advice)
        warn_if_stem_disagrees(self.stem, images.shape)
        norm = functools.partial(self.norm, train=train, dtype=self.dtype)
        activations = {}

        x = images.astype(self.dtype)
        x = activations["stem"] = self.stem.layers(x, self.width, norm, self.dtype)
        block = self.first_block or self.block
        drop_rates = iter(self.drop_rates)
        for stage, blocks in enumerate(self.stage_sizes, start=1):
            for index in range(1, blocks + 1):
                x = block(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 1 else 1,
                    shortcut=self.shortcut,
                    norm=norm,
                    zero_init=self.zero_init_last_scale,
                    dtype=self.dtype,
                    conv=self.downsample,
                    drop=functools.partial(layers.stochastic_depth, rate=next(drop_rates), train=train),
                    name=f"stage{stage}_block{index}",
                )(x)
                block = self.block
            activations[f"stage{stage}"] = x
        x = self.last_activation(x, norm, "bn_last")
        x = activations["pre_logits"] = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        logits = activations["logits"] = nn.Dense(self.num_classes, dtype=jnp.float32, name="fc")(x)
        return (logits, activations) if features else logits


def warn_if_stem_disagrees(stem: layers.Stem, images_shape: tuple[int, ...]) -> None:
    """Warn of a stem made for images of quite another size."""
    size = min(images_shape[1:3])
    if stem is layers.IMAGENET_STEM and size < 64:
        warnings.warn(
            f"the ImageNet stem shrinks {size}x{size} images to {-(-size // 4)}x{-(-size // 4)} before the first "
            "stage, which costs much accuracy; use the stem for small images: model.stem=small",
            stacklevel=2,
        )
    if stem is layers.SMALL_IMAGE_STEM and size >= 128:
        warnings.warn(
            f"the stem for small images keeps {size}x{size} pixels in the first stage, 16 times the work of the "
            "ImageNet stem; use model.stem=imagenet",
            stacklevel=2,
        )


V1_BASIC = {"block": BasicBlock}
V1_BOTTLENECK = {"block": BottleneckBlock}
V2_BASIC = {
    "block": PreActBasicBlock,
    "first_block": functools.partial(PreActBasicBlock, preactivation=layers.no_activation),
    "last_activation": layers.norm_and_relu,
}
V2_BOTTLENECK = {
    "block": PreActBottleneckBlock,
    "first_block": functools.partial(PreActBottleneckBlock, preactivation=layers.no_activation),
    "last_activation": layers.norm_and_relu,
}


def _imagenet_net(stage_sizes, blocks, shortcut=layers.SHORTCUTS["B"]):
    return functools.partial(
        ResNet, stage_sizes=stage_sizes, stem=layers.IMAGENET_STEM, shortcut=shortcut, width=64, **blocks
    )


# Table 1 of the paper; 200 from He et al. 2016 (arXiv:1603.05027). Basic blocks have no 1x1 convolution that could
# take the stride: resnet18_v1 and resnet34_v1 are resnet18 and resnet34.
IMAGENET_MODELS = {
    "resnet18": _imagenet_net((2, 2, 2, 2), V1_BASIC),
    "resnet34": _imagenet_net((3, 4, 6, 3), V1_BASIC),
    "resnet50": _imagenet_net((3, 4, 6, 3), V1_BOTTLENECK),
    "resnet101": _imagenet_net((3, 4, 23, 3), V1_BOTTLENECK),
    "resnet152": _imagenet_net((3, 8, 36, 3), V1_BOTTLENECK),
    "resnet200": _imagenet_net((3, 24, 36, 3), V1_BOTTLENECK),
    "resnet18_v1": _imagenet_net((2, 2, 2, 2), V1_BASIC),
    "resnet34_v1": _imagenet_net((3, 4, 6, 3), V1_BASIC),
    "resnet50_v1": _imagenet_net((3, 4, 6, 3), {"block": BottleneckBlockV1}),
    "resnet101_v1": _imagenet_net((3, 4, 23, 3), {"block": BottleneckBlockV1}),
    "resnet152_v1": _imagenet_net((3, 8, 36, 3), {"block": BottleneckBlockV1}),
    "resnet200_v1": _imagenet_net((3, 24, 36, 3), {"block": BottleneckBlockV1}),
    "preact_resnet18": _imagenet_net((2, 2, 2, 2), V2_BASIC),
    "preact_resnet34": _imagenet_net((3, 4, 6, 3), V2_BASIC),
    "preact_resnet50": _imagenet_net((3, 4, 6, 3), V2_BOTTLENECK),
    "preact_resnet101": _imagenet_net((3, 4, 23, 3), V2_BOTTLENECK),
    "preact_resnet152": _imagenet_net((3, 8, 36, 3), V2_BOTTLENECK),
    "preact_resnet200": _imagenet_net((3, 24, 36, 3), V2_BOTTLENECK),
    "plain18": _imagenet_net((2, 2, 2, 2), V1_BASIC, layers.no_shortcut),
    "plain34": _imagenet_net((3, 4, 6, 3), V1_BASIC, layers.no_shortcut),
}
