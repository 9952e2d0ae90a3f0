"""Batch norms folded into convolutions, for inference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from resnet_jax.errors import UserError
from resnet_jax.models.convs import standardized_conv2d
from resnet_jax.models.scan import unstack_blocks


class Affine(nn.Module):
    """Adds a number to each channel (..., channels), `bias`, after multiplying by `scale` if it is there."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, shape = x.astype(self.dtype), (1,) * (x.ndim - 1) + (-1,)
        if self.has_variable("params", "scale"):
            x = x * self.get_variable("params", "scale").astype(self.dtype).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x + bias.astype(self.dtype).reshape(shape)


def affine_norm(*, name: str, train: bool, dtype, scale_init=nn.initializers.ones) -> Affine:
    """In the place of a norm whose statistics are folded.

    Raises:
      UserError: `train`, as there are no statistics.
    """
    if train:
        raise UserError("fold_batchnorm: expected train=False, found training; train the model before it is folded")
    return Affine(dtype, name=name)


def fold_batchnorm(model: nn.Module, variables: dict) -> tuple[nn.Module, dict]:
    """A model without batch norms that computes the same in evaluation, to float tolerance, in fewer passes.

    Each norm after a convolution becomes part of its kernel and a shift; one before a convolution, as in
    pre-activation blocks, and one after a kernel that is standardised, becomes a scale and a shift.

    Args:
      model: with batch norms.
      variables: {"params", "batch_stats"}.

    Returns:
      (model, {"params"}): for `train=False` alone, its blocks unrolled.

    Raises:
      UserError: a model without batch norms, or with other norms.
    """
    model, variables = unstack_blocks(model, variables)
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    statistics = traverse_util.flatten_dict(variables.get("batch_stats", {}), sep="/")
    norms = [name.removesuffix("/mean") for name in statistics if name.endswith("/mean")]
    if not norms:
        raise UserError("fold_batchnorm: expected a model with batch norms, found none")
    epsilon = getattr(model.norm, "keywords", {}).get("epsilon", 1e-5)
    before_activation = "bn_last/scale" in params
    standardized = getattr(model.conv, "func", model.conv) is standardized_conv2d
    for norm in norms:
        scale = params.pop(f"{norm}/scale") * jax.lax.rsqrt(statistics[f"{norm}/var"] + epsilon)
        params[f"{norm}/bias"] = params[f"{norm}/bias"] - statistics[f"{norm}/mean"] * scale
        conv = None if standardized else _conv_before(norm, before_activation)
        if conv is None:
            params[f"{norm}/scale"] = scale
            continue
        params[f"{conv}/kernel"] = params[f"{conv}/kernel"] * scale[None, None, None]
        if f"{conv}/bias" in params:
            params[f"{conv}/bias"] = params[f"{conv}/bias"] * scale
    return model.clone(norm=affine_norm), {"params": traverse_util.unflatten_dict(params, sep="/")}


def _conv_before(norm: str, before_activation: bool) -> str | None:
    """Path of the convolution whose output a norm is called with, if nothing else uses that output."""
    *block, layer = norm.split("/")
    if before_activation and block:  # bn2 comes after conv1, and nothing in the block before bn1
        index = int(layer.removeprefix("bn")) - 1
        return "/".join((*block, f"conv{index}")) if index else None
    return None if layer == "bn_last" else "/".join((*block, layer.replace("bn", "conv")))
