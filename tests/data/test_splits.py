"""Splits by the name of a data set: the digits, held out examples, and refusals."""

import hashlib

import numpy as np
import pytest

from resnet_jax.data import DATASETS, splits
from resnet_jax.data.sources import ArrayDataset
from resnet_jax.data.splits import (
    KNOWN_DATASETS,
    check_dataset_name,
    dataset_info,
    is_known,
    load_splits,
    stratified_holdout,
)
from resnet_jax.errors import UserError


@pytest.fixture(autouse=True)
def fresh():
    splits._load_arrays.cache_clear()
    yield
    splits._load_arrays.cache_clear()


def test_the_holdout_is_stratified_and_fixed():
    labels = np.repeat(np.arange(10), [5, 10, 20, 40, 80, 5, 10, 20, 40, 80])
    held_out = stratified_holdout(labels, 62)
    assert len(set(held_out.tolist())) == 62
    expected = np.bincount(labels) * 62 / len(labels)
    assert np.abs(np.bincount(labels[held_out], minlength=10) - expected).max() <= 1
    np.testing.assert_array_equal(held_out, stratified_holdout(labels, 62))


def test_digits_are_split_as_ever():
    """The published digits results depend on this split: a new digest makes them, and old checkpoints, incomparable."""
    digits = load_splits("digits", 180, None)
    assert {name: len(dataset.labels) for name, dataset in digits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    for size, name in ((36, "test"), (18, "validation")):
        assert np.abs(np.bincount(digits[name].labels) - size).max() <= 1
    digest = hashlib.sha256(b"".join(digits[name].images.tobytes() for name in sorted(digits))).hexdigest()
    assert digest[:16] == "a0749782e2d826f8"
    everything = np.concatenate([digits[name].images for name in digits]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    original = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.sort(everything.view("S64"), axis=0), np.sort(original.view("S64"), axis=0))


def test_a_dataset_in_memory_is_also_a_source():
    test = load_splits("digits", 0, None)["test"]
    assert isinstance(test, ArrayDataset) and test.class_names == DATASETS["digits"].class_names
    image, label = test.read(7)
    np.testing.assert_array_equal(image, test.images[7])
    assert label == test.labels[7] and isinstance(label, int) and test.name(7) == "example 7"
    part = test.take(np.array([7, 3]))
    assert len(part) == 2 and part.class_names == test.class_names
    np.testing.assert_array_equal(part.read(0).image, image)


def test_the_runs_of_a_study_share_one_copy():
    assert load_splits("digits", 180, None) is load_splits("digits", validation_size=180, data_dir=None)


def test_metadata_of_digits_are_those_of_the_data():
    train = load_splits("digits", 0, None)["train"].images / 255
    np.testing.assert_allclose(DATASETS["digits"].mean, train.mean(), atol=5e-5)
    np.testing.assert_allclose(DATASETS["digits"].std, train.std(), atol=5e-5)


@pytest.mark.parametrize("name", DATASETS)
def test_metadata_fit_together(name):
    info = DATASETS[name]
    assert info.fixed_size and len(info.mean) == len(info.std) == info.image_shape[2]
    assert len(set(info.class_names)) == info.num_classes == (100 if name == "cifar100" else 10)
    assert dataset_info(name, None) is info


def test_metadata_of_sources_are_read_off_them():
    info = dataset_info("synthetic:100:5", None)
    assert info.num_classes == 5 and info.splits == {"train": 100, "test": 10}
    assert not info.fixed_size and info.image_shape is None


@pytest.mark.parametrize("bad_label", [-1, 10])
def test_labels_out_of_range_are_refused(monkeypatch, bad_label):
    read = splits._read_digits

    def with_a_bad_label(info, split):
        dataset = read(info, split)
        dataset.labels[7] = bad_label
        return dataset

    monkeypatch.setattr(splits, "_read_digits", with_a_bad_label)
    with pytest.raises(UserError, match=f"example 7 of its train split has label {bad_label}"):
        load_splits("digits", 0, None)


def test_a_split_of_another_size_is_refused(monkeypatch):
    read = splits._read_digits
    monkeypatch.setattr(splits, "_read_digits", lambda info, split: read(info, split).take(np.arange(300)))
    with pytest.raises(UserError, match="should have 1437 examples in its train split, found 300"):
        load_splits("digits", 0, None)


def test_data_that_are_not_prepared_end_with_the_command_to_run(tmp_path):
    with pytest.raises(UserError, match=f"python -m resnet_jax.data.prepare kmnist --data_dir {tmp_path}"):
        load_splits("kmnist", 0, str(tmp_path))


@pytest.mark.parametrize("name", ["digits", "imagenet2012", "tfds:x", "folder", "tar", "synthetic:9:3"])
def test_names_of_every_form_are_known(name):
    assert is_known(name)
    assert name in KNOWN_DATASETS or name.split(":")[0] in {known.split(":")[0] for known in KNOWN_DATASETS}
    check_dataset_name(name)


@pytest.mark.parametrize("use", [check_dataset_name, lambda name: load_splits(name, 0, None)])
def test_an_unknown_name_is_refused_with_the_closest_one(use):
    assert not is_known("flder")
    with pytest.raises(UserError, match="data.name: expected one of its names, found 'flder'.*did you mean 'folder'"):
        use("flder")


def test_a_synthetic_name_without_its_numbers_is_refused():
    with pytest.raises(UserError, match="data.name: expected synthetic:EXAMPLES:CLASSES"):
        load_splits("synthetic:9", 0, None)


def test_files_without_a_path_are_refused():
    for name in ("folder", "tar"):
        with pytest.raises(UserError, match=f"data.data_dir: data.name={name} needs the path"):
            dataset_info(name, None)
