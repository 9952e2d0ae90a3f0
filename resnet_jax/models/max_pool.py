"""Max-pooling."""

import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_Padding = Sequence[tuple[int, int]]


def _gradient_by_places(
    x: jax.Array, maxima: jax.Array, gradient: jax.Array, *, size: int, padding: _Padding
) -> tuple[jax.Array]:
    places = list(itertools.product(range(size), repeat=2))
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    first = jnp.full(maxima.shape, len(places), jnp.uint8)
    for index, (row, column) in reversed(list(enumerate(places))):
        values = padded[:, row::2, column::2][:, : maxima.shape[1], : maxima.shape[2]]
        first = jnp.where(values == maxima, jnp.uint8(index), first)

    halves = [-(-(x.shape[axis] + sum(padding[axis - 1])) // 2) for axis in (1, 2)]

    def at_parity(*parity: int) -> jax.Array:
        """The gradient at every second row and column of the padded input, from `parity` on."""
        total = 0
        for index, place in enumerate(places):
            if tuple(offset % 2 for offset in place) == parity:
                low = [offset // 2 for offset in place]
                pads = [(n, half - n - count, 0) for n, half, count in zip(low, halves, maxima.shape[1:3], strict=True)]
                zero = jnp.zeros((), gradient.dtype)
                total += lax.pad(jnp.where(first == index, gradient, zero), zero, [(0, 0, 0), *pads, (0, 0, 0)])
        return total

    rows = [jnp.stack([at_parity(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    padded_gradient = jnp.stack(rows, axis=2).reshape(-1, 2 * halves[0], 2 * halves[1], x.shape[-1])
    (top, _), (left, _) = padding
    return (padded_gradient[:, top : top + x.shape[1], left : left + x.shape[2]],)


def max_pool(x: jax.Array, size: int, padding: str | _Padding = "VALID") -> jax.Array:
    """`flax.linen.max_pool` of (B, H, W, C) by square windows with stride 2.

    As there, the gradient of a window goes to its first maximum, row by row. On CPUs its place is found by comparisons,
    as XLA's select-and-scatter is four times slower there.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (size, size), (2, 2), padding)
    pool = functools.partial(nn.max_pool, window_shape=(size, size), strides=(2, 2), padding=padding)

    def gradients(saved, gradient):
        return lax.platform_dependent(
            *saved,
            gradient,
            cpu=functools.partial(_gradient_by_places, size=size, padding=padding),
            default=lambda x, maxima, gradient: jax.vjp(pool, x)[1](gradient),
        )

    def pooled_and_saved(x):
        maxima = pool(x)
        return maxima, (x, maxima)

    pooled = jax.custom_vjp(pool)
    pooled.defvjp(pooled_and_saved, gradients)
    return pooled(x)
