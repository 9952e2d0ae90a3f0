"""Batches are the same, whoever makes them; memory is used again only when nobody holds it."""

import gc
import threading

import jax
import numpy as np
import pytest

from resnet_jax.data.reader import BufferPool, batches, num_cpus, prefetch
from resnet_jax.data.sources import SyntheticSource
from resnet_jax.errors import UserError
from tests.data.examples import assert_equal_batches, host_batches, train_sampler


@pytest.mark.parametrize(
    "rows_of_hosts",
    [np.split(np.arange(12), 2), np.split(np.arange(12), 4), [np.arange(12)[::2], np.arange(12)[1::2]]],
    ids=["2", "4", "2, taking turns"],
)
def test_the_parts_of_several_hosts_make_up_the_batches_of_one(rows_of_hosts):
    sampler = train_sampler()
    whole = host_batches(sampler, count=8)  # over the end of an epoch
    for rows in rows_of_hosts:
        expected = [{name: array[rows] for name, array in batch.items()} for batch in whole]
        assert_equal_batches(host_batches(sampler, count=8, rows=rows), expected)


@pytest.mark.parametrize("threads", [1, 5, None])
def test_batches_do_not_depend_on_the_number_of_threads(threads):
    sampler = train_sampler(batch_size=40)  # more than one part each
    assert_equal_batches(host_batches(sampler, num_workers=threads), host_batches(sampler))


@pytest.mark.slow
def test_processes_make_the_same_batches_as_threads():
    sampler = train_sampler()
    made = host_batches(sampler, first=3, workers="processes")
    assert_equal_batches(made, host_batches(sampler, first=3))


def test_other_workers_are_refused():
    with pytest.raises(UserError, match="workers: expected one of threads, processes, found 'auto'"):
        batches(train_sampler(), 0, 1, np.arange(12), "auto")


def test_batches_can_start_at_any_step():
    sampler = train_sampler()
    whole = host_batches(sampler, count=9)
    for first in (1, 4, 7):  # in and after the first epoch
        assert_equal_batches(host_batches(sampler, first, 2), whole[first : first + 2])


def test_a_late_step_starts_as_fast_as_the_first():
    class Counting(SyntheticSource):
        reads = 0

        def read(self, index):
            type(self).reads += 1
            return super().read(index)

    host_batches(train_sampler(Counting(50, 5, seed=0)), first=10**7, count=1)
    assert Counting.reads == 12


def test_examples_are_made_by_as_many_threads_as_there_are_cpus():
    threads = set()

    def note(index):
        threads.add(threading.get_ident())
        return index

    assert list(prefetch(note, 200)) == list(range(200))
    assert threads - {threading.get_ident()} and len(threads) <= num_cpus()


@pytest.fixture
def allocated(monkeypatch):
    """Sizes of the arrays that `np.empty` has made since."""
    sizes, empty = [], np.empty

    def note(shape, *arguments):
        sizes.append(np.prod(shape))
        return empty(shape, *arguments)

    monkeypatch.setattr(np, "empty", note)
    return sizes


def test_memory_of_batches_is_used_again_only_when_nobody_holds_it(allocated):
    sampler = train_sampler()
    made = iter(batches(sampler, 0, 40, np.arange(12), "threads", 2))
    held = [next(made) for _ in range(3)]
    on_device = jax.device_put(next(made)["image"])
    part_of_one = next(made)["image"][2:5]
    for batch in made:
        assert len(np.unique(batch["position"])) == 12
    assert allocated.count(12 * 8 * 8 * 3) < 30  # of 40 batches
    expected = host_batches(sampler, count=5)
    assert_equal_batches(held, expected[:3])
    np.testing.assert_array_equal(on_device, expected[3]["image"])
    np.testing.assert_array_equal(part_of_one, expected[4]["image"][2:5])


@pytest.mark.parametrize(
    "alias",
    [
        lambda array: array,
        lambda array: array[1:][1:],
        lambda array: array[1:].T[1:],
        lambda array: memoryview(array)[1:],
        lambda array: np.asarray(array)[..., None].view(np.int8),
        jax.device_put,
        lambda array: jax.device_put(array[1:])[1:],
    ],
    ids=["array", "view of a view", "transposed", "memoryview", "other dtype", "device", "view on a device"],
)
def test_the_lease_of_a_buffer_ends_with_its_last_alias(alias, allocated):
    pool = BufferPool()
    array = pool.empty((64, 64), np.uint8)
    array[:] = 7
    aliased = alias(array)
    before = np.array(aliased)
    del array
    gc.collect()
    later = [pool.empty((64, 64), np.uint8) for _ in range(4)]
    for other in later:
        other[:] = 9
    np.testing.assert_array_equal(np.asarray(aliased), before)
    del aliased, later, other
    gc.collect()
    count = allocated.count(64 * 64)
    assert len([pool.empty((64, 64), np.uint8) for _ in range(count)]) == allocated.count(64 * 64)  # none is new


def test_a_buffer_of_another_size_is_not_used_again():
    pool = BufferPool()
    for side in (8, 16, 12):
        array = pool.empty((side, side), np.uint8)
        assert array.shape == (side, side) and array.flags.c_contiguous and array.flags.writeable
        array[:] = side
        del array
