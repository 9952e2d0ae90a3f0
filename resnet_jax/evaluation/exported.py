"""Exported programs: a zip of a `jax.export` program, weights, the model card, samples; and their reader.

The reader imports neither models nor Flax: with NumPy and JAX alone a program runs.
"""

import dataclasses
import functools
import io
import json
import pathlib
import zipfile

import jax
import numpy as np
from jax import export

from resnet_jax.errors import UserError
from resnet_jax.weights.checks import reading, refuse, short
from resnet_jax.weights.npz_files import read_npz
from resnet_jax.weights.zips import open_archive
from resnet_jax.workdir import absolute

FORMAT = 1
_KIND = "a program that `python -m resnet_jax.export` wrote"
_PROGRAM, _ABOUT, _INPUTS, _LOGITS = "program.jaxexport", "about.json", "sample_inputs", "sample_logits"
_WEIGHTS, _ARRAY = "weights/", ".npy"
# Other calls out of a program, such as callbacks to Python, could run anything; our models have none.
_HARMLESS_CALL = "custom_call @shape_assertion("


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A model as a compiled program, `(images) -> logits`: it needs JAX, and no model code.

    Attributes:
      exported: program `(weights, images)`, and what `jax.export` knows of it: `platforms`, `mlir_module()`.
      weights: float32 arrays by name, arguments of the program: as constants in it, they would be compiled anew, in
        many times their memory, for each size of a batch.
      card: model card, plain JSON; `ModelCard.from_json` takes it.
      sample_inputs: images (b, h, w, c) as the program takes them: uint8 views if the preprocessing is inside,
        otherwise normalised float32.
      sample_logits: float32 (b, classes), the model's own logits of them.
    """

    exported: export.Exported
    weights: dict[str, jax.Array]
    card: dict
    sample_inputs: np.ndarray
    sample_logits: np.ndarray

    def __call__(self, images) -> jax.Array:
        """Logits, float32 (b, classes), of images like `sample_inputs`, in a batch of any size.

        Raises:
          UserError: images of another shape or dtype; a device that the program was not exported for.
        """
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        expected = self.sample_inputs
        if images.shape[1:] != expected.shape[1:] or images.dtype != expected.dtype or not len(images):
            shape = ", ".join(map(str, expected.shape[1:]))
            raise UserError(f"images: expected {expected.dtype} (b, {shape}), found {images.dtype} {images.shape}")
        try:
            return self._call(self.weights, images)
        except ValueError as error:
            if "platform" not in str(error):
                raise
            platforms = ", ".join(self.exported.platforms)
            raise UserError(f"images: expected a device of {platforms}, found {jax.default_backend()}") from error

    @functools.cached_property
    def _call(self):
        return jax.jit(self.exported.call)


def pack(
    exported: export.Exported,
    weights: dict[str, np.ndarray],
    card: dict,
    sample_inputs: np.ndarray,
    sample_logits: np.ndarray,
) -> bytes:
    """The content of a file for `load_exported`; see `ExportedModel`."""
    arrays = {_INPUTS: sample_inputs, _LOGITS: sample_logits}
    arrays |= {_WEIGHTS + name: array for name, array in weights.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_ABOUT, json.dumps({"format": FORMAT, "card": card}))
        archive.writestr(_PROGRAM, bytes(exported.serialize()))
        for name, array in arrays.items():
            with archive.open(name + _ARRAY, "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    return file.getvalue()


def load_exported(path: str | pathlib.Path) -> ExportedModel:
    """The program in a file that `python -m resnet_jax.export` wrote as StableHLO.

    >>> exported = load_exported("digits.stablehlo")
    >>> logits = exported(exported.sample_inputs)

    Nothing in the file is executed before the program is called, and a program that calls out of itself is refused.

    Raises:
      UserError: the file is not there, corrupt, of another kind, or of a newer version.
    """
    path = absolute(path)
    if not path.is_file() or not path.stat().st_size:
        raise refuse(path, _KIND, "an empty file" if path.is_file() else "no file")
    with reading(path, _KIND), open_archive(path) as archive:
        if absent := {_PROGRAM, _ABOUT, _INPUTS + _ARRAY, _LOGITS + _ARRAY} - archive.starts.keys():
            raise refuse(path, _KIND, f"an archive without {', '.join(sorted(absent))}")
        card = _read_card(path, archive.zip.read(_ABOUT))
        arrays = {name: start for name, start in archive.starts.items() if name.endswith(_ARRAY)}
        arrays = read_npz(path, archive._replace(starts=arrays))
        inputs, logits = arrays.pop(_INPUTS), arrays.pop(_LOGITS)
        weights = {name.removeprefix(_WEIGHTS): jax.device_put(array) for name, array in arrays.items()}
        exported = export.deserialize(bytearray(archive.zip.read(_PROGRAM)))
        _check_program(path, exported, weights, inputs, logits)
    return ExportedModel(exported, weights, card, inputs, logits)


def _read_card(path: pathlib.Path, content: bytes) -> dict:
    about = json.loads(content)
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise refuse(path, f"a program of format {FORMAT}", f"format {short(found)}", "update resnet_jax")
    if not isinstance(about.get("card"), dict):
        raise refuse(path, _KIND, f"one without a model card in {_ABOUT}")
    return about["card"]


def _check_program(path: pathlib.Path, exported: export.Exported, weights: dict, inputs, logits) -> None:
    """Raise `UserError` unless a program takes these weights and such images, and calls nothing outside itself."""
    *taken, images = exported.in_avals
    (output,) = exported.out_avals
    fits = exported.in_tree == jax.tree.structure(((weights, inputs), {})) and all(
        (aval.shape[start:], aval.dtype) == (array.shape[start:], array.dtype)  # the size of a batch may be any
        for start, avals, arrays in ((0, taken, jax.tree.leaves(weights)), (1, (images, output), (inputs, logits)))
        for aval, array in zip(avals, arrays, strict=True)
    )
    if not fits:
        raise refuse(path, "a program of the weights and samples in the file", "one of others")
    text = exported.mlir_module()
    if text.count("custom_call") != text.count(_HARMLESS_CALL):
        raise refuse(path, "a program that calls nothing outside itself", "custom calls in it; nothing was executed")
