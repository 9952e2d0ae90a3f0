"""The `stream` loader: examples are read, decoded and cropped on the host while the device works (Grain).

Every example is a pure function of (seed, step, position in the global batch), so a batch is the same for any number
of hosts, threads and processes, and a run starts at any step at once.
"""

import dataclasses
import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
from absl import flags

from resnet_jax.data.crops import Box
from resnet_jax.data.decode import DamagedImage, crop_and_resize, decode, decode_crop
from resnet_jax.data.order import Feed, epoch_order
from resnet_jax.errors import UserError

_AHEAD = 2  # batches that lie on the device before they are asked for

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own, which the commands here do not have


# --- examples: what a worker makes of a position in the stream ---


class EpochOrder:
    """The ids of the endless stream of examples: entry p % n of the order of epoch p // n, for position p.

    Args:
      key: typed, of the order.
      num_examples: n.
    """

    def __init__(self, key: jax.Array, num_examples: int):
        self._key_data = np.asarray(jax.random.key_data(key))
        self._num_examples = num_examples
        self._orders, self._lock = {}, threading.Lock()

    def __getstate__(self):
        return {"_key_data": self._key_data, "_num_examples": self._num_examples}

    def __setstate__(self, state):
        self.__dict__.update(state, _orders={}, _lock=threading.Lock())

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._num_examples)
        with self._lock:
            if epoch not in self._orders:
                self._orders.pop(epoch - 2, None)
                with jax.default_device(jax.local_devices(backend="cpu")[0]):
                    key = jax.random.wrap_key_data(self._key_data)
                    self._orders[epoch] = np.asarray(epoch_order(key, epoch, self._num_examples))
            return int(self._orders[epoch][place])


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Training examples by (step, position in the global batch).

    Attributes:
      source: of the split.
      order: of its ids.
      seed: two uint32, for the crops.
      batch_size: global.
      repeats: how often an id stands in a batch, each time with another crop (Hoffer et al. 2020, arXiv:1901.09335).
      choose_box: (random generator, height, width, size=) -> Box; see `crops`.
      size_at: side of the images of a step, in pixels.
    """

    source: object
    order: EpochOrder
    seed: tuple[int, int]
    batch_size: int
    repeats: int
    choose_box: Callable[..., Box]
    size_at: Callable[[int], int]

    def example(self, step: int, position: int) -> dict[str, np.ndarray]:
        """uint8 `image` (size, size, 3), int32 `label`; `damaged` is the id of an example that could not be decoded.

        The one after it takes its place.
        """
        distinct = self.batch_size // self.repeats  # copies lie apart, so that mixing finds other neighbours
        wanted = self.order[step * distinct + position % distinct]
        size = self.size_at(step)

        def choose_box(height, width):
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=(0, 0, position, step)))
            return self.choose_box(rng, height, width, size=size)

        for attempt in range(len(self.source)):
            stored = self.source.read((wanted + attempt) % len(self.source))
            try:
                image = cut(stored.image, choose_box, size)
            except DamagedImage:
                continue
            damaged = wanted if attempt else -1
            return {"image": image, "label": np.int32(stored.label), "damaged": np.int32(damaged)}
        raise UserError(f"data.name: none of the {len(self.source)} examples can be decoded")


def cut(image: bytes | np.ndarray, choose_box: Callable[[int, int], Box], size: int) -> np.ndarray:
    """The chosen part of an image, encoded or not: uint8 (size, size, channels)."""
    if isinstance(image, bytes):
        return decode_crop(image, choose_box, size)
    return crop_and_resize(image, choose_box(*image.shape[:2]), size)


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Examples of a split for evaluation, by id.

    Attributes:
      source: of the split.
      views: makes a list of model input, uint8, of an image, uint8 (h, w, c): here one, always of the same shape.
      blank: what stands for an image that cannot be decoded, and for padding.
    """

    source: object
    views: Callable[[np.ndarray], list[np.ndarray]]
    blank: np.ndarray

    def example(self, index: int) -> dict[str, np.ndarray]:
        """`image`; int32 `label`; bool `mask`, False for padding; `damaged`, the id of a damaged one or -1."""
        image, label, damaged = self.blank, 0, -1
        if index < len(self.source):
            images, label = read_views(self.source, self.views, index)
            image, damaged = (images[0], -1) if images else (self.blank, index)
        mask = np.bool_(index < len(self.source))
        return {"image": image, "label": np.int32(label), "mask": mask, "damaged": np.int32(damaged)}


def read_views(source, views: Callable[[np.ndarray], list[np.ndarray]], index: int) -> tuple[list[np.ndarray], object]:
    """(the views of an example, its label); no views if it is damaged."""
    stored = source.read(index)
    try:
        return views(decode(stored.image) if isinstance(stored.image, bytes) else stored.image), stored.label
    except DamagedImage:
        return [], stored.label


# --- workers ---

WORKERS = ("auto", "threads", "processes")


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who makes the examples.

    Attributes:
      kind: "threads", which share memory but take turns in Python; or "processes", which do neither; or "auto":
        threads, unless there are many CPUs and a measurement shows the threads in each other's way.
      count: how many; default: two threads, or one process, for each CPU.
    """

    kind: str
    count: int | None

    def settled(self, example: Callable[[int], object]) -> "Workers":
        """With "auto" and the default decided."""
        cpus = _num_cpus()
        kind = self.kind
        if kind == "auto":  # a few threads are never far from what their CPUs can do
            kind = "processes" if cpus >= 8 and _threads_scale(example, cpus) < 0.5 else "threads"
        return Workers(kind, self.count or {"threads": 2 * cpus, "processes": cpus}[kind])


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _threads_scale(example, cpus, count=32) -> float:
    """Speed of `cpus` threads, as a share of `cpus` times that of one."""

    def seconds(threads):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(example, range(count * threads)))
            return time.perf_counter() - start

    # The best of three: the first does what is done once, and others may be at work on the machine.
    return min(seconds(1) for _ in range(3)) / min(seconds(cpus) for _ in range(3))


def read_ahead(
    example: Callable[[int], object], count: int, threads: int | None = None, ahead: int = 0
) -> grain.IterDataset:
    """`example(0)`, ..., `example(count - 1)`, made by threads (two for each CPU), at least so many `ahead` of use."""
    threads = threads or 2 * _num_cpus()
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, 2 * threads))
    return grain.MapDataset.range(count).map(example).to_iter_dataset(reading)


def batches(example: Callable[[int], dict], num_batches: int, batch_size: int, workers: Workers) -> grain.IterDataset:
    """Batches of `example(0)`, `example(1)`, ..., made ahead by workers; in that order, whoever makes them."""
    if workers.kind == "threads":
        return read_ahead(example, num_batches * batch_size, workers.count, ahead=batch_size).batch(batch_size)
    whole = grain.MapDataset.range(num_batches * batch_size).map(example).batch(batch_size)
    in_turn = whole.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    processes = grain.MultiprocessingOptions(num_workers=workers.count, per_worker_buffer_size=1)
    return in_turn.mp_prefetch(processes, worker_init_fn=_leave_accelerators_alone)


def _leave_accelerators_alone(worker: int, workers: int) -> None:
    jax.config.update("jax_platforms", "cpu")


class DamageReport:
    """Counts examples that could not be decoded, and stops when there are too many.

    Args:
      source: they come from.
      limit: share of the source that may be damaged.
    """

    def __init__(self, source, limit: float):
        self._source, self._limit = source, limit
        self.ids = set()

    def add(self, ids: np.ndarray) -> None:
        """Of a batch: ids, or -1.

        Raises:
          UserError: more are damaged than may be.
        """
        for index in sorted(set(ids[ids >= 0].tolist()) - self.ids):
            self.ids.add(index)
            warnings.warn(f"{self._source.name(index)} cannot be decoded", stacklevel=1)
        if len(self.ids) > self._limit * len(self._source):
            names = ", ".join(self._source.name(index) for index in sorted(self.ids)[:3])
            raise UserError(
                f"data.max_damaged: expected at most {self._limit:.2%} of {len(self._source):,} examples to be "
                f"damaged, found {len(self.ids)} already, such as {names}; mend or remove them, or allow more"
            )


# --- loaders ---


class TrainLoader:
    """Batches of the training split from any step on; as `device.TrainLoader`.

    Args:
      examples: to be made.
      rows: int (b,), positions in the global batch that are this process's.
      put: makes arrays on devices of this process's part of a batch.
      workers: see there.
      max_damaged: share of the split.
    """

    def __init__(self, examples: TrainExamples, rows: np.ndarray, put: Callable, workers: Workers, max_damaged: float):
        self._examples, self._rows, self._put, self._workers = examples, rows, put, workers
        self._damage = DamageReport(examples.source, max_damaged)
        self._iterator, self._step, self._feed = None, None, None

    def feed(self, step: int) -> Feed:
        """What the device needs for the step. Quick if it is the one after the last, or the last again."""
        if step != self._step:
            if self._iterator is None or step != self._step + 1:
                self._start(step)
            self._step, (batch, damaged) = step, next(self._iterator)
            self._damage.add(damaged)
            self._feed = Feed({}, batch)
        return self._feed

    def _start(self, step):
        if self._iterator is not None:
            self._iterator.close()
        example = functools.partial(_train_example, self._examples, self._rows, step)
        self._workers = self._workers.settled(example)
        endless = 2**40 // len(self._rows)
        made = batches(example, endless, len(self._rows), self._workers).map(self._handed_over)
        self._iterator = iter(grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=_AHEAD))

    def _handed_over(self, batch):
        damaged = batch.pop("damaged")
        return self._put({**batch, "position": self._rows.astype(np.int32)}), damaged


def _train_example(examples, rows, first_step, index):
    ahead, row = divmod(index, len(rows))
    return examples.example(first_step + ahead, int(rows[row]))


def train_batch(
    feed: Feed, batch_size: int, ahead: int | jax.Array, shard: int | jax.Array, shards: int
) -> dict[str, jax.Array]:
    """As `device.train_batch`: what was cut on the host, and is this device's already."""
    return feed.batch


class EvalLoader:
    """A split in its stored order: every example once, the last batch padded and masked; as `device.EvalLoader`.

    Args:
      examples: to be made.
      batch_size: global.
      rows: int (b,), positions in the global batch that are this process's.
      put: makes arrays on devices of this process's part of a batch.
      workers: see there.
      max_damaged: share of the split.
    """

    def __init__(
        self,
        examples: EvalExamples,
        batch_size: int,
        rows: np.ndarray,
        put: Callable,
        workers: Workers,
        max_damaged: float,
    ):
        self.num_examples = len(examples.source)
        self.batch_size = batch_size
        self._examples, self._rows, self._put = examples, rows, put
        self._workers, self._max_damaged = workers, max_damaged

    def feeds(self) -> Iterator[Feed]:
        """One feed for each batch."""
        damage = DamageReport(self._examples.source, self._max_damaged)
        example = functools.partial(_eval_example, self._examples, self._rows, self.batch_size)
        self._workers = self._workers.settled(example)
        num_batches = -(-self.num_examples // self.batch_size)
        made = batches(example, num_batches, len(self._rows), self._workers)
        for batch in grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=_AHEAD):
            damaged = batch.pop("damaged")
            damage.add(damaged)
            yield Feed({}, self._put({**batch, "damaged": damaged >= 0}))

    def batch(self, feed: Feed, shard: int | jax.Array, shards: int) -> dict[str, jax.Array]:
        """This device's part of the batch (traced): as `device.EvalLoader.batch`, and `damaged`, bool (b,)."""
        return feed.batch


def _eval_example(examples, rows, batch_size, index):
    batch, row = divmod(index, len(rows))
    return examples.example(batch * batch_size + int(rows[row]))
