"""Arrays of NumPy archives, the format of big_vision and BiT."""

import math
import pathlib

import numpy as np

from resnet_jax.weights.checks import refuse, short
from resnet_jax.weights.zips import Archive

_SUFFIX = ".npy"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_npz(archive: Archive) -> bool:
    """True for an archive of `.npy` files alone."""
    return bool(archive.starts) and all(name.endswith(_SUFFIX) for name in archive.starts)


def read_npz(path: pathlib.Path, archive: Archive) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive by name.

    Raises:
      UserError: an entry is no array of numbers, or says another size than it has.
    """
    arrays = {}
    for name in archive.starts:
        with archive.zip.open(name) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise refuse(path, "version 1.0 or 2.0 of the .npy format", f"{version} in {short(name)}")
            shape, _, dtype = _HEADERS[version](file)
            if dtype.hasobject:
                raise refuse(path, f"numbers in {short(name)}", "pickled objects; nothing was executed")
            size, found = math.prod(shape) * dtype.itemsize, archive.zip.getinfo(name).file_size - file.tell()
            if size != found:
                raise refuse(path, f"{size:,} bytes of {short(name)} by its header", f"{found:,}")
            file.seek(0)
            arrays[name.removesuffix(_SUFFIX)] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays
