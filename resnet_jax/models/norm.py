"""Norms: functions `(*, name, train, dtype, scale_init)` that make a layer of activations (..., channels).

Scale and shift are float32 parameters called "scale" and "bias"; the output has the given dtype.
"""

import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError


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
    layer = nn.BatchNorm(
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=scale_init,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        name=name,
    )

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


def identity_norm(*, name: str) -> Callable[[jax.Array], jax.Array]:
    """In the place of a norm that a network does not have: no parameters at all."""
    return lambda x: x


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
