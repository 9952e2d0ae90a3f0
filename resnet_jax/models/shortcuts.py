"""Shortcuts: functions `(x, branch, *, stride, conv, norm)` that give the two addends (skip, branch) of a block.

`x` (B, H, W, C) is the input of the block, `branch` (B, H / stride, W / stride, features) the output of its branch, and
both addends have the shape and dtype of `branch`. `conv(features, kernel, stride, name=...)` and `norm(name=...)` make
layers. Options A, B, C: He et al. 2015, section 3.3.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.conv import Pool


def no_shortcut(x, branch, *, stride, conv, norm):
    """The plain twin: the branch alone."""
    return jnp.zeros_like(branch), branch


def zero_pad_shortcut(x, branch, *, stride, conv, norm):
    """Option A: identity; where shapes differ, every `stride`-th pixel and zeros for the new channels.

    The pixels are those of the paper, never blurred: there is no convolution.
    """
    x = x[:, ::stride, ::stride, :]
    new_channels = branch.shape[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, new_channels))), branch


def projection_shortcut(x, branch, *, stride, conv, norm):
    """Option C: a 1x1 convolution and a norm in every block."""
    x = conv(branch.shape[-1], 1, stride, name="downsample_conv")(x)
    return norm(name="downsample_bn")(x), branch


def projection_where_shapes_differ_shortcut(x, branch, *, stride, conv, norm):
    """Option B: identity; a projection where shapes differ."""
    if stride == 1 and x.shape == branch.shape:
        return x, branch
    return projection_shortcut(x, branch, stride=stride, conv=conv, norm=norm)


def projection_of_averages_shortcut(x, branch, *, stride, conv, norm):
    """Option B without its loss of pixels: where it strides, a mean over stride x stride pixels, then the projection.

    ResNet-D (He et al. 2019, arXiv:1812.01187, Figure 2c). Windows that reach over the edge average what they have.
    """
    if stride == 1:
        return projection_where_shapes_differ_shortcut(x, branch, stride=1, conv=conv, norm=norm)
    average = functools.partial(
        nn.avg_pool,
        window_shape=(stride, stride),
        strides=(stride, stride),
        padding=[(0, -pixels % stride) for pixels in x.shape[1:3]],
        count_include_pad=False,
    )
    return projection_shortcut(Pool(average, name="downsample_pool")(x), branch, stride=1, conv=conv, norm=norm)


def projection_where_channels_differ_shortcut(x, branch, *, stride, conv, norm):
    """Option B of TF-slim and Keras: where only the size differs, every `stride`-th pixel and no projection."""
    if x.shape[-1] == branch.shape[-1]:
        return x[:, ::stride, ::stride, :], branch
    return projection_shortcut(x, branch, stride=stride, conv=conv, norm=norm)


def highway_shortcut(x, branch, *, stride, conv, norm):
    """Exclusive gating: (1 - g) x and g F(x), with g = sigmoid(1x1 convolution of x) for each pixel and channel.

    Srivastava et al. 2015 (arXiv:1505.00387, equation 3); He et al. 2016 (arXiv:1603.05027, section 3.1), whose
    Table 1 has the bias: of 0 to -7, training succeeded with -6 and -7, better with -6. Where shapes differ, x is
    carried as in option A.
    """
    bias_init = nn.initializers.constant(-6.0)
    gate = conv(branch.shape[-1], 1, stride, use_bias=True, bias_init=bias_init, name="gate")(x)
    g = nn.sigmoid(gate.astype(jnp.float32))  # bfloat16 has no number between 0.996 and 1, where 1 - g starts
    skip, branch = zero_pad_shortcut(x, branch, stride=stride, conv=conv, norm=norm)
    return ((1 - g) * skip).astype(x.dtype), (g * branch).astype(x.dtype)


class BranchScale(nn.Module):
    """Multiplies by one learned number, zero at first. `scale` () is float32, the output has the dtype of the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.zeros, ()).astype(x.dtype)


def skipinit_shortcut(x, branch, *, stride, conv, norm):
    """x as in option A, and the branch times a learned number that starts at zero.

    De & Smith 2020, SkipInit (arXiv:2002.10444, section 3.2); Bachlechner et al. 2020, ReZero (arXiv:2003.04887).
    """
    return zero_pad_shortcut(x, BranchScale(name="branch_scale")(branch), stride=stride, conv=conv, norm=norm)


SHORTCUTS = {
    "none": no_shortcut,
    "A": zero_pad_shortcut,
    "B": projection_where_shapes_differ_shortcut,
    "C": projection_shortcut,
    "D": projection_of_averages_shortcut,
    "B_slim": projection_where_channels_differ_shortcut,
    "highway": highway_shortcut,
    "skipinit": skipinit_shortcut,
}
