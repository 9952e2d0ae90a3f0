"""VGG nets (Simonyan & Zisserman 2015, arXiv:1409.1556, Table 1) as in torchvision: with and without batch norm."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.activation import relu
from resnet_jax.models.conv import Pool, conv2d
from resnet_jax.models.max_pool import max_pool
from resnet_jax.models.norm import announced, batch_norm
from resnet_jax.models.stems import check_images


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with a max-pooling after each, then three dense layers.

    Attributes:
      num_classes: size of the logits.
      stage_sizes: convolutions per stage, which have 64, 128, 256, 512 and 512 channels.
      dtype: precision of the computation. Parameters are float32 always.
      conv: one of the functions in `CONVS`.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    dtype: jnp.dtype = jnp.float32
    conv: Callable = conv2d

    @property
    def smallest_image(self) -> int:
        """The smallest height or width that leaves a pixel after the five poolings."""
        return 2 ** len(self.stage_sizes)

    def normalized(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """Input of the ReLU after a convolution: its output, as there is no norm."""
        return x

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False):
        """Logits of normalised images.

        Args:
          images: (batch, height, width, 1 or 3), floating point, already normalised.
          train: drop half of the activations after `fc1` and `fc2` (pass `rngs={"dropout": key}`); and batch norms, if
            any, normalise by the batch and update `batch_stats`.
          features: also return a dict of activations: `stage1` to `stage5`, `pre_logits`, `logits`.

        Returns:
          float32 logits (batch, num_classes), or `(logits, activations)`.

        Raises:
          UserError: images of another rank, dtype or number of channels, or too small for the poolings.
        """
        check_images(images, self.smallest_image, "larger images (data.image_size)")
        activations = {}

        x = images.astype(self.dtype)
        for stage, (convs, width) in enumerate(zip(self.stage_sizes, (64, 128, 256, 512, 512), strict=True), start=1):
            for index in range(1, convs + 1):
                name = f"stage{stage}_conv{index}"
                x = self.conv(width, 3, use_bias=True, dtype=self.dtype, name=name)(x)
                x = relu(self.normalized(x, f"stage{stage}_bn{index}", train))
            x = activations[f"stage{stage}"] = Pool(functools.partial(max_pool, size=2), name=f"stage{stage}_pool")(x)
        x = Pool(functools.partial(adaptive_average_pool, size=7), name="pool")(x)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc1", "fc2"):
            x = relu(_dense(4096, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        x = activations["pre_logits"] = x.astype(jnp.float32)
        logits = activations["logits"] = _dense(self.num_classes, dtype=jnp.float32, name="fc")(x)
        return (logits, activations) if features else logits


class NormalizedVGG(VGG):
    """A VGG net with a norm between every convolution, which keeps its bias, and its ReLU.

    Attributes:
      norm: one of the functions in `NORMS`.
    """

    norm: Callable = batch_norm

    def normalized(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return announced(self.norm)(name=name, train=train, dtype=self.dtype)(x)


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """(B, H, W, C) to (B, size, size, C); bin i is the mean of pixels floor(i H / size) to ceil((i+1) H / size).

    The rule of torch.nn.AdaptiveAvgPool2d: bins overlap, or repeat pixels, where `size` does not divide H.
    """
    for axis in (1, 2):
        pixels = x.shape[axis]
        bins = [(i * pixels // size, -(-(i + 1) * pixels // size)) for i in range(size)]
        x = jnp.stack([jax.lax.slice_in_dim(x, *ends, axis=axis).mean(axis) for ends in bins], axis)
    return x


def _dense(features, *, dtype, name):
    return nn.Dense(features, kernel_init=nn.initializers.normal(0.01), dtype=dtype, name=name)


# Configurations A, B, D and E.
_STAGE_SIZES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

VGG_MODELS = {
    **{f"vgg{depth}": functools.partial(VGG, stage_sizes=sizes) for depth, sizes in _STAGE_SIZES.items()},
    **{f"vgg{depth}_bn": functools.partial(NormalizedVGG, stage_sizes=sizes) for depth, sizes in _STAGE_SIZES.items()},
}
