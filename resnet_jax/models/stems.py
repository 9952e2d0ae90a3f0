"""Stems, the layers before the first stage, and the images that a net takes."""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.models.conv import Pool


@dataclasses.dataclass(frozen=True)
class Stem:
    """The layers before the first stage, and how much they shrink the image.

    Attributes:
      layers: function `(images, width, *, conv, norm)`, (B, H, W, channels) to (B, H / stride, W / stride, width);
        `conv(features, kernel, stride, name=...)` and `norm(name=...)` make layers.
      stride: pixels of the image, along a side, for each pixel of the first stage.
    """

    layers: Callable[..., jax.Array]
    stride: int


def imagenet_layers(images, width, *, conv, norm):
    """7x7 convolution with stride 2, norm, ReLU and a 3x3 max-pooling with stride 2 (He et al. 2015, Table 1)."""
    x = conv(width, 7, 2, name="conv1")(images)
    x = nn.relu(norm(name="bn1")(x))
    max_pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return Pool(max_pool, name="max_pool")(x)


def small_image_layers(images, width, *, conv, norm):
    """3x3 convolution, norm and ReLU, for images of about 32x32 (He et al. 2015, section 4.2)."""
    x = conv(width, 3, name="conv1")(images)
    return nn.relu(norm(name="bn1")(x))


IMAGENET_STEM = Stem(imagenet_layers, stride=4)
SMALL_IMAGE_STEM = Stem(small_image_layers, stride=1)

STEMS = {"imagenet": IMAGENET_STEM, "small": SMALL_IMAGE_STEM}


def warn_if_stem_disagrees(stem: Stem, images_shape: tuple[int, ...]) -> None:
    """Warn of a stem made for images of quite another size."""
    size = min(images_shape[1:3])
    if stem.stride >= 4 and size < 64:
        warnings.warn(
            f"the stem shrinks {size}x{size} images to {-(-size // stem.stride)}x{-(-size // stem.stride)} before the "
            "first stage, which costs much accuracy; use the stem for small images: model.stem=small",
            stacklevel=2,
        )
    if stem.stride == 1 and size >= 128:
        warnings.warn(
            f"the stem keeps {size}x{size} pixels in the first stage, 16 times the work of the ImageNet stem; use "
            "model.stem=imagenet",
            stacklevel=2,
        )


def check_images(images: jax.Array, smallest: int, advice: str) -> None:
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
            f"{smallest}x{smallest}. Try {advice}"
        )
