"""The largest batch that fits, found with few compilations."""

from collections.abc import Callable
from typing import NamedTuple

from resnet_jax.device_memory import largest_batch

_PARTS = 16  # the batch is found to one part in so many
_COMPILATIONS = 4  # besides the first: a large net takes minutes


class Largest(NamedTuple):
    """The largest batch that fits.

    Attributes:
      fits: a batch that fits, 0 if none was found.
      fails: the smallest that was found not to; None if each that was tried fits.
      limit: the largest that the data allow.
    """

    fits: int
    fails: int | None
    limit: int


def search_largest(
    memory: Callable[[int], int], available: int, batch: int, state: int, multiple: int, limit: int
) -> Largest:
    """Search the largest batch that fits: its memory is predicted by a line, and verified by compiling.

    Compilers have plans of their own for what hardly fits, so that a line does not find it at once. Tried is what the
    line through the last two batches says, between those known to fit and those known not to; where it ends at one that
    fits, strides beyond it, each twice the last; where it leads to one that does not, the middle.

    Args:
      memory: bytes that a batch needs; compiles it.
      available: bytes.
      batch: one to begin with.
      state: bytes of a batch of 0.
      multiple: divisor of every possible batch.
      limit: the largest batch that the data allow.
    """
    fits, fails, last, guess, strides = 0, None, (0, state), batch, 1
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
        if fails is not None and predicted > highest:
            predicted = (lowest + highest) // 2 // multiple * multiple
        elif needed <= available and predicted < lowest:
            predicted, strides = fits + strides * step, 2 * strides
        last, guess = (guess, needed), min(max(predicted, lowest), highest)
    return Largest(fits, fails, top)
