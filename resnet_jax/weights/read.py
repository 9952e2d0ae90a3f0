"""One door for weight files of other libraries: arrays by the names they have there.

Files are not trusted. No content can run code, reach another file, or take more memory than a few times the file's
size.
"""

import pathlib
import stat
from typing import NamedTuple

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.weights import flax_files, keras_files, npz_files, safetensors_files, torch_files
from resnet_jax.weights.checks import as_numbers, refuse
from resnet_jax.weights.zips import open_archive
from resnet_jax.workdir import local_path

KNOWN = (
    "torch .pth, safetensors, Keras .h5 or .weights.h5, NumPy .npz, Flax checkpoint (a MessagePack file or an Orbax "
    "folder)"
)
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".tar")


class WeightFile(NamedTuple):
    """A weight file of another library.

    Attributes:
      kind: "torch", "safetensors", "keras", "npz" or "flax".
      arrays: arrays by name; views of the file where its format allows, so it must not be changed while they live.
      metadata: metadata in a safetensors header; else empty.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_arrays(path: str | pathlib.Path) -> WeightFile:
    """Read a weight file, recognised by its content.

    Args:
      path: file, or folder that Orbax wrote.

    Raises:
      UserError: it is missing, of no known format, corrupt, without arrays, or made to do harm.
    """
    path = local_path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            kind, arrays, metadata = "flax", _read_folder(path), {}
        elif not stat.S_ISREG(found.st_mode):
            raise refuse(path, "a file", "a device or a pipe")
        else:
            kind, arrays, metadata = _read_file(path, found.st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; expected a weight file: {KNOWN}") from None
    if not arrays:
        raise refuse(path, "arrays", "none")
    return WeightFile(kind, {name: as_numbers(path, name, array) for name, array in arrays.items()}, metadata)


def _read_file(path: pathlib.Path, size: int) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise refuse(path, f"a weight file: {KNOWN}", "an empty file")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with open_archive(path) as archive:
            if torch_files.is_torch_archive(archive):
                return "torch", torch_files.read_zip(path, archive), {}
            if npz_files.is_npz(archive):
                return "npz", npz_files.read_npz(path, archive), {}
        advice = "from a .keras archive, save the weights alone: model.save_weights('NAME.weights.h5')"
        raise refuse(path, f"a weight file: {KNOWN}", "another zip archive", advice)
    if head.startswith(b"\x89HDF\r\n"):
        return "keras", keras_files.read_keras(path, size), {}
    # After the length of its header, of which the upper bytes are 0, a safetensors file has JSON.
    if head[4:] == b"\0\0\0\0{" or path.suffix == ".safetensors":
        return "safetensors", *safetensors_files.read_safetensors(path, size)
    if head[0] == 0x80 or path.suffix in _TORCH_SUFFIXES:  # the opcode of a pickle's protocol
        return "torch", torch_files.read_legacy(path), {}
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):  # a dict in MessagePack
        return "flax", flax_files.read_msgpack(path), {}
    raise refuse(path, f"a weight file: {KNOWN}", f"unknown content that begins with {head[:8]!r}")


def _read_folder(path: pathlib.Path) -> dict[str, np.ndarray]:
    folder = flax_files.orbax_folder(path)
    if folder is None:
        raise refuse(path, f"a weight file: {KNOWN}", "a folder that Orbax did not write")
    return flax_files.read_orbax(folder)
