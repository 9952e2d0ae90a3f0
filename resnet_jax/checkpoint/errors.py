"""Errors of checkpoints that cannot be read."""

import pathlib

from resnet_jax.errors import UserError


class CorruptCheckpoint(UserError):
    """A checkpoint that cannot be read, or that does not hold what was saved."""


def mismatch(path: pathlib.Path, name: str) -> CorruptCheckpoint:
    """The error of a part of a step that is not what was saved."""
    return CorruptCheckpoint(f"checkpoint {path} is corrupt: its {name} does not match the digest it was saved with")


def garbled(path: pathlib.Path, name: object) -> CorruptCheckpoint:
    """The error of a file of a step that is no JSON, or has not the keys of its format."""
    return CorruptCheckpoint(f"checkpoint {path} cannot be read: its {name} is garbled")


def not_readable(error: OSError) -> UserError:
    """The error of a file that may not be opened, of whose content nothing is known."""
    return UserError(f"checkpoint: {error.filename} cannot be read: {error.strerror}; nothing was changed")


def check_format(found: object, known: int, where: object) -> int:
    """The number of a format, if this version knows it.

    Raises:
      UserError: it is higher, or no number.
    """
    if not isinstance(found, int) or found > known:
        raise UserError(
            f"{where}: expected format {known} or lower, found {found}; update resnet_jax, or mend the file"
        )
    return found
