"""What each layer of a model costs: shapes, parameters, multiply-adds and activation memory."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution, norm or dense layer.

    Attributes:
      name: path of its parameters.
      output_shape: without the batch.
      parameters: number of trainable weights.
      multiply_adds: for one image; a bias, a norm and a pooling count as nothing (He et al. 2015, Table 1).
      activation_bytes: of its output for one image.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


def profile(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The layers of a model in the order of the forward pass, for one image (h, w, c). Nothing is computed."""
    layers = []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, (nn.Conv, nn.Dense, nn.BatchNorm)):
            layers.append(_describe(module, output))
        return output

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    return layers


def totals(layers: list[Layer]) -> tuple[int, int, int]:
    """(parameters, multiply-adds, activation bytes) of all layers."""
    return tuple(
        sum(getattr(layer, field) for layer in layers) for field in ("parameters", "multiply_adds", "activation_bytes")
    )


def _describe(module: nn.Module, output: jax.Array) -> Layer:
    params = module.variables["params"]
    shape = output.shape[1:]
    outputs_per_channel = math.prod(shape[:-1])  # each uses every weight of the kernel once
    return Layer(
        name="/".join(module.path),
        output_shape=shape,
        parameters=sum(p.size for p in jax.tree.leaves(params)),
        multiply_adds=params["kernel"].size * outputs_per_channel if "kernel" in params else 0,
        activation_bytes=output.size * output.dtype.itemsize,
    )
