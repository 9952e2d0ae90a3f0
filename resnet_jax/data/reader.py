"""Threads and processes that make examples and batches before they are asked for (Grain)."""

import collections
import functools
import math
import signal
import threading
import weakref
from collections.abc import Callable

import grain
import jax
import numpy as np
from absl import flags

from resnet_jax.data.sampling import EvalSampler, TrainSampler
from resnet_jax.environment import num_cpus
from resnet_jax.errors import UserError
from resnet_jax.signals import STOP_SIGNALS

WORKERS = ("threads", "processes")  # threads share memory but take turns in Python; processes do neither

_PART = 32  # rows
_UNUSED = 8  # buffers that wait to be used again

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own, which the commands here do not have


def prefetch(
    example: Callable[[int], object], count: int, threads: int | None = None, ahead: int = 0
) -> grain.IterDataset:
    """`example(0)`, ..., `example(count - 1)` in this order, made by threads.

    Args:
      example: a function that may be called from several threads at once.
      count: number of examples.
      threads: number of threads; None for one per CPU.
      ahead: how many examples, at the minimum, are made before they are asked for.
    """
    threads = threads or num_cpus()
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, 2 * threads))
    return grain.MapDataset.range(count).map(example).to_iter_dataset(reading)


def batches(
    sampler: TrainSampler | EvalSampler,
    first: int,
    count: int,
    rows: np.ndarray,
    workers: str = "threads",
    num_workers: int | None = None,
) -> grain.IterDataset:
    """`count` batches from number `first` on, prefetched; the same for any workers.

    Args:
      sampler: makes the examples of a batch.
      first, count: number of the first batch, and of batches.
      rows: int (b,), the wanted positions in the global batch.
      workers: one of `WORKERS`. Threads work on parts of a batch, each in its place; a process makes a whole one.
      num_workers: how many; None for one per CPU. More help where files come from far away.

    Raises:
      UserError: no such workers.
    """
    if workers not in WORKERS:
        raise UserError(f"workers: expected one of {', '.join(WORKERS)}, found {workers!r}")
    num_workers = num_workers or num_cpus()
    if workers == "threads":
        parts = np.array_split(np.arange(len(rows)), -(-len(rows) // _PART))
        open_batches = _OpenBatches(sampler, first, rows, parts)
        filled = prefetch(open_batches.fill_part, count * len(parts), num_workers, ahead=len(parts))
        return filled.batch(len(parts), batch_fn=open_batches.take)
    make = functools.partial(_make_batch, sampler, first, rows)
    in_turn = grain.MapDataset.range(count).map(make).to_iter_dataset(grain.ReadOptions(1, 1))
    processes = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=1)
    return in_turn.mp_prefetch(processes, worker_init_fn=_start_worker)


def _make_batch(sampler, first, rows, index):
    arrays = sampler.empty(first + index, len(rows))
    sampler.fill(arrays, first + index, rows)
    return arrays


def _start_worker(worker: int, workers: int) -> None:
    jax.config.update("jax_platforms", "cpu")  # accelerators are the main process's
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:  # they are for the main process, which ends the others
        signal.signal(number, signal.SIG_IGN)


class _OpenBatches:
    """Batches that threads are filling in place: joining parts afterwards would copy them, a tenth of all the work."""

    def __init__(self, sampler, first, rows, parts):
        self._sampler, self._first, self._rows, self._parts = sampler, first, rows, parts
        self._buffers = BufferPool()
        self._open, self._lock = {}, threading.Lock()

    def fill_part(self, index: int) -> int:
        """Fill one part; returns the number of its batch."""
        number, place = divmod(index, len(self._parts))
        with self._lock:
            if number not in self._open:
                self._open[number] = self._sampler.empty(self._first + number, len(self._rows), self._buffers.empty)
            batch = self._open[number]
        part = slice(self._parts[place][0], self._parts[place][-1] + 1)
        arrays = {name: array[part] for name, array in batch.items()}
        self._sampler.fill(arrays, self._first + number, self._rows[part])
        return number

    def take(self, numbers: list[int]) -> dict[str, np.ndarray]:
        """Remove and return the batch whose parts are filled; `numbers` holds its number once for each part."""
        with self._lock:
            return self._open.pop(numbers[0])


class BufferPool:
    """Memory for arrays that is used again once nothing refers to it.

    The system gives fresh memory page by page, which takes a twentieth of the time that a batch does. An array from
    `empty` leases its memory: the lease ends when the array and all views of it are gone, among them the aliases that
    `jax.device_put` makes on the CPU, which keep the array alive as long as the device may read it.
    """

    def __init__(self):
        self._unused = collections.deque(maxlen=_UNUSED)  # append and pop are atomic: leases end in any thread

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of arbitrary content."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            memory = self._unused.pop()
        except IndexError:
            memory = None
        if memory is None or memory.nbytes != size:  # another size: the images of a run may grow
            memory = memoryview(np.empty(size, np.uint8))
        # NumPy shortens a chain of views to the first array in it. That is this one, as a memoryview is no array: all
        # views, of whatever view, keep it alive.
        lease = np.frombuffer(memory, np.uint8)
        weakref.finalize(lease, self._unused.append, memory).atexit = False
        return lease.view(dtype).reshape(shape)
