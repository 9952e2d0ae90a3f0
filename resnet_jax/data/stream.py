"""The `stream` loader: examples are read, decoded and cropped on the host while the device works (Grain).

Every example is a pure function of (seed, step, position in the global batch), so a batch is the same for any number
of hosts, threads and processes, and a run starts at any step at once.
"""

import dataclasses
import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
from absl import flags

from resnet_jax.data import crops
from resnet_jax.data.crops import Box
from resnet_jax.data.decode import DamagedImage, crop_and_resize, decode, decode_crop
from resnet_jax.data.order import Feed, epoch_order
from resnet_jax.errors import UserError

_PART = 32  # rows
_ENDLESS = 2**40  # batches
_KEPT = 8  # batches whose memory may be used again
_ATTEMPTS = 100  # examples in a row that may be damaged
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
                with jax.default_device(_host_device()):
                    key = jax.random.wrap_key_data(self._key_data)
                    self._orders[epoch] = np.asarray(epoch_order(key, epoch, self._num_examples))
            return int(self._orders[epoch][place])


def _host_device() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Training examples, by step and position in the global batch.

    Attributes:
      source: of the split.
      order: of its ids.
      seed: two uint32, for the crops.
      batch_size: global.
      repeats: how often an id stands in a batch, each time with another crop (Hoffer et al. 2020, arXiv:1901.09335).
      choose_box: (draws, height, width, size=) -> Box; see `crops`.
      shape_at: (height, width, channels) of the images of a step.
    """

    source: object
    order: EpochOrder
    seed: tuple[int, int]
    batch_size: int
    repeats: int
    choose_box: Callable[..., Box]
    shape_at: Callable[[int], tuple[int, int, int]]

    def empty(self, step: int, count: int) -> dict[str, np.ndarray]:
        """Arrays for so many examples of a step.

        uint8 `image` (n, height, width, channels); int32 `label`, `position` in the global batch, and `damaged`: the id
        of an example that could not be decoded, whose place the one after it takes, or -1.
        """
        numbers = {name: np.empty(count, np.int32) for name in ("label", "position", "damaged")}
        return {"image": np.empty((count, *self.shape_at(step)), np.uint8), **numbers}

    def fill(self, arrays: dict[str, np.ndarray], step: int, positions: np.ndarray) -> None:
        """Write the examples at these positions in the batch of a step."""
        arrays["position"][:] = positions
        for place, (position, draws) in enumerate(zip(positions.tolist(), self._draws(step, positions), strict=True)):
            label, damaged = self._fill(arrays["image"][place], step, position, draws)
            arrays["label"][place], arrays["damaged"][place] = label, damaged

    def _draws(self, step, positions):
        # Philox counts: the numbers of a position are found without drawing those before it, and a generator for all
        # positions of a part is quicker than one for each.
        first, last = int(positions[0]), int(positions[-1])
        blocks = crops.DRAWS  # of the four numbers that Philox makes at a count
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=(first * blocks, 0, 0, step)))
        return rng.random((last + 1 - first, blocks, 4))[positions - first]

    def _fill(self, out, step, position, draws):
        distinct = self.batch_size // self.repeats  # copies lie apart, so that mixing finds other neighbours
        wanted = self.order[step * distinct + position % distinct]

        def choose_box(height, width):
            return self.choose_box(draws, height, width, size=len(out))

        attempts = min(len(self.source), _ATTEMPTS)
        for attempt in range(attempts):
            stored = self.source.read((wanted + attempt) % len(self.source))
            try:
                if isinstance(stored.image, bytes):
                    decode_crop(stored.image, choose_box, out)
                else:
                    crop_and_resize(stored.image, choose_box(*stored.image.shape[:2]), out)
            except DamagedImage:
                continue
            return stored.label, wanted if attempt else -1
        first = self.source.name(wanted)
        raise UserError(f"data.name: none of {attempts} examples can be decoded, from {first} on; are the data there?")


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Examples of a split for evaluation, by id.

    Attributes:
      source: of the split.
      views: makes a list of model input, uint8, of an image, uint8 (h, w, c): here one, always of the same shape.
      blank: what stands for an image that cannot be decoded, and for padding.
      batch_size: global.
    """

    source: object
    views: Callable[[np.ndarray], list[np.ndarray]]
    blank: np.ndarray
    batch_size: int

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """The same for every batch."""
        return self.blank.shape

    def empty(self, batch: int, count: int) -> dict[str, np.ndarray]:
        """Arrays for so many examples.

        uint8 `image` (n, ...); int32 `label`; bool `mask`, False for padding; and int32 `damaged`: the id of an example
        that could not be decoded, or -1.
        """
        return {
            "image": np.empty((count, *self.blank.shape), np.uint8),
            "label": np.empty(count, np.int32),
            "mask": np.empty(count, bool),
            "damaged": np.empty(count, np.int32),
        }

    def fill(self, arrays: dict[str, np.ndarray], batch: int, positions: np.ndarray) -> None:
        """Write the examples at these positions in a batch."""
        for place, index in enumerate((batch * self.batch_size + positions).tolist()):
            image, label, damaged, inside = self.blank, 0, -1, index < len(self.source)
            if inside:
                views, label = read_views(self.source, self.views, index)
                image, damaged = (views[0], -1) if views else (self.blank, index)
            arrays["image"][place], arrays["label"][place] = image, label
            arrays["mask"][place], arrays["damaged"][place] = inside, damaged


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
      count: how many; default: as many as there are CPUs. More help where files come from far away.
    """

    kind: str
    count: int | None

    def settled(self, examples: "TrainExamples | EvalExamples", rows: np.ndarray) -> "Workers":
        """With "auto" and the default decided."""
        cpus = _num_cpus()
        kind = self.kind
        if kind == "auto":  # a few threads are never far from what their CPUs can do
            kind = "processes" if cpus >= 8 and _threads_scale(examples, rows[:_PART], cpus) < 0.5 else "threads"
        return Workers(kind, self.count or cpus)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _threads_scale(examples, rows, cpus, count=8) -> float:
    """Speed of `cpus` threads, as a share of `cpus` times that of one."""

    def seconds(threads):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(functools.partial(_make_batch, examples, 0, rows), [0] * (count * threads)))
            return time.perf_counter() - start

    # The best of three: the first does what is done once, and others may be at work on the machine.
    return min(seconds(1) for _ in range(3)) / min(seconds(cpus) for _ in range(3))


def read_ahead(
    example: Callable[[int], object], count: int, threads: int | None = None, ahead: int = 0
) -> grain.IterDataset:
    """`example(0)`, ..., `example(count - 1)`, made by threads, at least so many `ahead` of their use."""
    threads = threads or _num_cpus()
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, 2 * threads))
    return grain.MapDataset.range(count).map(example).to_iter_dataset(reading)


def batches(
    examples: TrainExamples | EvalExamples, first: int, count: int, rows: np.ndarray, workers: Workers
) -> grain.IterDataset:
    """`count` batches from the `first` on, made ahead by workers; in that order, whoever makes them.

    Args:
      examples: see there.
      first, count: numbers of batches.
      rows: int (b,), the positions in the global batch that are wanted.
      workers: settled. Threads work on parts of a batch, each in its place; a process makes a whole one.
    """
    if workers.kind == "threads":
        parts = np.array_split(np.arange(len(rows)), -(-len(rows) // _PART))
        begun = _BegunBatches(examples, first, rows, parts)
        made = read_ahead(begun.fill_part, count * len(parts), workers.count, ahead=len(parts))
        return made.batch(len(parts), batch_fn=begun.take)
    make = functools.partial(_make_batch, examples, first, rows)
    in_turn = grain.MapDataset.range(count).map(make).to_iter_dataset(grain.ReadOptions(1, 1))
    processes = grain.MultiprocessingOptions(num_workers=workers.count, per_worker_buffer_size=1)
    return in_turn.mp_prefetch(processes, worker_init_fn=_start_worker)


def _make_batch(examples, first, rows, index):
    arrays = examples.empty(first + index, len(rows))
    examples.fill(arrays, first + index, rows)
    return arrays


class _BegunBatches:
    """Batches that threads are at work on. Parts put together afterwards would be copied, a tenth of all the work."""

    def __init__(self, examples, first, rows, parts):
        self._examples, self._first, self._rows, self._parts = examples, first, rows, parts
        self._batches, self._given, self._lock = {}, [], threading.Lock()

    def fill_part(self, index: int) -> int:
        """Make one part; gives the number of its batch."""
        number, place = divmod(index, len(self._parts))
        with self._lock:
            if number not in self._batches:
                self._batches[number] = self._unused(self._first + number)
            batch = self._batches[number]
        part = slice(self._parts[place][0], self._parts[place][-1] + 1)
        arrays = {name: array[part] for name, array in batch.items()}
        self._examples.fill(arrays, self._first + number, self._rows[part])
        return number

    def take(self, numbers: list[int]) -> dict[str, np.ndarray]:
        """The batch whose parts are made."""
        with self._lock:
            batch = self._batches.pop(numbers[0])
            self._given = [*self._given, batch][-_KEPT:]
        return dict(batch)  # another dict: who holds it is seen in the number of references to the arrays

    def _unused(self, number):
        # New memory comes from the system page by page, a twentieth of all the work. So arrays that were given away
        # are used again, once nobody refers to them any more: neither a caller nor a device that reads them.
        for place, batch in enumerate(self._given):
            fits = batch["image"].shape[1:] == self._examples.shape_at(number)
            if fits and _references(batch) == _references({name: np.empty(0) for name in batch}):
                return self._given.pop(place)
        return self._examples.empty(number, len(self._rows))


def _references(batch):
    return [sys.getrefcount(array) for array in batch.values()]


def _start_worker(worker: int, workers: int) -> None:
    jax.config.update("jax_platforms", "cpu")  # accelerators are the main process's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the others


# --- damage ---


def name_damaged(source, ids: np.ndarray) -> None:
    """Warn of the examples of a source that could not be decoded: ids, or -1."""
    for index in ids[ids >= 0].tolist():
        warnings.warn(f"{source.name(index)} cannot be decoded", stacklevel=1)


def check_damaged(damaged: float, images: int, limit: float) -> None:
    """Stop where `damaged` of so many images are more than the share `limit`.

    Raises:
      UserError: they are.
    """
    if damaged > limit * images:
        raise UserError(
            f"data.max_damaged: expected at most {limit:.2%} of {images:,} images to be damaged, found {damaged:.0f}, "
            "which the warnings name; mend or remove them, or train a run that allows more (data.max_damaged)"
        )


# --- loaders ---


class TrainLoader:
    """Batches of the training split from any step on; as `device.TrainLoader`.

    Args:
      examples: to be made.
      rows: int (b,), positions in the global batch that are this process's.
      put: makes arrays on devices of this process's part of a batch.
      workers: see there.
    """

    def __init__(self, examples: TrainExamples, rows: np.ndarray, put: Callable, workers: Workers):
        self._examples, self._rows, self._put, self._workers = examples, rows, put, workers
        self._iterator, self._step, self._feed = None, None, None

    def feed(self, step: int) -> Feed:
        """What the device needs for the step. Quick if it is the one after the last, or the last again."""
        if step != self._step:
            if self._iterator is None or step != self._step + 1:
                self._start(step)
            self._step, (batch, damaged) = step, next(self._iterator)
            name_damaged(self._examples.source, damaged)
            self._feed = Feed({}, batch)
        return self._feed

    def close(self) -> None:
        """Stop reading ahead."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = self._step = self._feed = None

    def _start(self, step):
        self.close()
        self._workers = self._workers.settled(self._examples, self._rows)
        made = batches(self._examples, step, _ENDLESS, self._rows, self._workers).map(self._handed_over)
        self._iterator = iter(grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=_AHEAD))

    def _handed_over(self, batch):
        return self._put({**batch, "damaged": batch["damaged"] >= 0}), batch["damaged"]


def train_batch(
    feed: Feed, batch_size: int, ahead: int | jax.Array, shard: int | jax.Array, shards: int
) -> dict[str, jax.Array]:
    """As `device.train_batch`, and `damaged`, bool (b,): what was cut on the host, and is this device's already."""
    return feed.batch


class EvalLoader:
    """A split in its stored order: every example once, the last batch padded and masked; as `device.EvalLoader`.

    Args:
      examples: to be made.
      rows: int (b,), positions in the global batch that are this process's.
      put: makes arrays on devices of this process's part of a batch.
      workers: see there.
    """

    def __init__(self, examples: EvalExamples, rows: np.ndarray, put: Callable, workers: Workers):
        self.num_examples = len(examples.source)
        self.batch_size = examples.batch_size
        self._examples, self._rows, self._put, self._workers = examples, rows, put, workers

    def feeds(self) -> Iterator[Feed]:
        """One feed for each batch."""
        self._workers = self._workers.settled(self._examples, self._rows)
        made = batches(self._examples, 0, -(-self.num_examples // self.batch_size), self._rows, self._workers)
        for batch in grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=_AHEAD):
            name_damaged(self._examples.source, batch["damaged"])
            yield Feed({}, self._put({**batch, "damaged": batch["damaged"] >= 0}))

    def batch(self, feed: Feed, shard: int | jax.Array, shards: int) -> dict[str, jax.Array]:
        """This device's part of the batch (traced): as `device.EvalLoader.batch`, and `damaged`, bool (b,)."""
        return feed.batch
