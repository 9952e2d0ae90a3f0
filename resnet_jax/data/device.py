"""The `device` loader: a data set that fits lies on the device once, as uint8; batches are gathered under jit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.order import Feed, epoch_order
from resnet_jax.data.sources import Examples


class TrainLoader:
    """Batches of the training split, each a pure function of (seed, step).

    Position p of the endless stream of examples is entry p % n of the order of epoch p // n; the batch of a step
    takes the next `batch_size` positions. `feed(step)` runs on the host and is cheap; `train_batch(feed, ...)` is
    traced.

    Args:
      examples: the split, on the host.
      key: of the order; from the run's seed. Several, (k,), for as many runs at once: then the orders are, too.
      batch_size: global.
      steps_per_feed: how many steps one feed serves.
      put: copies an array from the host to every device.
    """

    def __init__(self, examples: Examples, key: jax.Array, batch_size: int, steps_per_feed: int, put: Callable):
        self.num_examples = len(examples)
        self.batch_size = batch_size
        self._arrays = {"images": put(examples.images), "labels": put(examples.labels)}
        self._put = put
        epochs_per_feed = 1 + -(-(steps_per_feed * batch_size - 1) // self.num_examples)
        self._key = key

        def orders(key, epoch):
            return jnp.stack([epoch_order(key, epoch + ahead, self.num_examples) for ahead in range(epochs_per_feed)])

        self._orders = jax.jit(jax.vmap(orders, in_axes=(0, None)) if key.ndim else orders)
        self._epoch = None

    def feed(self, step: int) -> Feed:
        """What the device needs for the steps from `step` on."""
        epoch, offset = divmod(step * self.batch_size, self.num_examples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._arrays["orders"] = self._put(self._orders(self._key, np.int32(epoch)))
        return Feed({**self._arrays, "offset": np.int32(offset)}, {})

    def close(self) -> None:
        """Nothing is read ahead; as `stream.TrainLoader.close`."""


def train_batch(
    feed: Feed, batch_size: int, ahead: int | jax.Array, shard: int | jax.Array, shards: int
) -> dict[str, jax.Array]:
    """This device's part of a training batch, `ahead` steps after the feed's first (traced).

    Returns:
      {"image": uint8 (b, h, w, c), "label": int32 (b,), "position": int32 (b,) in the global batch}, where b is
      `batch_size // shards`.
    """
    orders = feed.shared["orders"]
    _, num_examples = orders.shape
    in_batch = shard_positions(batch_size, shard, shards)
    in_stream = feed.shared["offset"] + ahead * batch_size + in_batch
    ids = orders[in_stream // num_examples, in_stream % num_examples]
    return {"image": feed.shared["images"][ids], "label": feed.shared["labels"][ids], "position": in_batch}


class EvalLoader:
    """A split in its stored order: every example once, the last batch padded and masked.

    Args:
      examples: the split, on the host.
      batch_size: global.
      put: copies an array from the host to every device.
    """

    def __init__(self, examples: Examples, batch_size: int, put: Callable):
        self.num_examples = len(examples)
        self.batch_size = batch_size
        self._arrays = {"images": put(examples.images), "labels": put(examples.labels)}

    def feeds(self):
        """One feed for each batch."""
        for offset in range(0, self.num_examples, self.batch_size):
            yield Feed({**self._arrays, "offset": np.int32(offset)}, {})

    def batch(self, feed: Feed, shard: int | jax.Array, shards: int) -> dict[str, jax.Array]:
        """This device's part of the batch (traced): image, label and `mask`, bool (b,), False for padding."""
        ids = feed.shared["offset"] + shard_positions(self.batch_size, shard, shards)
        mask = ids < self.num_examples
        ids = jnp.where(mask, ids, 0)
        return {"image": feed.shared["images"][ids], "label": feed.shared["labels"][ids], "mask": mask}


def shard_positions(batch_size: int, shard: int | jax.Array, shards: int) -> jax.Array:
    """The positions in the global batch that belong to one of `shards` devices: int32 (batch_size // shards,)."""
    per_shard = batch_size // shards
    return shard * per_shard + jnp.arange(per_shard, dtype=jnp.int32)
