"""Convolutions and poolings.

A conv is a function with the arguments of `conv2d` that makes a layer, (B, H, W, C) to (B, H / stride, W / stride,
features). It is called inside a module's `@nn.compact` method, so that its parameters belong to that module under the
given name. Stems, blocks, projections and VGG nets use the same.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# He et al. 2015, "Delving Deep into Rectifiers", section 2.2; `fan_out` as in the released ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def canonical_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: Sequence[tuple[int, int]]
) -> tuple[jax.Array, jax.Array]:
    """Gradients of a convolution by its input and its kernel, as convolutions of NHWC with HWIO.

    XLA's fast code for CPUs takes these layouts alone, and brings convolutions into them in the entry computation of a
    program (its pass ConvCanonicalization), not in the body of a loop, where JAX's gradients are 25 times slower.

    Args:
      x: input (B, H, W, C).
      kernel: kernel (h, w, C, features); the convolution has stride 1, no groups and no dilation.
      gradient: gradient of the output (B, H', W', features).
      padding: (low, high) of height and width.
    """
    reach = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape[:2], padding, strict=True)]
    # XLA transposes a reversed array three times as slowly, so the smaller one is reversed: the kernel, if the number
    # of examples is a symbol, as in exports.
    if isinstance(gradient.size, int) and gradient.size <= kernel.size:
        reach = [(high, low) for low, high in reach]
        by_input = _convolution(gradient[:, ::-1, ::-1], kernel.transpose(0, 1, 3, 2), reach)[:, ::-1, ::-1]
    else:
        by_input = _convolution(gradient, kernel[::-1, ::-1].transpose(0, 1, 3, 2), reach)
    # Examples take the place of channels, and those of examples: a kernel as large as the image.
    by_kernel = _convolution(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
    return by_input, by_kernel.transpose(1, 2, 0, 3)


def _convolution(x: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_dot(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    x = x[:, :: strides[0], :: strides[1]]
    rows = x.reshape(-1, x.shape[-1])  # in four dimensions the kernel's gradient would copy its operands, transposed
    return (rows @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def _is_seen_whole(sides: Sequence[int], kernel: jax.Array, padding: Sequence[tuple[int, int]]) -> bool:
    taps = zip(sides, kernel.shape[:2], padding, strict=True)
    return all(side <= min(low, high) + 1 and low + high + 1 == size for side, size, (low, high) in taps)


def _by_matrix(x: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    height, width, channels = x.shape[1:]
    (top, _), (left, _) = padding
    rows = jnp.stack([kernel[top - row :][:height] for row in range(height)], axis=1)
    taps = jnp.stack([rows[:, :, left - column :][:, :, :width] for column in range(width)], axis=3)
    # From (row, column, channel) of the input to those of the output.
    matrix = taps.transpose(0, 2, 4, 1, 3, 5).reshape(height * width * channels, -1)
    return (x.reshape(-1, len(matrix)) @ matrix).reshape(-1, height, width, kernel.shape[-1])


def varying_as(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, said to vary over the device axes of a `jax.shard_map` that x varies over, as a custom gradient must."""
    axes = tuple(jax.typeof(x).manual_axis_type.varying - jax.typeof(value).manual_axis_type.varying)
    return lax.pcast(value, axes, to="varying") if axes else value


def _pullback(function: Callable) -> Callable:
    return lambda x, kernel, gradient: jax.vjp(function, x, kernel)[1](gradient)


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding, **dimensions) -> jax.Array:
    """`lax.conv_general_dilated` of NHWC with HWIO, with three other forms on CPUs.

    1x1 convolutions are dots there, after the stride: as convolutions XLA's CPU backend would take the gradient of
    their kernels from transposed activations. So are those whose kernel sees the whole image at each pixel, like 3x3 on
    2x2 pixels (5 times as fast). Other gradients without stride or groups are `canonical_gradients`.
    """
    convolution = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **dimensions)
    dilations = [dimensions.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation")]
    if kernel.shape[2] != x.shape[-1] or any(tuple(dilation) != (1, 1) for dilation in dilations):
        return convolution(x, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        on_cpu = functools.partial(_by_dot, strides=strides)
    elif tuple(strides) != (1, 1):
        return convolution(x, kernel)
    elif _is_seen_whole(x.shape[1:3], kernel, padding):
        on_cpu = functools.partial(_by_matrix, padding=padding)
    else:
        on_cpu = convolution
    by_canonical = functools.partial(canonical_gradients, padding=padding)
    gradients_on_cpu = by_canonical if on_cpu is convolution else _pullback(on_cpu)

    @jax.custom_vjp
    def convolved(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolution)

    def gradients(saved, gradient):
        return lax.platform_dependent(*saved, gradient, cpu=gradients_on_cpu, default=_pullback(convolution))

    convolved.defvjp(lambda x, kernel: (convolved(x, kernel), (x, kernel)), gradients)
    return convolved(x, varying_as(x, kernel))


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
