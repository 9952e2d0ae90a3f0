"""Examples that cannot be decoded: warnings, and how many a run may have."""

import warnings

import numpy as np

from resnet_jax.errors import UserError


def warn_corrupt(source, ids: np.ndarray) -> None:
    """Warn of the examples of a source that could not be decoded.

    Args:
      source: see `sources`.
      ids: int (n,), numbers of the examples; -1 for none.
    """
    for index in ids[ids >= 0].tolist():
        warnings.warn(f"{source.name(index)} cannot be decoded", stacklevel=1)


def check_corrupt(corrupt: float, images: int, limit: float) -> None:
    """Refuse more corrupt images than a share of all.

    Args:
      corrupt: number of corrupt images.
      images: number of images.
      limit: the largest share, 0 to 1.

    Raises:
      UserError: `corrupt` is more than `limit * images`.
    """
    if corrupt > limit * images:
        raise UserError(
            f"data.max_corrupt: expected at most {limit:.2%} of {images:,} images to be corrupt, found {corrupt:.0f}, "
            "which the warnings name; mend or remove them, or train a run that allows more (data.max_corrupt)"
        )
