"""The device loader and the order of examples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.device import DeviceLoader
from resnet_jax.data.order import StepInputs, epoch_order, padded_batch_size, steps_for_epochs
from resnet_jax.data.sources import ArrayDataset

KEY = jax.random.key(3)


def numbered(n):
    """Examples whose one pixel is their id."""
    ids = np.arange(n)
    return ArrayDataset(ids.astype(np.uint8).reshape(n, 1, 1, 1), ids.astype(np.int32) % 10, tuple("abcdefghij"))


def make_loader(n=100, batch_size=32, steps_per_call=1, shards=1, eval_batch_size=32, key=KEY):
    return DeviceLoader(
        {"train": numbered(n), "test": numbered(10)},
        key,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        steps_per_call=steps_per_call,
        shards=shards,
        replicate=jnp.asarray,
    )


def ids_of(batch):
    return np.asarray(batch["image"])[:, 0, 0, 0].tolist()


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [np.asarray(epoch_order(jax.random.key(s), e, 100)).tolist() for s in (0, 1) for e in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == np.asarray(epoch_order(jax.random.key(0), 0, 100)).tolist()


@pytest.mark.parametrize(("batch_size", "steps_per_call"), [(32, 1), (7, 3), (250, 1), (90, 4)])
def test_batches_are_the_epochs_orders_one_after_another(batch_size, steps_per_call):
    loader = make_loader(batch_size=batch_size, steps_per_call=steps_per_call)
    stream = np.concatenate([epoch_order(KEY, epoch, 100) for epoch in range(30)])
    for first in (0, steps_per_call, 3 * steps_per_call, 0):  # any step, in any order: a resume needs no history
        inputs = loader.inputs(first)
        for step in range(first, first + steps_per_call):
            batch = loader.gather(inputs, step, shard=0)
            start = step * batch_size
            assert ids_of(batch) == stream[start : start + batch_size].tolist()
            np.testing.assert_array_equal(batch["label"], np.array(ids_of(batch)) % 10)


def test_a_traced_step_gathers_the_batch_of_that_step():
    loader = make_loader(batch_size=32, steps_per_call=4, shards=2)
    inputs = loader.inputs(8)
    gathered = jax.jit(loader.gather)(inputs, np.int32(10), np.int32(1))
    chex.assert_shape(gathered["image"], (16, 1, 1, 1))
    chex.assert_shape([gathered["label"], gathered["position"]], (16,))
    chex.assert_type([gathered["image"], gathered["label"], gathered["position"]], [np.uint8, np.int32, np.int32])
    assert ids_of(gathered) == ids_of(make_loader().gather(make_loader().inputs(10), 10, 0))[16:]
    assert gathered["position"].tolist() == list(range(16, 32))


def test_every_epoch_holds_each_example_exactly_once():
    loader = make_loader()
    seen = [i for step in range(25) for i in ids_of(loader.gather(loader.inputs(step), step, 0))]
    assert all(sorted(seen[start : start + 100]) == list(range(100)) for start in range(0, 800, 100))


@pytest.mark.parametrize("shards", [2, 4])
def test_the_devices_parts_make_up_the_global_batch(shards):
    loader = make_loader(shards=shards)
    whole = make_loader().gather(make_loader().inputs(5), 5, 0)
    parts = [loader.gather(loader.inputs(5), 5, shard) for shard in range(shards)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("batch_size", [1, 3, 8, 10, 16])
@pytest.mark.parametrize("shards", [1, 2])
def test_evaluation_takes_every_example_exactly_once(batch_size, shards):
    loader = make_loader(eval_batch_size=batch_size, shards=shards)
    batches = [loader.eval_gather("test", inputs, s) for inputs in loader.eval_inputs("test") for s in range(shards)]
    seen = [i for batch in batches for i, counts in zip(ids_of(batch), batch["mask"], strict=True) if counts]
    assert seen == list(range(10))
    chex.assert_shape([batch["mask"] for batch in batches], (loader.eval_batch_size("test") // shards,))


@pytest.mark.parametrize(("wanted", "shards", "expected"), [(512, 1, 10), (512, 4, 12), (6, 1, 6), (6, 4, 8)])
def test_the_batch_of_evaluation_is_no_larger_than_the_split_needs(wanted, shards, expected):
    assert padded_batch_size(wanted, 10, shards) == expected
    assert make_loader(eval_batch_size=wanted, shards=shards).eval_batch_size("test") == expected


def test_replicas_have_each_the_order_of_its_own_key():
    keys = jax.random.split(KEY, 3)
    together = make_loader(batch_size=32, steps_per_call=2, key=keys)
    inputs = together.inputs(2)
    axes = together.replica_axes
    assert isinstance(axes, StepInputs) and axes.replicated.keys() == inputs.replicated.keys()
    steps = np.full(3, 3, np.int32)
    batches = jax.vmap(together.gather, in_axes=(axes, 0, None))(inputs, steps, 0)
    for replica, key in enumerate(keys):
        alone = make_loader(batch_size=32, steps_per_call=2, key=key)
        assert batches["image"][replica, :, 0, 0, 0].tolist() == ids_of(alone.gather(alone.inputs(2), 3, 0))


def test_a_split_is_copied_to_the_device_once_and_when_it_is_used():
    copied = []
    splits = {"train": numbered(100), "test": numbered(10)}
    settings = {"batch_size": 32, "eval_batch_size": 4, "steps_per_call": 1, "shards": 1}
    loader = DeviceLoader(splits, KEY, replicate=lambda x: copied.append(len(x)) or np.asarray(x), **settings)
    assert not copied
    for _ in range(2):
        assert len(list(loader.eval_inputs("test"))) == 3
    assert copied == [10, 10]  # images, labels
    loader.inputs(0)
    list(loader.eval_inputs("train"))
    assert copied.count(100) == 2


@pytest.mark.parametrize(("epochs", "expected"), [(1, 4), (2, 7), (0.5, 2), (8, 25), (0.1, 1)])
def test_steps_for_epochs_is_the_first_step_that_completes_them(epochs, expected):
    assert steps_for_epochs(epochs, num_examples=100, batch_size=32) == expected


def shapes_of(inputs):
    return jax.tree.map(lambda x: (x.shape, x.dtype), inputs)


@pytest.mark.parametrize("settings", [{}, {"steps_per_call": 8, "batch_size": 64}, {"key": jax.random.split(KEY, 3)}])
def test_the_shapes_of_inputs_are_known_before_anything_is_copied(settings):
    loader = make_loader(shards=4, **settings)
    train, evaluation = loader.input_shapes(5), loader.eval_input_shapes("test")
    assert loader._arrays == {}
    chex.assert_trees_all_equal(shapes_of(train), shapes_of(jax.tree.map(jnp.asarray, loader.inputs(5))))
    real = jax.tree.map(jnp.asarray, next(loader.eval_inputs("test")))
    chex.assert_trees_all_equal(shapes_of(evaluation), shapes_of(real))
