"""Convolutions and poolings.

A conv is a function with the arguments of `conv2d` that makes a layer, (B, H, W, C) to (B, H / stride, W / stride,
features). It is called inside a module's `@nn.compact` method, so that its parameters belong to that module under the
given name. Stems, blocks, projections and VGG nets use the same.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

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


class Pool(nn.Module):
    """A pooling, as a layer of its own: a profile shows it.

    Attributes:
      function: from (B, H, W, C) to an array with fewer positions.
    """

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of the input."""
        return self.function(x)
