"""Stems, the layers before the first stage, and the images that a net takes."""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError
from resnet_jax.models.activation import relu
from resnet_jax.models.conv import Pool
from resnet_jax.models.max_pool import max_pool


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


def _max_pool(x: jax.Array, padding: str = "border") -> jax.Array:
    """3x3 max-pooling with stride 2. The border of one pixel is never the maximum ("border"), or it is zero ("zero",
    BiT and Keras); or images of even size have one at the bottom and right alone ("same", TensorFlow)."""
    if padding == "zero":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    paddings = {"border": ((1, 1), (1, 1)), "zero": "VALID", "same": "SAME"}
    return Pool(functools.partial(max_pool, size=3, padding=paddings[padding]), name="max_pool")(x)


def imagenet_layers(images, width, *, conv, norm, conv_padding="border", pool_padding="border"):
    """7x7 convolution with stride 2, norm, ReLU and a 3x3 max-pooling with stride 2 (He et al. 2015, Table 1)."""
    padding = {"padding": "SAME"} if conv_padding == "same" else {}
    x = conv(width, 7, 2, name="conv1", **padding)(images)
    return _max_pool(relu(norm(name="bn1")(x)), pool_padding)


def bare_imagenet_layers(images, width, *, conv, norm, pool_padding="border", use_bias=False):
    """7x7 convolution and max-pooling alone, for pre-activation nets whose first block begins with a norm."""
    return _max_pool(conv(width, 7, 2, use_bias=use_bias, name="conv1")(images), pool_padding)


def deep_layers(images, width, *, conv, norm):
    """Three 3x3 convolutions, the first with stride 2, for the 7x7 one (ResNet-C; He et al. 2019, arXiv:1812.01187)."""
    x = images
    for index, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), start=1):
        x = conv(features, 3, stride, name=f"conv{index}")(x)
        x = relu(norm(name=f"bn{index}")(x))
    return _max_pool(x)


def small_image_layers(images, width, *, conv, norm):
    """3x3 convolution, norm and ReLU, for images of about 32x32 (He et al. 2015, section 4.2)."""
    x = conv(width, 3, name="conv1")(images)
    return relu(norm(name="bn1")(x))


def bare_small_image_layers(images, width, *, conv, norm, features=16):
    """3x3 convolution to `features` channels alone (Wide ResNets; Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""
    return conv(features, 3, name="conv1")(images)


IMAGENET_STEM = Stem(imagenet_layers, stride=4)
SMALL_IMAGE_STEM = Stem(small_image_layers, stride=1)

STEMS = {
    "imagenet": IMAGENET_STEM,
    "small": SMALL_IMAGE_STEM,  # resnet18 with it is known as "ResNet-18 on CIFAR"
    "deep": Stem(deep_layers, stride=4),
    "bare_imagenet": Stem(bare_imagenet_layers, stride=4),
    "bare_small": Stem(bare_small_image_layers, stride=1),
}


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
