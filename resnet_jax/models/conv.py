"""Convolutions, how a strided one shrinks its input, and poolings.

A conv is a function with the arguments of `conv2d` that makes a layer, (B, H, W, C) to (B, H / stride, W / stride,
features). It is called inside a module's `@nn.compact` method, so that its parameters belong to that module under the
given name. Stems, blocks, projections and VGG nets use the same.

A downsampling is a function of a conv that gives a conv.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. 2015, "Delving Deep into Rectifiers", section 2.2; `fan_out` as in the released ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv2d(
    features: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    *,
    name: str,
    dtype,
    kernel_init: Callable = he_normal_fan_out,
    bias_init: Callable = nn.initializers.zeros,
    padding: int | str | None = None,
    conv_general_dilated: Callable | None = None,
) -> nn.Conv:
    """A square convolution, zero-padded by `kernel // 2` on every side (never "SAME", unless `padding` says so)."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2 if padding is None else padding,
        conv_general_dilated=conv_general_dilated,
        feature_group_count=groups,
        use_bias=use_bias,
        bias_init=bias_init,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


def biased_conv2d(
    features: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    *,
    name: str,
    biases: tuple[str, ...] = ("conv1", "conv2", "conv3", "downsample_conv"),
    **settings,
) -> nn.Conv:
    """`conv2d`, with a bias in the layers whose names are in `biases`."""
    return conv2d(features, kernel, stride, groups, use_bias or name in biases, name=name, **settings)


def standardized_conv2d(
    *args, standardize_by: str = "variance", standardize_epsilon: float = 1e-8, **settings
) -> nn.Conv:
    """`conv2d`, its kernel standardised: mean 0 and variance 1 for each output (Qiao et al. 2019, arXiv:1903.10520).

    The small number is added to the variance (timm, BiT) or, with `standardize_by="deviation"`, to the standard
    deviation (`models/bit.py` of big_vision).
    """

    def convolve(x, kernel, *geometry, **dimensions):
        weights = kernel.astype(jnp.float32)
        centered = weights - weights.mean((0, 1, 2), keepdims=True)
        variance = jnp.mean(centered**2, (0, 1, 2), keepdims=True)
        if standardize_by == "variance":
            weights = centered * jax.lax.rsqrt(variance + standardize_epsilon)
        else:
            weights = centered / (jnp.sqrt(variance) + standardize_epsilon)
        return jax.lax.conv_general_dilated(x, weights.astype(kernel.dtype), *geometry, **dimensions)

    return conv2d(*args, conv_general_dilated=convolve, **settings)


CONVS = {"conv2d": conv2d, "biased": biased_conv2d, "standardized": standardized_conv2d}


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


class Pool(nn.Module):
    """A pooling, as a layer of its own: a profile shows it.

    Attributes:
      function: from (B, H, W, C) to an array with fewer positions.
    """

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of the input."""
        return self.function(x)
