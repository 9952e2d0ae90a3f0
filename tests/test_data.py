import hashlib

import jax
import numpy as np
import pytest

from resnet_jax import DATASETS, UserError
from resnet_jax.data import sources
from resnet_jax.data.device import EvalLoader, TrainLoader, train_batch
from resnet_jax.data.order import epoch_order, steps_for_epochs
from resnet_jax.data.sources import Examples, load_splits, stratified_holdout

KEY = jax.random.key(3)


def numbered(n):
    """Examples whose one pixel is their id."""
    return Examples(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.int32) % 10)


def ids_of(batch):
    return np.asarray(batch["image"])[:, 0, 0, 0].tolist()


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [np.asarray(epoch_order(jax.random.key(s), e, 100)).tolist() for s in (0, 1) for e in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == np.asarray(epoch_order(jax.random.key(0), 0, 100)).tolist()


@pytest.mark.parametrize(("batch_size", "steps_per_feed"), [(32, 1), (7, 3), (250, 1), (90, 4)])
def test_batches_are_the_epochs_orders_one_after_another(batch_size, steps_per_feed):
    loader = TrainLoader(numbered(100), KEY, batch_size, steps_per_feed, put=np.asarray)
    stream = np.concatenate([epoch_order(KEY, epoch, 100) for epoch in range(30)])
    for step in (0, steps_per_feed, 3 * steps_per_feed, 0):  # any step, in any order: a resume needs no history
        feed = loader.feed(step)
        for ahead in range(steps_per_feed):
            start = (step + ahead) * batch_size
            batch = train_batch(feed, batch_size, ahead, shard=0, shards=1)
            assert ids_of(batch) == stream[start : start + batch_size].tolist()
            np.testing.assert_array_equal(batch["label"], np.array(ids_of(batch)) % 10)


def test_every_epoch_holds_each_example_exactly_once():
    loader = TrainLoader(numbered(100), KEY, 32, 1, put=np.asarray)
    seen = [i for step in range(25) for i in ids_of(train_batch(loader.feed(step), 32, 0, 0, 1))]
    assert all(sorted(seen[start : start + 100]) == list(range(100)) for start in range(0, 800, 100))


@pytest.mark.parametrize("shards", [2, 4])
def test_the_devices_parts_make_up_the_global_batch(shards):
    loader = TrainLoader(numbered(100), KEY, 32, 1, put=np.asarray)
    whole = train_batch(loader.feed(5), 32, 0, 0, 1)
    parts = [train_batch(loader.feed(5), 32, 0, shard, shards) for shard in range(shards)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("batch_size", [1, 3, 8, 10, 16])
@pytest.mark.parametrize("shards", [1, 2])
def test_evaluation_takes_every_example_exactly_once(batch_size, shards):
    batch_size *= shards
    loader = EvalLoader(numbered(10), batch_size, put=np.asarray)
    batches = [loader.batch(feed, s, shards) for feed in loader.feeds() for s in range(shards)]
    seen = [i for batch in batches for i, counts in zip(ids_of(batch), batch["mask"], strict=True) if counts]
    assert seen == list(range(10))


@pytest.mark.parametrize(("epochs", "expected"), [(1, 4), (2, 7), (0.5, 2), (8, 25), (0.1, 1)])
def test_steps_for_epochs_is_the_first_step_that_completes_them(epochs, expected):
    assert steps_for_epochs(epochs, num_examples=100, batch_size=32) == expected


def test_the_holdout_is_stratified_and_fixed():
    labels = np.repeat(np.arange(10), [5, 10, 20, 40, 80, 5, 10, 20, 40, 80])
    held_out = stratified_holdout(labels, 62)
    assert len(set(held_out.tolist())) == 62
    expected = np.bincount(labels) * 62 / len(labels)
    assert np.abs(np.bincount(labels[held_out], minlength=10) - expected).max() <= 1
    np.testing.assert_array_equal(held_out, stratified_holdout(labels, 62))


def test_digits_are_split_as_ever():
    """The published digits results depend on this split: a new digest makes them, and old checkpoints, incomparable."""
    splits = load_splits("digits", validation_size=180)
    assert {name: len(examples.labels) for name, examples in splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    for size, name in ((36, "test"), (18, "validation")):
        assert np.abs(np.bincount(splits[name].labels) - size).max() <= 1
    digest = hashlib.sha256(b"".join(splits[name].images.tobytes() for name in sorted(splits))).hexdigest()
    assert digest[:16] == "a0749782e2d826f8"
    everything = np.concatenate([splits[name].images for name in splits]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    original = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.sort(everything.view("S64"), axis=0), np.sort(original.view("S64"), axis=0))


def test_facts_of_digits_are_those_of_the_data():
    train = load_splits("digits", validation_size=0)["train"].images / 255
    np.testing.assert_allclose(DATASETS["digits"].mean, train.mean(), atol=5e-5)
    np.testing.assert_allclose(DATASETS["digits"].std, train.std(), atol=5e-5)


@pytest.mark.parametrize("name", DATASETS)
def test_facts_fit_together(name):
    facts = DATASETS[name]
    assert len(facts.mean) == len(facts.std) == facts.image_shape[2]
    assert len(set(facts.class_names)) == facts.num_classes == (100 if name == "cifar100" else 10)


@pytest.mark.parametrize("bad_label", [-1, 10])
def test_labels_out_of_range_are_refused(monkeypatch, bad_label):
    read = sources._read_digits

    def with_a_bad_label(facts, split):
        examples = read(facts, split)
        examples.labels[7] = bad_label
        return examples

    monkeypatch.setattr(sources, "_read_digits", with_a_bad_label)
    with pytest.raises(UserError, match=f"example 7 of its train split has label {bad_label}"):
        load_splits("digits", 0)


def test_a_split_of_another_size_is_refused(monkeypatch):
    read = sources._read_digits
    monkeypatch.setattr(sources, "_read_digits", lambda facts, split: read(facts, split).take(np.arange(300)))
    with pytest.raises(UserError, match="should have 1437 examples in its train split, found 300"):
        load_splits("digits", 0)


def test_data_that_are_not_prepared_end_with_the_command_to_run(tmp_path):
    with pytest.raises(UserError, match=f"python -m resnet_jax.data.prepare kmnist --data_dir {tmp_path}"):
        load_splits("kmnist", 0, str(tmp_path))
