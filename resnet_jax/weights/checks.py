"""Checks that every reader of a foreign file shares, and the errors that they raise."""

import contextlib
import mmap
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError

# How many times a file's size its arrays may take; compressed and shared arrays are larger than what is stored.
MAX_EXPANSION = 4
_SMALL = 2**20  # bytes that any file may expand to


def refuse(path: pathlib.Path, expected: str, found: str, advice: str = "") -> UserError:
    """The error of a file that is not what was expected, in one line."""
    return UserError(f"{path}: expected {expected}, found {found}" + (f"; {advice}" if advice else ""))


def short(text: object) -> str:
    """Text from a file for an error message: quoted, printable and at most 120 characters long."""
    quoted = ascii(str(text)[:200])
    return quoted if len(quoted) <= 120 else quoted[:116] + "...'"


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Raise `UserError` for whatever a library says about a corrupt file of a kind, such as "an HDF5 file"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers of corrupt files raise exceptions of many types
        reason = f"{type(error).__name__}: {short(error)}"
        raise refuse(path, kind, f"a corrupt or truncated one ({reason})", "get the file again") from error


def check_total(path: pathlib.Path, nbytes: int, file_size: int) -> None:
    """Raise `UserError` if arrays of this many bytes are out of proportion to their file."""
    limit = max(MAX_EXPANSION * file_size, _SMALL)
    if nbytes > limit:
        raise refuse(path, f"arrays of at most {limit:,} bytes in a file of {file_size:,}", f"{nbytes:,} bytes")


def as_numbers(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array itself; bfloat16 for two bytes without a type, which is how NumPy and h5py store it.

    Raises:
      UserError: it does not hold numbers.
    """
    if array.dtype == np.dtype("V2"):
        array = array.view(jnp.bfloat16)
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        raise refuse(path, f"numbers in {short(name)}", f"dtype {short(array.dtype)}")
    return array


def map_file(path: pathlib.Path) -> mmap.mmap:
    """A read-only map of a file that is not empty."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
