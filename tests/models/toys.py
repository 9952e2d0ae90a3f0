"""Values as the next nets need them, each written without a thought of the others."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.conv import conv2d, he_normal_fan_out
from resnet_jax.models.shortcuts import projection_shortcut
from resnet_jax.models.stems import Stem


class StandardizedConv(nn.Module):
    """A convolution whose kernel has mean 0 and variance 1 for each output (Qiao et al. 2019, arXiv:1903.10520)."""

    features: int
    kernel: int
    stride: int
    groups: int
    use_bias: bool
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = jax.nn.standardize(self.param("kernel", self.kernel_init, shape), axis=(0, 1, 2), epsilon=1e-12)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(())
        pad = self.kernel // 2
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return x + jnp.broadcast_to(bias.astype(self.dtype), x.shape)


def standardized_conv(
    features,
    kernel,
    stride=1,
    groups=1,
    use_bias=False,
    *,
    name,
    dtype,
    kernel_init=he_normal_fan_out,
    bias_init=nn.initializers.zeros,
):
    return StandardizedConv(features, kernel, stride, groups, use_bias, dtype, kernel_init, name=name)


class Dot(nn.Module):
    """A 1x1 convolution as a matrix product, with the parameters of `nn.Conv`."""

    features: int
    stride: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
        return x[:, :: self.stride, :: self.stride].astype(self.dtype) @ kernel[0, 0].astype(self.dtype)


def dot_conv(features, kernel, stride=1, groups=1, use_bias=False, **settings):
    if kernel != 1 or groups != 1 or use_bias:
        return conv2d(features, kernel, stride, groups, use_bias, **settings)
    kernel_init = settings.get("kernel_init", he_normal_fan_out)
    return Dot(features, stride, settings["dtype"], kernel_init, name=settings["name"])


def squeeze_and_excite(branch, *, conv, norm):
    """Hu et al. 2018 (arXiv:1709.01507), a sixteenth of the channels in the middle, but at least 8, as in timm."""
    channels = branch.shape[-1]
    squeezed = branch.mean((1, 2), keepdims=True)
    excited = nn.relu(conv(max(channels // 16, 8), 1, use_bias=True, name="squeeze")(squeezed))
    scale = nn.sigmoid(conv(channels, 1, use_bias=True, name="excite")(excited))
    return branch * jnp.broadcast_to(scale, branch.shape)


def deep_layers(images, width, *, conv, norm):
    x = images
    for index, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), start=1):
        x = nn.relu(norm(name=f"deep{index}_norm")(conv(features, 3, stride, name=f"deep{index}")(x)))
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


DEEP_STEM = Stem(deep_layers, stride=4)  # He et al. 2019 (arXiv:1812.01187), ResNet-C and -D


def average_pool_shortcut(x, branch, *, stride, conv, norm):
    """The projection of ResNet-D: an average of pixels, then a 1x1 convolution that does not stride."""
    if stride == 1 and x.shape == branch.shape:
        return x, branch
    pooled = nn.avg_pool(x, (stride, stride), (stride, stride))
    return projection_shortcut(pooled, branch, stride=1, conv=conv, norm=norm)
