"""Cost of each layer of a model: shapes, parameters, multiply-adds and activation memory."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.blocks import Block
from resnet_jax.models.conv import Pool


@dataclasses.dataclass(frozen=True)
class Layer:
    """One module with parameters of its own, a convolution, a norm, a dense layer; or a pooling.

    Attributes:
      name: path of its parameters, if it has any.
      output_shape: without the batch.
      parameters: number of trainable weights.
      multiply_adds: for one image; biases, norms, poolings and blurs count as nothing (He et al. 2015, Table 1).
      activation_bytes: size of its output for one image.
      is_on_main_path: False in shortcuts and gates, which do not count as depth.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    is_on_main_path: bool


def profile(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The layers of a model in the order of the forward pass, for one image (h, w, c). Nothing is computed.

    Blocks that are scanned are shown one by one, under the names that they have unrolled.
    """
    if getattr(model, "scan_blocks", False):
        model = model.clone(scan_blocks=False)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with recorded_layers() as layers:
        jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    return layers


def stage_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the activations that a model gives as features, in their order, for one image (h, w, c)."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    names = []

    def features(key, images):
        (_, activations), _ = model.init_with_output(key, images, train=False, features=True)
        names.extend(activations)
        return list(activations.values())

    shapes = jax.eval_shape(features, jax.random.key(0), images)
    return {name: activation.shape[1:] for name, activation in zip(names, shapes, strict=True)}


@contextlib.contextmanager
def recorded_layers() -> Iterator[list[Layer]]:
    """A list of the layers that are called inside, as they are called."""
    layers, joining = [], []

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, Block) and context.method_name == Block.joined.__name__:
            joining.append(module)
            output = call(*args, **kwargs)
            joining.pop()
            return output
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            params = {name: p for name, p in module.variables.get("params", {}).items() if isinstance(p, jax.Array)}
            if params or isinstance(module, Pool):
                layers.append(_describe(module.path, params, output, is_on_main_path=not joining))
        return output

    with nn.intercept_methods(record):
        yield layers


def totals(layers: list[Layer]) -> tuple[int, int, int]:
    """(parameters, multiply-adds, activation bytes) of all layers."""
    return tuple(
        sum(getattr(layer, field) for layer in layers) for field in ("parameters", "multiply_adds", "activation_bytes")
    )


def depth(layers: list[Layer]) -> int:
    """The number in a net's name: layers with a kernel, without those of the shortcuts and gates."""
    return sum(layer.multiply_adds > 0 and layer.is_on_main_path for layer in layers)


def _describe(path: tuple[str, ...], params: dict[str, jax.Array], output: jax.Array, is_on_main_path: bool) -> Layer:
    images, *shape = output.shape
    outputs_per_channel = math.prod(shape[:-1])  # each uses every weight of a kernel once
    return Layer(
        name="/".join(path),
        output_shape=tuple(shape),
        parameters=sum(p.size for p in params.values()),
        multiply_adds=outputs_per_channel * sum(p.size for p in params.values() if p.ndim >= 2),
        activation_bytes=output.size * output.dtype.itemsize // images,
        is_on_main_path=is_on_main_path,
    )
