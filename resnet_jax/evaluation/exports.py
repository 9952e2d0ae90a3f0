"""Exports of a model as a program, each checked as soon as it is written."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax import export

from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.commands import new_file, writing_file
from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.evaluation.exported import load_exported, pack
from resnet_jax.evaluation.onnx_files import encode_array, run_onnx, to_onnx
from resnet_jax.weights.trees import Flat, flatten, unflatten
from resnet_jax.workdir import write_bytes

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIXES = {".stablehlo": "stablehlo", ".jaxexport": "stablehlo", ".onnx": "onnx"}
_SAMPLES = 3  # images
# Largest difference from the model's own logits, relative to the largest of them.
TOLERANCES = {"stablehlo": 1e-5, "onnx": 1e-4}


class WrongExport(UserError):
    """The program that was written gives other logits than the model."""

    exit_status = 3


class Source(NamedTuple):
    """A model to export.

    Attributes:
      card: model card.
      model: network.
      variables: {"params", "batch_stats"}.
      uint8: the program takes uint8 views and normalises them; otherwise normalised float32.
    """

    card: ModelCard
    model: nn.Module
    variables: dict
    uint8: bool

    def forward(self, weights: Flat, images: jax.Array) -> jax.Array:
        """Logits of images as the program takes them (traceable); `weights` are `variables` by path."""
        if self.uint8:
            # The barrier keeps the compiler from merging the two, which gives other low bits than preprocessing apart.
            images = jax.lax.optimization_barrier(self.card.create_preprocessing().normalize(images))
        return self.model.apply(unflatten(weights), images, train=False)

    def samples(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """(inputs, logits of the first and of all): random images, and what the model itself gives, step by step."""
        preprocessing = self.card.create_preprocessing()
        views = np.random.default_rng(0).integers(0, 256, (_SAMPLES, *preprocessing.view_shape), np.uint8)
        images = jax.jit(preprocessing.normalize)(views)
        apply = jax.jit(functools.partial(self.model.apply, train=False))
        inputs = views if self.uint8 else np.asarray(images)
        return inputs, [np.asarray(apply(self.variables, batch)) for batch in (images[:1], images)]


def check_target(out: str, format_name: str | None, platforms: str) -> tuple[pathlib.Path, str, tuple[str, ...]]:
    """(path, format, platforms) of the arguments of a command.

    Args:
      out: file to write.
      format_name: a key of `TOLERANCES`; None: by the suffix of `out`.
      platforms: names of `PLATFORMS` with commas between.

    Raises:
      UserError: the file is there already, its format is not known, or a platform is not, or cannot be checked here.
    """
    path, names = new_file(out, "OUT"), tuple(platforms.split(","))
    format_name = format_name or SUFFIXES.get(path.suffix)
    if format_name is None:
        raise UserError(f"OUT: expected a name that ends in {', '.join(SUFFIXES)}, or --format, found {out}")
    if unknown := [name for name in names if name not in PLATFORMS]:
        raise UserError(f"--platforms: there is no {unknown[0]!r}; {did_you_mean(unknown[0], PLATFORMS)}")
    here = export.default_export_platform()
    if format_name == "stablehlo" and here not in names:
        raise UserError(f"--platforms: expected {here} among them, to check the file here, found {platforms}")
    return path, format_name, names


def write_export(path: pathlib.Path, format_name: str, source: Source, platforms: Sequence[str]) -> float:
    """Write a model as a program that takes batches of any size, atomically, then read it back and check it.

    Args:
      path: file to write.
      format_name: "stablehlo", a file for `load_exported`; or "onnx", with "card" (JSON), "sample_inputs" and
        "sample_logits" (see `encode_array`) in `metadata_props`.
      source: model.
      platforms: names of `PLATFORMS` that a StableHLO program is for.

    Returns:
      The largest difference from the model's own logits, relative to the largest of them, of the sample inputs and of
      the first of them alone.

    Raises:
      WrongExport: it is more than `TOLERANCES` allows; no file is left.
      UserError: packages are missing, or the model cannot be converted; no file is left.
    """
    inputs, expected = source.samples()
    batch = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((*batch, *inputs.shape[1:]), inputs.dtype)
    card, weights = source.card.to_json(), flatten(jax.device_get(source.variables))
    if format_name == "stablehlo":
        shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights)
        program = export.export(jax.jit(source.forward), platforms=platforms)(shapes, images)
        content, run = pack(program, weights, card, inputs, expected[-1]), _run_stablehlo
    else:
        samples = {"sample_inputs": encode_array(inputs), "sample_logits": encode_array(expected[-1])}
        forward = functools.partial(source.forward, weights)
        content, run = to_onnx(forward, images, {"card": json.dumps(card), **samples}), run_onnx
    try:
        with writing_file(path, "OUT"):
            write_bytes(path, content)
            return _check(format_name, run, path, (inputs[:1], inputs), expected)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _run_stablehlo(path: pathlib.Path, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    exported = load_exported(path)
    return [np.asarray(exported(images)) for images in batches]


def _check(format_name: str, run: Callable, path: pathlib.Path, batches: Sequence, expected: Sequence) -> float:
    worst = 0.0
    for found, own in zip(run(path, batches), expected, strict=True):
        if found.shape != own.shape or found.dtype != own.dtype:
            difference = np.inf
        else:
            difference = float(np.abs(found - own).max() / max(np.abs(own).max(), np.finfo(np.float32).tiny))
        if not difference <= TOLERANCES[format_name]:
            raise WrongExport(
                f"{path}: expected the model's logits to {TOLERANCES[format_name]:g} relative, found a difference of "
                f"{difference:.2e} in a batch of {len(own)}; the file was removed"
            )
        worst = max(worst, difference)
    return worst
