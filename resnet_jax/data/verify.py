"""Images looked at before training, which would otherwise be found corrupt after all epochs."""

from collections.abc import Iterable

import numpy as np

from resnet_jax.data.corrupt import check_corrupt, warn_corrupt
from resnet_jax.data.decode import CorruptImage, decode, read_size
from resnet_jax.data.reader import prefetch
from resnet_jax.progress import Watch, unwatched

_CHECKS = {"headers": read_size, "full": decode}
HOW = ("off", *_CHECKS)


def verify(splits: dict, how: str, max_corrupt: float, watch: Watch = unwatched) -> None:
    """Refuse splits with too many corrupt images; warn of each.

    Args:
      splits: sources by name; see `sources`.
      how: "off"; "headers", which finds files that are no images; "full", which finds truncated ones, too.
      max_corrupt: max share of corrupt images.
      watch: see `progress.watch`.

    Raises:
      UserError: a split has more.
    """
    for split, source in splits.items() if how in _CHECKS else ():
        checks = watch(f"verifying the {split} split", _corrupt(source, how), len(source))
        corrupt = np.flatnonzero(np.fromiter(checks, bool, len(source)))
        warn_corrupt(source, corrupt)
        check_corrupt(len(corrupt), len(source), max_corrupt)


def _corrupt(source, how: str) -> Iterable[bool]:
    """True for each example that fails the check; see `verify`."""

    def fails(index):
        image = source.read(index).image
        try:
            if isinstance(image, bytes):
                _CHECKS[how](image)
        except CorruptImage:
            return True
        return False

    return prefetch(fails, len(source))
