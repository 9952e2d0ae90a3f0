"""The order of examples, a pure function of (seed, epoch), and the inputs of a step that both loaders give."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError


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


def balanced_order(key: jax.Array, epoch: int | jax.Array, ids: jax.Array, counts: jax.Array) -> jax.Array:
    """As many draws as there are examples, each class as often as every other (to one), int32 (num_examples,).

    An example of a rare class is drawn several times, with replacement.

    Args:
      key, epoch: see `epoch_order`.
      ids: int (num_examples,), the example ids, sorted by class.
      counts: int (classes,), number of examples of each class, all above 0.
    """
    ids, counts = jnp.asarray(ids), jnp.asarray(counts)
    class_key, place_key = jax.random.split(jax.random.fold_in(key, epoch))
    classes = jax.random.permutation(class_key, jnp.arange(len(ids)) % len(counts))
    places = jnp.floor(jax.random.uniform(place_key, (len(ids),)) * counts[classes]).astype(jnp.int32)
    places = jnp.minimum(places, counts[classes] - 1)  # where rounding gives 1
    return ids[jnp.cumsum(counts)[classes] - counts[classes] + places]


def make_order(labels: np.ndarray | None, num_examples: int, num_classes: int, balanced: bool = False) -> Callable:
    """The function `(key, epoch) -> ids`: each example once, or `balanced` between classes.

    Raises:
      UserError: labels that are not known, or a class without examples.
    """
    if not balanced:
        return functools.partial(epoch_order, num_examples=num_examples)
    if labels is None:
        raise UserError("data.balanced: expected data whose labels are known without reading all; take a folder or tar")
    counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
    if not counts.all():
        raise UserError(f"data.balanced: expected examples of every class, found none of class {counts.argmin()}")
    return functools.partial(balanced_order, ids=np.argsort(labels, kind="stable").astype(np.int32), counts=counts)


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
