"""The order of examples, a pure function of (seed, epoch), and the inputs of a step that both loaders give."""

from typing import NamedTuple

import jax


class StepInputs(NamedTuple):
    """Inputs of compiled steps besides the state.

    Attributes:
      replicated: arrays that every device has.
      sharded: arrays whose first axis is divided among the devices.
    """

    replicated: dict
    sharded: dict


def epoch_order(key: jax.Array, epoch: int | jax.Array, num_examples: int) -> jax.Array:
    """A permutation of the example ids 0..num_examples-1, int32 (num_examples,).

    Args:
      key: typed PRNG key, made of the seed.
      epoch: number of the epoch, from 0.
      num_examples: size of the training split.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def padded_batch_size(batch_size: int, num_examples: int, shards: int) -> int:
    """The global batch size for evaluation: no more than `num_examples` need, and a multiple of `shards`.

    >>> padded_batch_size(512, num_examples=10, shards=4)
    12
    """
    return -(-min(batch_size, num_examples) // shards) * shards


def steps_for_epochs(epochs: float, num_examples: int, batch_size: int) -> int:
    """The first step after which `epochs` epochs have been seen in full.

    Batches run on over the end of an epoch, so that every epoch holds each example exactly once.

    >>> steps_for_epochs(2, num_examples=100, batch_size=32)  # 200 / 32 = 6.25
    7
    """
    return -int(-round(epochs * num_examples, 6) // batch_size)
