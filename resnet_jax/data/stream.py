"""The `stream` loader: examples are read, decoded and cropped on the host while the device works."""

from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from resnet_jax.data.corrupt import warn_corrupt
from resnet_jax.data.crops import Box
from resnet_jax.data.order import StepInputs, padded_batch_size
from resnet_jax.data.reader import batches
from resnet_jax.data.sampling import EpochOrder, EvalSampler, TrainSampler
from resnet_jax.errors import UserError

_ENDLESS = 2**40  # batches


class StreamLoader:
    """Batches that are made on the host, from any step on; the same interface as `device.DeviceLoader`.

    The order of examples is that of `DeviceLoader`. An image that cannot be decoded is warned of: in training the next
    example takes its place, in evaluation it is zeros; `corrupt` marks both.

    Args:
      splits: sources by name of the split; see `sources`.
      order_key: typed PRNG key of the order and of the crops, ().
      batch_size, eval_batch_size: global; the first a multiple of `shards`.
      train_view: (draws, height, width, size=) -> Box, the part of an image to train on; see `crops`.
      train_shape: step -> (height, width, channels) of its images.
      eval_view: uint8 (h, w, c) -> uint8 model input of `eval_shape`.
      eval_shape: (height, width, channels).
      repeats: how often an example stands in a batch, each time with another crop.
      workers: one of `reader.WORKERS`.
      num_workers: how many; None for one per CPU.
      shards: number of devices that divide a batch.
      rows: batch size -> int (b,), the positions in the global batch that are this process's.
      distribute: makes arrays of the global batch from a tree of this process's rows.
      order: `(key, epoch) -> ids`; default: each example once.

    Attributes:
      splits: as given.

    Raises:
      UserError: several keys: batches of replicas differ, and each would have to be decoded.
    """

    batches_ahead = 2  # that lie on the device before they are asked for

    def __init__(
        self,
        splits: dict,
        order_key: jax.Array,
        *,
        batch_size: int,
        eval_batch_size: int,
        train_view: Callable[..., Box],
        train_shape: Callable[[int], tuple[int, int, int]],
        eval_view: Callable[[np.ndarray], np.ndarray],
        eval_shape: tuple[int, int, int],
        repeats: int,
        workers: str,
        num_workers: int | None,
        shards: int,
        rows: Callable[[int], np.ndarray],
        distribute: Callable,
        order: Callable | None = None,
    ):
        if order_key.ndim:
            raise UserError(
                f"order_key: expected one key, found {order_key.size}; replicas that are trained at once need the "
                "device loader, as each would have batches of its own to decode"
            )
        self.splits = splits
        train, seed = splits["train"], tuple(np.asarray(jax.random.key_data(order_key)).tolist())
        ids = EpochOrder(order_key, len(train), order)
        self._sampler = TrainSampler(train, ids, seed, batch_size, repeats, train_view, train_shape)
        self._eval_batch_size, self._eval_view, self._eval_shape = eval_batch_size, eval_view, eval_shape
        self._workers, self._shards = (workers, num_workers), shards
        self._rows, self._distribute = rows, distribute
        self._iterator, self._step, self._inputs = None, None, None

    def inputs(self, step: int) -> StepInputs:
        """The inputs of one training step. Quick for the step after the last one, or the last one again.

        Returns:
          Sharded `image` uint8 (b, h, w, c), `label` and `position` int32 (b,), `corrupt` bool (b,); b is `batch_size`.
        """
        if step != self._step:
            if self._iterator is None or step != self._step + 1:
                self._start(step)
            self._step, (batch, corrupt) = step, next(self._iterator)
            warn_corrupt(self.splits["train"], corrupt)
            self._inputs = StepInputs({}, batch)
        return self._inputs

    def gather(self, inputs: StepInputs, step: int | jax.Array, shard: int | jax.Array) -> dict[str, jax.Array]:
        """One device's part of the training batch (traced): as `DeviceLoader.gather`, and `corrupt`, bool (b,)."""
        return inputs.sharded

    def eval_batch_size(self, split: str) -> int:
        """Global batch size for evaluation: no more than the split needs, and a multiple of `shards`."""
        return padded_batch_size(self._eval_batch_size, len(self.splits[split]), self._shards)

    def eval_inputs(self, split: str) -> Iterator[StepInputs]:
        """One `StepInputs` per batch: sharded `image`, `label`, `mask` and `corrupt`."""
        source, batch_size, sampler = self.splits[split], self.eval_batch_size(split), self._eval_sampler(split)
        count = -(-len(source) // batch_size)
        made = batches(sampler, 0, count, self._rows(batch_size), *self._workers)
        for batch in self._prefetch(made):
            warn_corrupt(source, batch["corrupt"])
            yield StepInputs({}, self._hand_over(batch)[0])

    def eval_gather(self, split: str, inputs: StepInputs, shard: int | jax.Array) -> dict[str, jax.Array]:
        """One device's part of an evaluation batch (traced): as `DeviceLoader.eval_gather`, and bool `corrupt` (b,)."""
        return inputs.sharded

    def input_shapes(self, step: int) -> StepInputs:
        """Shapes and dtypes of `inputs(step)`. Needs neither devices nor data."""
        batch = self._sampler.empty(step, self._sampler.batch_size, empty=jax.ShapeDtypeStruct)
        return StepInputs({}, jax.eval_shape(_for_devices, batch))

    def eval_input_shapes(self, split: str) -> StepInputs:
        """Shapes and dtypes of `eval_inputs(split)`. Needs neither devices nor data."""
        batch = self._eval_sampler(split).empty(0, self.eval_batch_size(split), empty=jax.ShapeDtypeStruct)
        return StepInputs({}, jax.eval_shape(_for_devices, batch))

    def close(self) -> None:
        """Stop the workers of the training split; `inputs` starts them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = self._step = self._inputs = None

    def _start(self, step):
        self.close()
        sampler = self._sampler
        made = batches(sampler, step, _ENDLESS, self._rows(sampler.batch_size), *self._workers).map(self._hand_over)
        self._iterator = iter(self._prefetch(made))

    def _prefetch(self, made):
        return grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=self.batches_ahead)

    def _hand_over(self, batch):
        """The batch on the devices, and the ids of its corrupt examples on the host."""
        return self._distribute(_for_devices(batch)), batch["corrupt"]

    def _eval_sampler(self, split):
        return EvalSampler(self.splits[split], self._eval_view, self._eval_shape, self.eval_batch_size(split))


def _for_devices(batch):
    """A batch of a sampler with bools for the ids of corrupt examples."""
    return {**batch, "corrupt": batch["corrupt"] >= 0}
