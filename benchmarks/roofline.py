"""Rooflines: how fast a device could at best train a net, or run it, by its peak FLOP/s and its memory's bandwidth.

Peaks are those of `resnet_jax.planning.chips`.

FLOP are twice the multiply-adds of convolutions and dense layers, and thrice that in training: the gradient of the
input and that of the weights cost as much as the forward pass.

Bytes go by a rule of typical fusion: convolutions are calls of a library, elementwise work between two of them is one
pass over memory, and nothing stays in a cache. The 16 passes over each convolution's output y in training:
  forward (5): the convolution writes y; the statistics read y; norm and ReLU read y and write z; the next convolution
    reads z;
  backward (11): the next convolution reads z again, for the gradient of its weights, and writes the gradient dz; the
    sums of the norm's gradient read dz, y and z (the ReLU's mask), and so does the pass after them, which writes dy;
    the convolution reads dy twice, for the gradients of its input and its weights.
Each sum of a block adds 5 passes: forward, the shortcut is read; backward, the gradient of the shortcut is written and
read, the mask is read, and the sum of the two gradients is written. A pooling adds 5 over its output: it is written,
read twice, and its gradient is written and read. Inference with folded norms needs 2 passes over y, and 1 more for each
sum. Images are read twice in training. Weights, which a batch has in common, are left out: the bound is one for large
batches.

For ResNet-50 at 224 in bfloat16 this makes 413 MB per image in training, or 8,100 images/s on an H100.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.profile import Layer, profile, totals
from resnet_jax.planning.chips import Peak, peak_of

_CONVOLUTION_PASSES, _SUM_PASSES, _POOL_PASSES, _IMAGE_PASSES = (16, 2), (5, 1), (5, 2), (2, 1)  # training, inference


def training_seconds(model: nn.Module, image_shape: tuple[int, int, int], dtype: str) -> float | None:
    """Seconds that the device needs at least to train on one image, or None for a device without published peaks.

    Args:
      model: one of `resnet_jax.models`.
      image_shape: (h, w, c).
      dtype: "float32" or "bfloat16", of the computation.
    """
    return _bound(model, image_shape, dtype, training=True)


def inference_seconds(model: nn.Module, image_shape: tuple[int, int, int], dtype: str) -> float | None:
    """Seconds that the device needs at least for the logits of one image, norms folded; otherwise as in training."""
    return _bound(model, image_shape, dtype, training=False)


def flop(layers: list[Layer], training: bool) -> int:
    """FLOP of one image, in training with both gradients."""
    _, multiply_adds, _ = totals(layers)
    return 2 * multiply_adds * (3 if training else 1)


def traffic(layers: list[Layer], image_shape: tuple[int, int, int], itemsize: int, training: bool) -> int:
    """Bytes of memory traffic of one image, by the rule in this module's docstring.

    Args:
      layers: from `profile`.
      image_shape: (h, w, c).
      itemsize: bytes of a number.
      training: with the backward pass.
    """
    convolutions = [layer for layer in layers if layer.multiply_adds and len(layer.output_shape) == 3]
    # A block's sum has the shape of its last convolution, and the layers of a block have its name before theirs.
    sums = {layer.name.rpartition("/")[0]: layer for layer in convolutions if layer.is_on_main_path}
    sums.pop("", None)
    pools = [layer for layer in layers if not layer.parameters and len(layer.output_shape) == 3]
    phase = 0 if training else 1
    passes = (
        (convolutions, _CONVOLUTION_PASSES[phase]),
        (sums.values(), _SUM_PASSES[phase]),
        (pools, _POOL_PASSES[phase]),
    )
    numbers = sum(count * math.prod(layer.output_shape) for found, count in passes for layer in found)
    return itemsize * (numbers + _IMAGE_PASSES[phase] * math.prod(image_shape))


def device_peak() -> Peak | None:
    """The limits of the device at hand; None if they are not known."""
    return peak_of(jax.devices()[0])


def _bound(model, image_shape, dtype, *, training) -> float | None:
    peak = device_peak()
    if peak is None:
        return None
    layers = profile(model, image_shape)
    moved = traffic(layers, image_shape, jnp.dtype(dtype).itemsize, training)
    return max(flop(layers, training) / peak.flops[dtype], moved / peak.bandwidth)
