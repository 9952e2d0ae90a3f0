"""Images looked at before training, which would otherwise be found corrupt after all epochs."""

import numpy as np

from resnet_jax.data.corrupt import check_corrupt, warn_corrupt
from resnet_jax.data.decode import CorruptImage, check_header, decode
from resnet_jax.data.reader import prefetch

_CHECKS = {"headers": check_header, "full": decode}
HOW = ("off", *_CHECKS)


def verify(splits: dict, how: str, max_corrupt: float) -> None:
    """Refuse splits with too many corrupt images; warn of each.

    Args:
      splits: sources by name; see `sources`.
      how: "off"; "headers", which finds files that are no images; "full", which finds truncated ones, too.
      max_corrupt: max share of corrupt images.

    Raises:
      UserError: a split has more.
    """
    for source in splits.values() if how in _CHECKS else ():
        corrupt = np.flatnonzero(_find_corrupt(source, how))
        warn_corrupt(source, corrupt)
        check_corrupt(len(corrupt), len(source), max_corrupt)


def _find_corrupt(source, how: str) -> np.ndarray:
    """bool (n,): True for an example that fails the check; see `verify`."""

    def fails(index):
        image = source.read(index).image
        try:
            if isinstance(image, bytes):
                _CHECKS[how](image)
        except CorruptImage:
            return True
        return False

    return np.fromiter(prefetch(fails, len(source)), bool, len(source))
