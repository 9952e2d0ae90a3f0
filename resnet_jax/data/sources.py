"""The splits of a data set: whole in host memory as uint8 images and int32 labels, or as sources on disk."""

import dataclasses
import functools
import io

import numpy as np

from resnet_jax.data.archives import ArraySource, Subset, is_archive, open_archive, open_builder, open_records
from resnet_jax.data.facts import DATASETS, DatasetFacts
from resnet_jax.errors import UserError

_HOLDOUT_SEED = 0  # of the splits, not of a run: two runs with different seeds train on the same examples


@dataclasses.dataclass(frozen=True)
class Examples:
    """images: uint8 (n, height, width, channels); labels: int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> "Examples":
        return Examples(self.images[ids], self.labels[ids])


@functools.lru_cache(maxsize=1)  # the runs of a study share it; nobody writes to it
def load_splits(name: str, validation_size: int, data_dir: str | None = None) -> dict[str, Examples]:
    """The splits `train`, `validation` (absent when `validation_size` is 0) and `test` of a data set.

    The validation split is held out of the official training split: stratified by class and the same for every seed.

    Args:
      name: a key of `DATASETS`.
      validation_size: number of examples.
      data_dir: where prepared data sets lie; None for the default of TensorFlow Datasets.

    Raises:
      UserError: data that are not prepared, of another size than the facts say, or with labels out of range.
    """
    facts = DATASETS[name]
    official = {split: _read_split(name, facts, split, data_dir) for split in ("train", "test")}
    for split, examples in official.items():
        _check_examples(name, facts, split, examples)
    if not validation_size:
        return official
    held_out = stratified_holdout(official["train"].labels, validation_size)
    kept = np.setdiff1d(np.arange(len(official["train"].labels)), held_out)
    return {
        "train": official["train"].take(kept),
        "validation": official["train"].take(held_out),
        "test": official["test"],
    }


def dataset_facts(name: str, data_dir: str | None) -> DatasetFacts:
    """What is known of a data set, of those that stay on disk by a look at the disk.

    Raises:
      UserError: data that are not there.
    """
    return open_archive(name, data_dir)[0] if is_archive(name) else DATASETS[name]


def open_splits(name: str, validation_size: int, data_dir: str | None = None) -> dict:
    """The splits of `load_splits` as sources that are read one example at a time; see `archives`.

    Where labels are only known by reading everything (TensorFlow Datasets) the validation split is not stratified.
    """
    if not is_archive(name):
        class_names = DATASETS[name].class_names
        splits = load_splits(name, validation_size, data_dir)
        return {split: ArraySource(e.images, e.labels, class_names) for split, e in splits.items()}
    official = open_archive(name, data_dir)[1]
    if not validation_size:
        return official
    train = official["train"]
    labels = train.labels if train.labels is not None else np.zeros(len(train), np.int32)
    held_out = stratified_holdout(labels, validation_size)
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return {"train": Subset(train, kept), "validation": Subset(train, held_out), "test": official["test"]}


def stratified_holdout(labels: np.ndarray, size: int) -> np.ndarray:
    """`size` example ids, sorted, that hold every class in its share (to within one example)."""
    shuffled = np.random.default_rng(_HOLDOUT_SEED).permutation(len(labels))
    # An example's place among its class, as a fraction: the `size` lowest fractions take the same share of each class.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(shuffled[np.argsort(place[shuffled], kind="stable")[:size]])


def _read_split(name: str, facts: DatasetFacts, split: str, data_dir: str | None) -> Examples:
    if facts.tfds_name is None:
        return _read_digits(facts, split)
    return _read_tfds(name, facts, split, data_dir)


def _read_digits(facts: DatasetFacts, split: str) -> Examples:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    test = stratified_holdout(labels, facts.splits["test"])
    ids = {"test": test, "train": np.setdiff1d(np.arange(len(labels)), test)}[split]
    return Examples(images, labels).take(ids)


def _read_tfds(name: str, facts: DatasetFacts, split: str, data_dir: str | None) -> Examples:
    from PIL import Image

    source = open_records(open_builder(name, facts.tfds_name, data_dir), split, name, data_dir)
    images = np.empty((len(source), *facts.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), 1000):  # reading by the thousand is three times as fast as one by one
        ids = range(start, min(start + 1000, len(source)))
        for index, example in zip(ids, source.__getitems__(ids), strict=True):
            images[index] = np.asarray(Image.open(io.BytesIO(example["image"]))).reshape(facts.image_shape)
            labels[index] = example["label"]
    return Examples(images, labels)


def _check_examples(name: str, facts: DatasetFacts, split: str, examples: Examples) -> None:
    if len(examples.labels) != facts.splits[split]:
        raise UserError(
            f"data.name: {name} should have {facts.splits[split]} examples in its {split} split, found "
            f"{len(examples.labels)}; prepare it again: python -m resnet_jax.data.prepare {name}"
        )
    outside = np.flatnonzero((examples.labels < 0) | (examples.labels >= facts.num_classes))
    if len(outside):
        raise UserError(
            f"data.name: {name} has {facts.num_classes} classes, labels 0 to {facts.num_classes - 1}, but example "
            f"{outside[0]} of its {split} split has label {examples.labels[outside[0]]} ({len(outside)} such examples)"
        )
