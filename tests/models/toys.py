"""Convolutions of a user's own, without `nn.Conv`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.conv import conv2d, he_normal_fan_out


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
