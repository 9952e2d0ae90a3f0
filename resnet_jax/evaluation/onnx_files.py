"""A function of images as an ONNX model, by jax2onnx, and its run in onnxruntime.

jax2onnx 0.17.1 holds for the primitives of JAX, not for the layers of Flax Linen that it knows by name: it drops the
padding of `nn.max_pool`, and the standardisation of kernels. So it gets the primitives alone. Of these, it cannot
convert pads of a polymorphic batch, and onnxruntime cannot run the windows over four axes that it makes of poolings:
both become the calls of which it makes `Pad`, `MaxPool` and `AveragePool`. With jax2onnx, these calls are its own
while it traces.
"""

import base64
import importlib
import io
import logging
import math
import pathlib
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.extend.core import Literal

from resnet_jax.errors import UserError
from resnet_jax.weights.checks import short

INPUT, OUTPUT = "images", "logits"
_INSTALL = "pip install -r requirements-export.txt && pip install --no-deps jax2onnx==0.17.1"


def to_onnx(function: Callable, images: jax.ShapeDtypeStruct, metadata: dict[str, str]) -> bytes:
    """The ONNX model of a function.

    Args:
      function: function from images to logits (traceable).
      images: shape, its first dimension symbolic, and dtype.
      metadata: entries of `metadata_props`.

    Raises:
      UserError: jax2onnx is not installed, or cannot convert the function.
    """
    jax2onnx = _import("jax2onnx")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of every shape that depends on the batch
    try:
        closed = jax.make_jaxpr(function)(images)
        model = jax2onnx.to_onnx(
            lambda images: _evaluate(closed.jaxpr, closed.consts, images)[0],
            inputs=[images],
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        return model.SerializeToString()
    except Exception as error:  # converters raise exceptions of many types
        raise UserError(
            f"--format: jax2onnx cannot convert this model ({type(error).__name__}: {short(error)}); nothing was "
            "written; try --format=stablehlo"
        ) from error


def run_onnx(path: pathlib.Path, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Logits of batches of images by the ONNX model in a file, in onnxruntime on the CPU."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run([OUTPUT], {INPUT: images})[0] for images in batches]


def encode_array(array: np.ndarray) -> str:
    """An array as text: its `.npy` file in base64."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--format: expected the packages for ONNX, found no {error.name or name}; {_INSTALL}"
        ) from None


def _evaluate(jaxpr, consts: Sequence, *inputs: jax.Array) -> list:
    """The outputs of a jaxpr, as `jax.core.eval_jaxpr` gives them, by primitives that jax2onnx converts rightly.

    What does not depend on the inputs is computed here and becomes a constant.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")  # of jit, and of custom gradients
        if equation.primitive.name == "platform_index":
            outputs = [len(equation.params["platforms"]) - 1]  # the default, not a form for JAX's CPU backend
        elif equation.primitive.name == "cond" and isinstance(operands[0], int):
            branch = equation.params["branches"][operands[0]]
            outputs = _evaluate(branch.jaxpr, branch.consts, *operands[1:])
        elif inner is not None:
            outputs = _evaluate(inner.jaxpr, inner.consts, *operands)
        elif _is_constant(equation, operands):
            with jax.ensure_compile_time_eval():
                outputs = _bind(equation, operands)
        else:
            outputs = _REPLACED.get(equation.primitive.name, _bind)(equation, operands)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _is_constant(equation, operands: list) -> bool:
    shapes = [variable.aval.shape for variable in equation.outvars]  # one with the batch is known in the trace alone
    return not any(isinstance(operand, jax.core.Tracer) for operand in operands) and not any(
        is_symbolic_dim(size) for shape in shapes for size in shape
    )


def _bind(equation, operands: list) -> list:
    outputs = equation.primitive.bind(*operands, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _pad(equation, operands: list) -> list:
    images, value = operands
    return [_padded(images, float(value), equation.params["padding_config"])]


def _max_pool(equation, operands: list) -> list:
    return [_pool(nn.max_pool, operands[0], -jnp.inf, equation.params)]


def _sum_pool(equation, operands: list) -> list:
    return [_pool(nn.avg_pool, operands[0], 0.0, equation.params) * math.prod(equation.params["window_dimensions"])]


def _pool(function: Callable, images: jax.Array, border: float, params: dict) -> jax.Array:
    _, *window, _ = params["window_dimensions"]
    _, *strides, _ = params["window_strides"]
    if any(map(sum, params["padding"])):
        images = _padded(images, border, [(*ends, 0) for ends in params["padding"]])
    return function(images, window_shape=tuple(window), strides=tuple(strides), padding="VALID")


def _padded(images: jax.Array, value: float, ends: Sequence[tuple[int, int, int]]) -> jax.Array:
    if any(low < 0 or high < 0 or inner for low, high, inner in ends):
        raise NotImplementedError(f"padding {ends}")
    return jnp.pad(images, [(low, high) for low, high, _ in ends], constant_values=value)


_REPLACED = {"pad": _pad, "reduce_window_max": _max_pool, "reduce_window_sum": _sum_pool}
