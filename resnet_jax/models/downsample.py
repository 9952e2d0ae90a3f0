"""Downsamplings, ways in which a strided convolution shrinks its input: functions of a conv that give a conv."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def blur(x: jax.Array) -> jax.Array:
    """Each channel of (B, H, W, C) under the filter (1, 2, 1) x (1, 2, 1) / 16, zero-padded by one pixel."""
    for axis in (1, 2):
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
        # Sums, as they are several times faster than a convolution of single channels.
        before, here, after = (jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3))
        x = (before + 2 * here + after) / 4
    return x


def stride_in_conv(conv: Callable) -> Callable:
    """The conv itself, which strides over its input."""
    return conv


def blur_before_stride(conv: Callable) -> Callable:
    """`conv`, of the blurred input where it strides: BlurPool (Zhang 2019, arXiv:1904.11486).

    In the paper the blur follows a convolution that strides no more; here it comes before the strided one, which costs
    a quarter of that (ffcv-imagenet, `use_blurpool`; Composer, `blur_first`).
    """

    def blurred_conv(features: int, kernel: int, stride: int = 1, *args, **settings):
        layer = conv(features, kernel, stride, *args, **settings)
        return layer if stride == 1 else lambda x: layer(blur(x))

    return blurred_conv


def pad_as_tensorflow(conv: Callable) -> Callable:
    """`conv`, padded by "SAME" where it strides: an image of even size by one pixel less at its top and left."""

    def padded_conv(features: int, kernel: int, stride: int = 1, *args, **settings):
        padding = {"padding": "SAME"} if stride > 1 else {}
        return conv(features, kernel, stride, *args, **padding, **settings)

    return padded_conv


# For the convolutions of blocks. A stem's stays as it is: ffcv blurs no input of fewer than 16 channels.
DOWNSAMPLES = {"stride": stride_in_conv, "blur": blur_before_stride, "same": pad_as_tensorflow}
