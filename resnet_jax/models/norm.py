"""Norms: functions `(*, name, train, dtype, scale_init)` that make a layer of activations (..., channels).

Scale and shift are float32 parameters called "scale" and "bias"; the output has the given dtype.
"""

import functools
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import UserError
from resnet_jax.models.conv import varying_as


def _per_channel(x: jax.Array, rank: int) -> jax.Array:
    return x.reshape((1,) * (rank - 1) + (-1,))


def _normalize(x, mean, variance, scale, bias, epsilon, dtype):
    factor = scale * lax.rsqrt(variance + epsilon)
    mean, factor, bias = (_per_channel(each, x.ndim) for each in (mean, factor, bias))
    return ((x - mean) * factor + bias).astype(dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def _sum_by_dot(x: jax.Array) -> jax.Array:
    rows = _wide(x).reshape(-1, x.shape[-1])
    parts = rows.reshape(math.gcd(len(rows), 8), -1, rows.shape[-1]).sum(0)
    return jnp.ones(len(parts), parts.dtype) @ parts


def channel_sum(x: jax.Array) -> jax.Array:
    """Sum over all axes but the last: (..., channels) to (channels,), float32 or, of float64, float64.

    XLA's CPU backend sums over leading axes one channel after another. A sum over eight parts, in which neighbours in
    memory stay neighbours, and a dot are 4 to 25 times as fast there.
    """
    return lax.platform_dependent(x, cpu=_sum_by_dot, default=lambda x: jnp.sum(_wide(x), range(x.ndim - 1)))


def _itself(tree):
    return tree


def _normalize_by_batch(x, scale, bias, epsilon, dtype, average):
    count = x.size // x.shape[-1]
    sums = channel_sum(x), channel_sum(lax.square(_wide(x)))
    mean, mean_square = average(jax.tree.map(lambda total: total / count, sums))
    variance = jnp.maximum(0, mean_square - lax.square(mean))
    return _normalize(x, mean, variance, scale, bias, epsilon, dtype), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype, average: Callable
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation in training (Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 1).

    Args:
      x: (..., channels).
      scale, bias: float32 (channels,).
      epsilon: number added to the variance.
      dtype: dtype of the output; everything between is float32.
      average: mean of a tree over devices, or the identity.

    Returns:
      (output like x, mean, variance): the variance is that of the batch, without Bessel's correction. No gradient goes
      through mean and variance as outputs, only through their part in the first output.
    """
    return _normalize_by_batch(x, scale, bias, epsilon, dtype, average)


def _normalized_and_saved(x, scale, bias, *settings):
    outputs = _normalize_by_batch(x, scale, bias, *settings)
    return outputs, (x, scale, *outputs[1:])


def _normalize_by_batch_gradients(epsilon, dtype, average, saved, gradients):
    x, scale, mean, variance = saved
    gradient, count = _wide(gradients[0]), x.size // x.shape[-1]
    deviation = jnp.sqrt(variance + epsilon)
    centered = x - _per_channel(mean, x.ndim)
    sums = channel_sum(gradient), channel_sum(gradient * centered)
    mean_gradient, slope = average((sums[0] / count, sums[1] / (count * (variance + epsilon))))
    straightened = gradient - _per_channel(mean_gradient, x.ndim) - centered * _per_channel(slope, x.ndim)
    # The division comes last: XLA repeats what is cheap in each consumer, here the transposition for the gradient of a
    # kernel, where it is slow; a division it does once.
    x_gradient = straightened * _per_channel(scale, x.ndim) / _per_channel(deviation, x.ndim)
    return x_gradient.astype(x.dtype), sums[1] / deviation, sums[0]


normalize_by_batch.defvjp(_normalized_and_saved, _normalize_by_batch_gradients)


class BatchNorm(nn.Module):
    """`flax.linen.BatchNorm`, with less work in its gradient and faster sums on CPUs.

    Parameters "scale" and "bias" and running statistics "mean" and "var" are float32 (channels,).
    """

    momentum: float
    epsilon: float
    dtype: jnp.dtype
    scale_init: Callable
    axis_name: str | None = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """The normalised (..., channels), in `dtype`."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        if use_running_average:
            statistics = running_mean.value, running_variance.value
            return _normalize(x, *statistics, scale, bias, self.epsilon, self.dtype)
        average = _itself
        if self.axis_name is not None and not self.is_initializing():
            average = functools.partial(lax.pmean, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        scale, bias = varying_as(x, scale), varying_as(x, bias)
        x, mean, variance = normalize_by_batch(x, scale, bias, self.epsilon, self.dtype, average)
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_variance.value = self.momentum * running_variance.value + (1 - self.momentum) * variance
        return x


def batch_norm(
    *,
    name: str,
    train: bool,
    dtype,
    scale_init=nn.initializers.ones,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None,
    frozen: str | None = None,
) -> Callable[[jax.Array], jax.Array]:
    """Batch normalisation. `momentum` is the share of the old running value (torch's 0.1 is 0.9 here).

    With `axis_name`, batch statistics are averaged over that device axis, or over its `axis_index_groups`. Norms of
    which scale and shift have paths in which the regular expression `frozen` occurs stay as in evaluation: their
    running statistics stand still.
    """
    layer = BatchNorm(momentum, epsilon, dtype, scale_init, axis_name, axis_index_groups, name=name)

    def stands_still() -> bool:
        path = "/".join(layer.path)
        return frozen is not None and all(re.search(frozen, f"{path}/{leaf}") for leaf in ("scale", "bias"))

    return lambda x: layer(x, use_running_average=not train or stands_still())


def group_norm(
    *, name: str, train: bool, dtype, scale_init=nn.initializers.ones, groups: int = 32, epsilon: float = 1e-5
) -> Callable[[jax.Array], jax.Array]:
    """Group normalisation (Wu & He 2018, arXiv:1803.08494, equations 1 to 7): no batch, so `train` changes nothing.

    Raises:
      UserError: when called with channels that `groups` does not divide.
    """
    normalized = nn.GroupNorm(num_groups=groups, epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)

    def checked(x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if channels % groups:
            raise UserError(
                f"norm.groups: expected a divisor of the {channels} channels of {'/'.join(normalized.path)}, "
                f"found {groups}; try {math.gcd(channels, groups)}"
            )
        return normalized(x)

    return checked


class Shift(nn.Module):
    """Adds a learned number to each channel, zero at first. `bias` (channels,) is float32, the output has `dtype`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x.astype(self.dtype) + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def no_norm(*, name: str, train: bool, dtype, scale_init=nn.initializers.ones) -> Shift:
    """No normalisation, but the shift that it would have brought: the net whose convolutions have biases.

    Raises:
      UserError: a `scale_init` other than ones, as there is no scale.
    """
    if scale_init is not nn.initializers.ones:
        raise UserError(
            "model.zero_init_last_scale: without norms these blocks have no scale that could start at zero; "
            "try model.shortcut=skipinit"
        )
    return Shift(dtype=dtype, name=name)


NORMS = {"batch": batch_norm, "group": group_norm, "none": no_norm}


class Response(nn.Module):
    """Hands its input on; it can be looked at in the collection "responses"."""

    @nn.compact
    def __call__(self, x: jax.Array, name: str) -> jax.Array:
        if not self.is_initializing():  # where every collection is kept
            self.sow("responses", name, x)
        return x


def announced(norm: Callable) -> Callable:
    """The norm, its output shown in the collection "responses": for norms on the main path of a net.

    (He et al. 2015, Figure 7, call the output of a norm, before the nonlinearity or the addition, a layer's response.)
    """

    def announced_norm(*, name: str, **settings):
        layer, response = norm(name=name, **settings), Response(name=f"{name}_response")
        return lambda x: response(layer(x), name)

    return announced_norm
