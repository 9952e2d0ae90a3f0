"""The largest batch that fits, found with few compilations."""

from collections.abc import Callable
from typing import NamedTuple

from resnet_jax.device_memory import largest_batch

_PARTS = 32  # the batch is found to one part in so many
_COMPILATIONS = 6


class Largest(NamedTuple):
    """The largest batch that fits.

    Attributes:
      fits: a batch that fits, 0 if none was found.
      fails: one that does not, at most a 32nd larger if it could be found; None where all that the data allow fits.
    """

    fits: int
    fails: int | None


def search_largest(
    memory: Callable[[int], int], available: int, batch: int, state: int, multiple: int, limit: int
) -> Largest:
    """Search the largest batch that fits: its memory is predicted by a line, and verified by compiling.

    Compilers have plans of their own for what hardly fits, so that a line does not find it at once. Tried is what the
    line through the last two batches says, between those known to fit and those known not to; or the middle of these.

    Args:
      memory: bytes that a batch needs; compiles it.
      available: bytes.
      batch: one to begin with.
      state: bytes of a batch of 0.
      multiple: what a batch must be a multiple of.
      limit: the largest batch that the data allow.
    """
    fits, fails, last, guess = 0, None, (0, state), batch
    top = limit // multiple * multiple
    for _ in range(1 + _COMPILATIONS):
        needed = memory(guess)
        if needed <= available:
            fits = guess
        else:
            fails = guess
        step = max(multiple, fits // _PARTS // multiple * multiple)
        lowest, highest = fits + step, top if fails is None else fails - step
        if lowest > highest:
            break
        predicted = largest_batch(available, *sorted([last, (guess, needed)]), multiple)
        if needed > available and predicted > highest:
            predicted = (lowest + highest) // 2 // multiple * multiple
        last, guess = (guess, needed), min(max(predicted, lowest), highest)
    return Largest(fits, fails)
