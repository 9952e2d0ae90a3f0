"""What each layer of a model costs: shapes, parameters, multiply-adds and activation memory."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Layer:
    """One module with parameters of its own: a convolution, a norm, a dense layer.

    Attributes:
      name: path of its parameters.
      output_shape: without the batch.
      parameters: number of trainable weights.
      multiply_adds: for one image; biases, norms, poolings and blurs count as nothing (He et al. 2015, Table 1).
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
        if context.method_name == "__call__":
            params = {name: p for name, p in module.variables.get("params", {}).items() if isinstance(p, jax.Array)}
            if params:
                layers.append(_describe(module.path, params, output))
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


def _describe(path: tuple[str, ...], params: dict[str, jax.Array], output: jax.Array) -> Layer:
    shape = output.shape[1:]
    outputs_per_channel = math.prod(shape[:-1])  # each uses every weight of the kernel once
    return Layer(
        name="/".join(path),
        output_shape=shape,
        parameters=sum(p.size for p in params.values()),
        multiply_adds=params["kernel"].size * outputs_per_channel if "kernel" in params else 0,
        activation_bytes=output.size * output.dtype.itemsize,
    )


def depth(layers: list[Layer]) -> int:
    """The number in a net's name: layers with a kernel, without those of the shortcuts."""
    return sum(
        layer.multiply_adds > 0 and not layer.name.split("/")[-1].startswith(("downsample_", "gate"))
        for layer in layers
    )
