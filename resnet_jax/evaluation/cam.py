"""Class activation maps: at which positions an image speaks for a class."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError


def class_activation_map(model: nn.Module, variables: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    """CAM (Zhou et al. 2016, arXiv:1512.04150, equation 2), of nets with global average pooling and a linear head.

    At each position the map is the dot product of the activations that are pooled (after the last norm and ReLU of a
    pre-activation net) with the class's column of the kernel of `fc`. So its mean over positions, plus the class's
    bias, is the logit.

    Args:
      model, variables: as from `load_checkpoint`.
      images: model input, float (n, height, width, c).
      labels: int (n,), the class of each map.

    Returns:
      float32 (n, h, w), at the resolution of the last stage; negative where a position speaks against the class.

    Raises:
      UserError: a net with another head, for which there is `grad_cam`.
    """
    _, head = _apply(model, variables, images)
    if not head.is_linear:
        raise UserError(
            "cam: expected a net with global average pooling and a linear head `fc`; use grad_cam for others"
        )
    return _weighted(head.pooled, variables["params"]["fc"]["kernel"].T[labels])


def grad_cam(model: nn.Module, variables: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2), of the activations of the last stage.

    Each channel is weighted by the mean over positions of the gradient of the logit; negative sums become 0. With
    global average pooling and a linear head that is the positive part of `class_activation_map` divided by h * w.

    Args:
      model, variables, images, labels: see `class_activation_map`; any net with a layer `pool` after its last stage.

    Returns:
      float32 (n, h, w), not negative, at the resolution of the last stage.

    Raises:
      UserError: a net without a layer `pool`.
    """
    shape = jax.eval_shape(lambda: _apply(model, variables, images)[1].pooled)

    def logits_of_labels(change):
        logits, head = _apply(model, variables, images, change)
        return jnp.take_along_axis(logits, labels[:, None], axis=1).sum(), head.pooled

    gradient, pooled = jax.grad(logits_of_labels, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return nn.relu(_weighted(pooled, gradient.astype(jnp.float32).mean((1, 2))))


def activation_map(model: nn.Module, variables: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    """`class_activation_map` where the head is linear, else `grad_cam`; see there."""
    found = {}

    def look():
        found["is_linear"] = _apply(model, variables, images)[1].is_linear

    jax.eval_shape(look)
    return (class_activation_map if found["is_linear"] else grad_cam)(model, variables, images, labels)


class _Head(NamedTuple):
    """The end of a net: the input of the layer `pool`, and if its mean over positions is the input of `fc`."""

    pooled: jax.Array
    is_linear: bool


def _apply(model, variables, images, change=None) -> tuple[jax.Array, _Head]:
    """Logits, and the head; `change` is added to the input of the layer `pool`."""
    seen = {}

    def watch_head(call, arguments, settings, context):
        if context.method_name != "__call__" or context.module.path not in (("pool",), ("fc",)):
            return call(*arguments, **settings)
        (x,) = arguments
        if context.module.path == ("fc",):
            seen["fc"] = x
            return call(x, **settings)
        seen["pooled"] = x if change is None else x + change
        seen["pool"] = call(seen["pooled"], **settings)
        return seen["pool"]

    with nn.intercept_methods(watch_head):
        logits = model.apply(variables, images, train=False)
    if "pooled" not in seen:
        raise UserError(f"cam: expected a net with a layer `pool` after its last stage, found {type(model).__name__}")
    # The very same array: nothing lies between the pooling and `fc`.
    return logits, _Head(seen["pooled"], seen["pool"].ndim == 2 and seen.get("fc") is seen["pool"])


def _weighted(activations: jax.Array, weights: jax.Array) -> jax.Array:
    """float32 (n, h, w): sums over channels of activations (n, h, w, c) times weights (n, c)."""
    return jnp.einsum("nhwc,nc->nhw", activations, weights)
