"""The `device` loader: a data set that fits lies on the device once, as uint8; batches are gathered under jit."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.order import StepInputs, epoch_order, padded_batch_size
from resnet_jax.data.sources import ArrayDataset

_NUMBER = jax.ShapeDtypeStruct((), np.int32)


class DeviceLoader:
    """Batches of splits that lie on the device.

    Position p of the endless stream of training examples is entry p % n of the order of epoch p // n; the batch of a
    step takes the next `batch_size` positions. Evaluation takes a split in its stored order, every example once, the
    last batch padded and masked.

    Args:
      splits: splits by name, on the host; copied to the devices when first used.
      order_key: typed PRNG key of the order, (); or (k,) for k replicas that are trained at once.
      batch_size, eval_batch_size: global; the first a multiple of `shards`.
      steps_per_call: how many steps one `StepInputs` serves.
      shards: number of devices that divide a batch.
      replicate: copies an array to every device.
      order: `(key, epoch) -> ids`; default: each example once.

    Attributes:
      splits: as given.
    """

    batches_ahead = 0  # that lie on the device before they are asked for

    def __init__(
        self,
        splits: dict[str, ArrayDataset],
        order_key: jax.Array,
        *,
        batch_size: int,
        eval_batch_size: int,
        steps_per_call: int,
        shards: int,
        replicate: Callable,
        order: Callable | None = None,
    ):
        self.splits = splits
        self._order_key, self._batch_size, self._eval_batch_size = order_key, batch_size, eval_batch_size
        self._shards, self._replicate = shards, replicate
        num_examples = len(splits["train"])
        order = order or functools.partial(epoch_order, num_examples=num_examples)
        epochs_per_call = 1 + -(-(steps_per_call * batch_size - 1) // num_examples)

        def orders(key, epoch):
            return jnp.stack([order(key, epoch + later) for later in range(epochs_per_call)])

        self._compute_orders = jax.jit(jax.vmap(orders, in_axes=(0, None)) if order_key.ndim else orders)
        self._arrays = {}  # by split
        self._epoch, self._orders = None, None

    def inputs(self, step: int) -> StepInputs:
        """The inputs of the training steps from `step` on, all replicated; cheap but for the first step of an epoch.

        Returns:
          Replicated `images` uint8 (n, h, w, c) and `labels` int32 (n,) of the split; `orders` int32 (epochs, n), with
          replicas (k, epochs, n); int32 scalars: `first`, the step, and `offset`, its position in the first epoch.
        """
        epoch, offset = divmod(step * self._batch_size, len(self.splits["train"]))
        if epoch != self._epoch:
            self._epoch, self._orders = epoch, self._replicate(self._compute_orders(self._order_key, np.int32(epoch)))
        own = {"orders": self._orders, "first": np.int32(step), "offset": np.int32(offset)}
        return StepInputs({**self._on_device("train"), **own}, {})

    def gather(self, inputs: StepInputs, step: int | jax.Array, shard: int | jax.Array) -> dict[str, jax.Array]:
        """One device's part of the training batch of `step` (traced).

        Args:
          inputs: those of one replica, from `inputs`.
          step: int32, from `first` to before `first + steps_per_call`.
          shard: number of the device.

        Returns:
          {"image": uint8 (b, h, w, c), "label": int32 (b,), "position": int32 (b,) in the global batch}, where b is
          `batch_size // shards`.
        """
        arrays = inputs.replicated
        orders = arrays["orders"]
        _, num_examples = orders.shape
        in_batch = self._positions(self._batch_size, shard)
        in_stream = arrays["offset"] + (step - arrays["first"]) * self._batch_size + in_batch
        ids = orders[in_stream // num_examples, in_stream % num_examples]
        return {"image": arrays["images"][ids], "label": arrays["labels"][ids], "position": in_batch}

    def eval_batch_size(self, split: str) -> int:
        """Global batch size for evaluation: no more than the split needs, and a multiple of `shards`."""
        return padded_batch_size(self._eval_batch_size, len(self.splits[split]), self._shards)

    def eval_inputs(self, split: str) -> Iterator[StepInputs]:
        """One `StepInputs` per batch: `images`, `labels` and the int32 `offset` of the batch in the split."""
        for offset in range(0, len(self.splits[split]), self.eval_batch_size(split)):
            yield StepInputs({**self._on_device(split), "offset": np.int32(offset)}, {})

    def eval_gather(self, split: str, inputs: StepInputs, shard: int | jax.Array) -> dict[str, jax.Array]:
        """One device's part of an evaluation batch (traced).

        Returns:
          {"image": uint8 (b, h, w, c), "label": int32 (b,), "mask": bool (b,), False for padding}, where b is
          `eval_batch_size(split) // shards`.
        """
        arrays = inputs.replicated
        ids = arrays["offset"] + self._positions(self.eval_batch_size(split), shard)
        mask = ids < len(self.splits[split])
        ids = jnp.where(mask, ids, 0)
        return {"image": arrays["images"][ids], "label": arrays["labels"][ids], "mask": mask}

    @property
    def replica_axes(self) -> StepInputs:
        """`in_axes` of `jax.vmap` for `inputs` with k keys: the orders differ between replicas, all else is common."""
        return StepInputs({"images": None, "labels": None, "orders": 0, "first": None, "offset": None}, {})

    def input_shapes(self, step: int) -> StepInputs:
        """Shapes and dtypes of `inputs(step)`, the same for every step. Needs no device."""
        orders = jax.eval_shape(self._compute_orders, self._order_key, np.int32(0))
        return StepInputs({**self._shapes("train"), "orders": orders, "first": _NUMBER, "offset": _NUMBER}, {})

    def eval_input_shapes(self, split: str) -> StepInputs:
        """Shapes and dtypes of `eval_inputs(split)`. Needs no device."""
        return StepInputs({**self._shapes(split), "offset": _NUMBER}, {})

    def close(self) -> None:
        """Forget the arrays on the devices."""
        self._arrays = {}

    def _on_device(self, split):
        if split not in self._arrays:
            dataset = self.splits[split]
            self._arrays[split] = {
                "images": self._replicate(dataset.images),
                "labels": self._replicate(dataset.labels),
            }
        return self._arrays[split]

    def _shapes(self, split):
        dataset = self.splits[split]
        arrays = {"images": dataset.images, "labels": dataset.labels}
        return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}

    def _positions(self, batch_size, shard) -> jax.Array:
        """Positions in the global batch that belong to one device: int32 (batch_size // shards,)."""
        per_shard = batch_size // self._shards
        return shard * per_shard + jnp.arange(per_shard, dtype=jnp.int32)
