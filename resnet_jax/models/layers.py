"""The values that a residual network is put together from: convolution, norm, shortcuts and stems.

Each is a plain function called inside a module's `@nn.compact` method, so that its parameters belong to that module
and keep the names everyone knows (`conv1`, `bn1`, `downsample_conv`).
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. 2015, "Delving Deep into Rectifiers", section 2.2; `fan_out` as in the released ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(features: int, kernel: int, stride: int = 1, *, dtype, name: str) -> nn.Conv:
    """A square convolution without bias, zero-padded by `kernel // 2` on every side (never "SAME")."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2,
        use_bias=False,
        kernel_init=he_normal_fan_out,
        dtype=dtype,
        name=name,
    )


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
) -> nn.BatchNorm:
    """Batch normalisation. `momentum` is the share of the old running value (torch's 0.1 is 0.9 here).

    With `axis_name`, batch statistics are averaged over that device axis, or over its `axis_index_groups`.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=scale_init,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        name=name,
    )


# --- shortcuts: (block input, branch output, stride, norm, dtype) -> the two addends (skip, branch) ---
# He et al. 2015, section 3.3.


def no_shortcut(x, branch, stride, norm, dtype):
    """The plain twin: the branch alone."""
    return jnp.zeros_like(branch), branch


def zero_pad_shortcut(x, branch, stride, norm, dtype):
    """Option A: identity; where shapes differ, every `stride`-th pixel and zeros for the new channels."""
    x = x[:, ::stride, ::stride, :]
    new_channels = branch.shape[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, new_channels))), branch


def projection_shortcut(x, branch, stride, norm, dtype):
    """Option C: a 1x1 convolution and a norm in every block."""
    x = conv(branch.shape[-1], 1, stride, dtype=dtype, name="downsample_conv")(x)
    return norm(name="downsample_bn")(x), branch


def projection_where_shapes_differ_shortcut(x, branch, stride, norm, dtype):
    """Option B: identity; a projection where shapes differ."""
    if stride == 1 and x.shape == branch.shape:
        return x, branch
    return projection_shortcut(x, branch, stride, norm, dtype)


SHORTCUTS = {
    "none": no_shortcut,
    "A": zero_pad_shortcut,
    "B": projection_where_shapes_differ_shortcut,
    "C": projection_shortcut,
}


# --- stems ---


def _imagenet_stem(x, width, norm, dtype):
    x = conv(width, 7, 2, dtype=dtype, name="conv1")(x)
    x = nn.relu(norm(name="bn1")(x))
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def _small_image_stem(x, width, norm, dtype):
    x = conv(width, 3, dtype=dtype, name="conv1")(x)
    return nn.relu(norm(name="bn1")(x))


@dataclasses.dataclass(frozen=True)
class Stem:
    """The layers before the first stage, and how much they shrink the image."""

    layers: Callable[..., jax.Array]
    stride: int


IMAGENET_STEM = Stem(_imagenet_stem, stride=4)  # 7x7/2 and a 3x3/2 max-pool
SMALL_IMAGE_STEM = Stem(_small_image_stem, stride=1)  # 3x3/1, for images of about 32x32

STEMS = {"imagenet": IMAGENET_STEM, "small": SMALL_IMAGE_STEM}
