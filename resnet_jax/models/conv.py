"""Convolutions and poolings.

A conv is a function with the arguments of `conv2d` that makes a layer, (B, H, W, C) to (B, H / stride, W / stride,
features). It is called inside a module's `@nn.compact` method, so that its parameters belong to that module under the
given name. Stems, blocks, projections and VGG nets use the same.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax import lax

# He et al. 2015, "Delving Deep into Rectifiers", section 2.2; `fan_out` as in the released ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _by_dot(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _gradients(function: Callable, x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    return jax.vjp(function, x, kernel)[1](gradient)


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding, **dimensions) -> jax.Array:
    """`lax.conv_general_dilated`, with two tricks for XLA's CPU backend.

    1x1 convolutions are dots there, after the stride: a convolution would compute the gradient of its kernel from
    transposed activations. And what gives the output's gradient is computed on its own: XLA would compute it in the
    order of that transposition.
    """
    convolution = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **dimensions)
    is_pointwise = kernel.shape[:2] == (1, 1) and kernel.shape[2] == x.shape[-1] and not any(map(any, padding))
    on_cpu = functools.partial(_by_dot, strides=strides) if is_pointwise else convolution

    @jax.custom_vjp
    def convolved(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolution)

    def gradients_on_cpu(x, kernel, gradient):
        return _gradients(on_cpu, x, kernel, lax.optimization_barrier(gradient))

    def gradients(saved, gradient):
        on_others = functools.partial(_gradients, convolution)
        return lax.platform_dependent(*saved, gradient, cpu=gradients_on_cpu, default=on_others)

    convolved.defvjp(lambda x, kernel: (convolved(x, kernel), (x, kernel)), gradients)
    return convolved(x, kernel)


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
    conv_general_dilated: Callable = convolve,
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
