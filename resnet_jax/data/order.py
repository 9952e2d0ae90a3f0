"""What all loaders share: the order of examples, a pure function of (seed, epoch), and the form of what they give."""

from typing import NamedTuple

import jax


class Feed(NamedTuple):
    """What compiled steps take besides the state.

    Attributes:
      shared: arrays that every device has.
      batch: arrays whose first axis is divided among the devices.
    """

    shared: dict
    batch: dict


def epoch_order(key: jax.Array, epoch: int, num_examples: int) -> jax.Array:
    """A permutation of the example ids 0..num_examples-1, int32 (num_examples,). `key` comes from the run's seed."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def steps_for_epochs(epochs: float, num_examples: int, batch_size: int) -> int:
    """The first step after which `epochs` epochs have been seen in full.

    Batches run on over the end of an epoch, so that every epoch holds each example exactly once.

    >>> steps_for_epochs(2, num_examples=100, batch_size=32)  # 200 / 32 = 6.25
    7
    """
    return -int(-round(epochs * num_examples, 6) // batch_size)
