"""Residual networks (He et al. 2015, arXiv:1512.03385) and their plain twins."""

import functools
import warnings
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.models import layers
from resnet_jax.models.layers import conv


class Block(nn.Module):
    """What all blocks have: a branch, and a shortcut that it is added to.

    Attributes:
      width: number of channels inside.
      stride: of the block.
      shortcut: one of the functions in `layers.SHORTCUTS`.
      norm: function like `layers.batch_norm`.
      last_scale_init: initialiser of the scale of the branch's last norm.
      dtype: of the computation.
    """

    width: int
    stride: int
    shortcut: Callable
    norm: Callable
    last_scale_init: Callable
    dtype: jnp.dtype

    def joined(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        """The sum of shortcut and branch; both can be looked at in the collection "addends"."""
        skip, branch = self.shortcut(x, branch, self.stride, self.norm, self.dtype)
        if not self.is_initializing():  # where every collection is kept
            self.sow("addends", "skip", skip)
            self.sow("addends", "branch", branch)
        return skip + branch


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5 left), `width` channels inside and out."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
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
        y = conv(self.width, 1, first, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = conv(self.width, 3, second, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = conv(4 * self.width, 1, dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(y)
        return nn.relu(self.joined(x, y))


BottleneckBlockV1 = functools.partial(BottleneckBlock, stride_on_first=True)


class ResNet(nn.Module):
    """A stem, stages of blocks, global average pooling and a linear head.

    Attributes:
      num_classes: size of the logits.
      stage_sizes: blocks per stage; every stage after the first halves the image and doubles the width.
      block: block class.
      stem: `layers.IMAGENET_STEM` or `layers.SMALL_IMAGE_STEM`.
      shortcut: one of the functions in `layers.SHORTCUTS`.
      width: channels of the stem and the (inner) width of the first stage.
      norm: function like `layers.batch_norm`.
      zero_init_last_scale: start the last norm scale of each block at zero, so that blocks begin as the identity
        (Goyal et al. 2017, section 5.1).
      dtype: of the computation. Parameters and batch statistics are float32 always.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: Callable[..., nn.Module]
    stem: layers.Stem
    shortcut: Callable
    width: int = 64
    norm: Callable[..., nn.Module] = layers.batch_norm
    zero_init_last_scale: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def smallest_image(self) -> int:
        """The smallest height or width that leaves every strided layer two pixels to stride over."""
        total_stride = self.stem.stride * 2 ** (len(self.stage_sizes) - 1)
        return total_stride // 2 + 1

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False):
        """Logits of normalised images.

        Args:
          images: (batch, height, width, 1 or 3), floating point, already normalised.
          train: normalise by the batch and update `batch_stats` (pass `mutable=["batch_stats"]`), or by running
            statistics.
          features: also return a dict of activations: `stem`, `stage1`.., `pre_logits`, `logits`.

        Returns:
          float32 logits (batch, num_classes), or `(logits, activations)`.

        Raises:
          UserError: images of another rank, dtype or number of channels, or too small for the strides.
        """
        check_images(images, self.smallest_image)
        warn_if_stem_disagrees(self.stem, images.shape)
        norm = functools.partial(self.norm, train=train, dtype=self.dtype)
        scale_init = nn.initializers.zeros if self.zero_init_last_scale else nn.initializers.ones
        activations = {}

        x = images.astype(self.dtype)
        x = activations["stem"] = self.stem.layers(x, self.width, norm, self.dtype)
        for stage, blocks in enumerate(self.stage_sizes, start=1):
            for index in range(1, blocks + 1):
                x = self.block(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 1 else 1,
                    shortcut=self.shortcut,
                    norm=norm,
                    last_scale_init=scale_init,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{index}",
                )(x)
            activations[f"stage{stage}"] = x
        x = activations["pre_logits"] = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        logits = activations["logits"] = nn.Dense(self.num_classes, dtype=jnp.float32, name="fc")(x)
        return (logits, activations) if features else logits


def check_images(images: jax.Array, smallest: int) -> None:
    """Raise `UserError` unless `images` is a float batch (B, H, W, 1 or 3) of at least `smallest` pixels a side."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"images: expected (batch, height, width, channels) with 1 or 3 channels, found shape {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images: expected normalised floating point, found {images.dtype}; see resnet_jax.load_data")
    if min(images.shape[1:3]) < smallest:
        raise UserError(
            f"images: {images.shape[1]}x{images.shape[2]} is too small for this model's strides; the smallest is "
            f"{smallest}x{smallest}. Try the stem for small images (model.stem=small) or larger images "
            "(data.image_size)"
        )


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


def _imagenet_net(stage_sizes, block, shortcut=layers.SHORTCUTS["B"]):
    return functools.partial(
        ResNet, stage_sizes=stage_sizes, block=block, stem=layers.IMAGENET_STEM, shortcut=shortcut, width=64
    )


# Table 1 of the paper; 200 from He et al. 2016 (arXiv:1603.05027). Basic blocks have no 1x1 convolution that could
# take the stride: resnet18_v1 and resnet34_v1 are resnet18 and resnet34.
IMAGENET_MODELS = {
    "resnet18": _imagenet_net((2, 2, 2, 2), BasicBlock),
    "resnet34": _imagenet_net((3, 4, 6, 3), BasicBlock),
    "resnet50": _imagenet_net((3, 4, 6, 3), BottleneckBlock),
    "resnet101": _imagenet_net((3, 4, 23, 3), BottleneckBlock),
    "resnet152": _imagenet_net((3, 8, 36, 3), BottleneckBlock),
    "resnet200": _imagenet_net((3, 24, 36, 3), BottleneckBlock),
    "resnet18_v1": _imagenet_net((2, 2, 2, 2), BasicBlock),
    "resnet34_v1": _imagenet_net((3, 4, 6, 3), BasicBlock),
    "resnet50_v1": _imagenet_net((3, 4, 6, 3), BottleneckBlockV1),
    "resnet101_v1": _imagenet_net((3, 4, 23, 3), BottleneckBlockV1),
    "resnet152_v1": _imagenet_net((3, 8, 36, 3), BottleneckBlockV1),
    "resnet200_v1": _imagenet_net((3, 24, 36, 3), BottleneckBlockV1),
    "plain18": _imagenet_net((2, 2, 2, 2), BasicBlock, layers.no_shortcut),
    "plain34": _imagenet_net((3, 4, 6, 3), BasicBlock, layers.no_shortcut),
}
