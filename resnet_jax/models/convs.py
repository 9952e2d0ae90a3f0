"""CONVS, the table of convolutions: `conv2d` and its variants."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.conv import conv2d, convolve


def biased_conv2d(
    *args, biases: tuple[str, ...] = ("conv1", "conv2", "conv3", "downsample_conv"), **settings
) -> nn.Conv:
    """`conv2d`, with a bias in the layers whose names are in `biases`."""
    use_bias = settings.pop("use_bias", False) or settings["name"] in biases
    return conv2d(*args, use_bias=use_bias, **settings)


def standardized_conv2d(
    *args, standardize_by: str = "variance", standardize_epsilon: float = 1e-8, **settings
) -> nn.Conv:
    """`conv2d`, its kernel standardised: mean 0 and variance 1 for each output (Qiao et al. 2019, arXiv:1903.10520).

    The small number is added to the variance (timm, BiT) or, with `standardize_by="deviation"`, to the standard
    deviation (`models/bit.py` of big_vision).
    """

    def convolve_standardized(x, kernel, *geometry, **dimensions):
        weights = kernel.astype(jnp.float32)
        centered = weights - weights.mean((0, 1, 2), keepdims=True)
        variance = jnp.mean(centered**2, (0, 1, 2), keepdims=True)
        if standardize_by == "variance":
            weights = centered * jax.lax.rsqrt(variance + standardize_epsilon)
        else:
            weights = centered / (jnp.sqrt(variance) + standardize_epsilon)
        return convolve(x, weights.astype(kernel.dtype), *geometry, **dimensions)

    return conv2d(*args, conv_general_dilated=convolve_standardized, **settings)


CONVS = {"conv2d": conv2d, "biased": biased_conv2d, "standardized": standardized_conv2d}
