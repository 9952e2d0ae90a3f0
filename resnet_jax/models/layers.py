"""The values that a network is put together from: convolutions, norms, shortcuts and stems.

Each is a plain function called inside a module's `@nn.compact` method, so that its parameters belong to that module
and keep the names everyone knows (`conv1`, `bn1`, `downsample_conv`).
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError

# He et al. 2015, "Delving Deep into Rectifiers", section 2.2; `fan_out` as in the released ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    dtype,
    name: str,
    use_bias: bool = False,
    bias_init: Callable = nn.initializers.zeros,
    kernel_init: Callable = he_normal_fan_out,
) -> nn.Conv:
    """A square convolution, zero-padded by `kernel // 2` on every side (never "SAME")."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2,
        use_bias=use_bias,
        bias_init=bias_init,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


def blur(x: jax.Array) -> jax.Array:
    """Each channel of (B, H, W, C) under the filter (1, 2, 1) x (1, 2, 1) / 16, zero-padded by one pixel."""
    for axis in (1, 2):
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
        # Sums, as they are several times faster than a convolution of single channels.
        before, here, after = (jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3))
        x = (before + 2 * here + after) / 4
    return x


def blurred_conv(features: int, kernel: int, stride: int = 1, **settings) -> Callable[[jax.Array], jax.Array]:
    """`conv`, of the blurred input where it strides: BlurPool (Zhang 2019, arXiv:1904.11486).

    In the paper the blur follows a convolution that strides no more; here it comes before the strided one, which costs
    a quarter of that (ffcv-imagenet, `use_blurpool`; Composer, `blur_first`).
    """
    convolution = conv(features, kernel, stride, **settings)
    return convolution if stride == 1 else lambda x: convolution(blur(x))


# They make the convolutions of blocks. A stem's stays as it is: ffcv blurs no input of fewer than 16 channels.
DOWNSAMPLES = {"stride": conv, "blur": blurred_conv}


# --- norms: (name, train, dtype, scale_init) -> a function of the activations (..., channels) ---
# Scale and shift are float32 parameters; the output has the given dtype.


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


# --- activations: (x, norm, name) -> x ---
# Where pre-activation nets differ from the others: before the first convolution of a block and after the last block.


def norm_and_relu(x, norm, name):
    """Norm, then ReLU."""
    return nn.relu(norm(name=name)(x))


def no_activation(x, norm, name):
    """What is activated already."""
    return x


# --- shortcuts: (block input, branch output, stride, norm, dtype, conv) -> the two addends (skip, branch) ---
# Options A, B, C: He et al. 2015, section 3.3.


def no_shortcut(x, branch, stride, norm, dtype, conv=conv):
    """The plain twin: the branch alone."""
    return jnp.zeros_like(branch), branch


def zero_pad_shortcut(x, branch, stride, norm, dtype, conv=conv):
    """Option A: identity; where shapes differ, every `stride`-th pixel and zeros for the new channels.

    The pixels are those of the paper, never blurred: there is no convolution.
    """
    x = x[:, ::stride, ::stride, :]
    new_channels = branch.shape[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, new_channels))), branch


def projection_shortcut(x, branch, stride, norm, dtype, conv=conv):
    """Option C: a 1x1 convolution and a norm in every block."""
    x = conv(branch.shape[-1], 1, stride, dtype=dtype, name="downsample_conv")(x)
    return norm(name="downsample_bn")(x), branch


def projection_where_shapes_differ_shortcut(x, branch, stride, norm, dtype, conv=conv):
    """Option B: identity; a projection where shapes differ."""
    if stride == 1 and x.shape == branch.shape:
        return x, branch
    return projection_shortcut(x, branch, stride, norm, dtype, conv)


def highway_shortcut(x, branch, stride, norm, dtype, conv=conv):
    """Exclusive gating: (1 - g) x and g F(x), with g = sigmoid(1x1 convolution of x) for each pixel and channel.

    Srivastava et al. 2015 (arXiv:1505.00387, equation 3); He et al. 2016 (arXiv:1603.05027, section 3.1), whose
    Table 1 has the bias: of 0 to -7, training succeeded with -6 and -7, better with -6. Where shapes differ, x is
    carried as in option A.
    """
    bias_init = nn.initializers.constant(-6.0)
    gate = conv(branch.shape[-1], 1, stride, use_bias=True, bias_init=bias_init, dtype=dtype, name="gate")(x)
    g = nn.sigmoid(gate.astype(jnp.float32))  # bfloat16 has no number between 0.996 and 1, where 1 - g starts
    skip, branch = zero_pad_shortcut(x, branch, stride, norm, dtype)
    return ((1 - g) * skip).astype(dtype), (g * branch).astype(dtype)


class BranchScale(nn.Module):
    """Multiplies by one learned number, zero at first. `scale` () is float32, the output has the dtype of the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.zeros, ()).astype(x.dtype)


def skipinit_shortcut(x, branch, stride, norm, dtype, conv=conv):
    """x as in option A, and the branch times a learned number that starts at zero.

    De & Smith 2020, SkipInit (arXiv:2002.10444, section 3.2); Bachlechner et al. 2020, ReZero (arXiv:2003.04887).
    """
    return zero_pad_shortcut(x, BranchScale(name="branch_scale")(branch), stride, norm, dtype)


SHORTCUTS = {
    "none": no_shortcut,
    "A": zero_pad_shortcut,
    "B": projection_where_shapes_differ_shortcut,
    "C": projection_shortcut,
    "highway": highway_shortcut,
    "skipinit": skipinit_shortcut,
}


# --- what training does to a branch ---


def stochastic_depth(branch: jax.Array, rate: float = 0.0, train: bool = False) -> jax.Array:
    """In training, each example's branch is dropped with probability `rate`, or else divided by 1 - `rate`.

    Huang et al. 2016 (arXiv:1603.09382), who drop a branch for the whole batch and multiply it by 1 - `rate` in
    evaluation; this is timm's DropPath. Random numbers come from the stream "dropout".
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(branch)


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


# --- input ---


def check_images(images: jax.Array, smallest: int, advice: str) -> None:
    """Raise `UserError` unless `images` is a float batch (B, H, W, 1 or 3) of at least `smallest` pixels a side."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"images: expected (batch, height, width, channels) with 1 or 3 channels, found shape {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images: expected normalised floating point, found {images.dtype}; see resnet_jax.load_data")
    if min(images.shape[1:3]) < smallest:
        raise UserError(
            f"images: {images.shape[1]}x{images.shape[2]} is too small for this model's strides; the smallest is "
            f"{smallest}x{smallest}. Try {advice}"
        )
