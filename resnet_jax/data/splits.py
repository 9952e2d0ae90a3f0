"""The splits of a data set by its name: arrays in host memory, or sources that read one example at a time."""

import functools
import pathlib

import numpy as np

from resnet_jax.data import tfds
from resnet_jax.data.index import index_folder, index_shards
from resnet_jax.data.info import DATASETS, DatasetInfo
from resnet_jax.data.sources import ArrayDataset, FolderSource, Subset, SyntheticSource, TarSource
from resnet_jax.errors import UserError, did_you_mean

KNOWN_DATASETS = (*DATASETS, *tfds.NAMED, "tfds:BUILDER", "folder", "tar", "synthetic:EXAMPLES:CLASSES")

# Of ImageNet, as in fb.resnet.torch and torchvision; the habit is to use them for all photographs.
PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_HOLDOUT_SEED = 0  # of the splits, not of a run: two runs with different seeds train on the same examples


def is_known(name: str) -> bool:
    """True if `name` has one of the forms in `KNOWN_DATASETS`; the data need not be there."""
    return (
        name in DATASETS or name in tfds.NAMED or name in ("folder", "tar") or name.startswith(("tfds:", "synthetic:"))
    )


def check_dataset_name(name: str) -> None:
    """Refuse a name that is not known.

    Raises:
      UserError: with the closest known name.
    """
    if not is_known(name):
        raise UserError(f"data.name: expected one of its names, found {name!r}; {did_you_mean(name, KNOWN_DATASETS)}")


def dataset_info(name: str, data_dir: str | None) -> DatasetInfo:
    """Metadata of a data set; for those that are not in `DATASETS`, taken from the files.

    Args:
      name: as in `KNOWN_DATASETS`.
      data_dir: root of the data; None for the default of TensorFlow Datasets.

    Raises:
      UserError: an unknown name, or data that are not there.
    """
    check_dataset_name(name)
    return DATASETS[name] if name in DATASETS else open_sources(name, data_dir)[0]


def load_splits(name: str, validation_size: int, data_dir: str | None) -> dict:
    """The splits `train`, `validation` (absent if `validation_size` is 0) and `test`.

    The validation split is held out of the official training split, and the same for every seed. It is stratified by
    class, except for sources of TensorFlow Datasets: knowing their labels means reading everything.

    Args:
      name: as in `KNOWN_DATASETS`.
      validation_size: number of examples.
      data_dir: root of the data; None for the default of TensorFlow Datasets.

    Returns:
      For a key of `DATASETS`, an `ArrayDataset` for each split; else sources (see `sources`).

    Raises:
      UserError: an unknown name; data that are not there, not of the official size, or with labels out of range.
    """
    check_dataset_name(name)
    if name in DATASETS:
        return _load_arrays(name, validation_size, data_dir)
    official = open_sources(name, data_dir)[1]
    return _hold_out(official, validation_size, take=Subset)


@functools.lru_cache(maxsize=1)  # the runs of a study share it; nobody writes to it
def _load_arrays(name: str, validation_size: int, data_dir: str | None) -> dict[str, ArrayDataset]:
    info = DATASETS[name]
    official = {split: _read_split(name, info, split, data_dir) for split in ("train", "test")}
    for split, dataset in official.items():
        _check_split(name, info, split, dataset)
    return _hold_out(official, validation_size, take=ArrayDataset.take)


def _hold_out(official, validation_size, take) -> dict:
    """The official splits, with `validation_size` examples of `train` in a split of their own."""
    if not validation_size:
        return official
    train = official["train"]
    labels = train.labels if train.labels is not None else np.zeros(len(train), np.int32)
    held_out = stratified_holdout(labels, validation_size)
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return {"train": take(train, kept), "validation": take(train, held_out), "test": official["test"]}


def stratified_holdout(labels: np.ndarray, size: int) -> np.ndarray:
    """`size` example ids, sorted, in which each class has its share (to within one example).

    Args:
      labels: int (n,).
      size: at most n.
    """
    shuffled = np.random.default_rng(_HOLDOUT_SEED).permutation(len(labels))
    # An example's place among its class, as a fraction: the `size` lowest fractions take the same share of each class.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(shuffled[np.argsort(place[shuffled], kind="stable")[:size]])


# --- arrays ---


def _read_split(name: str, info: DatasetInfo, split: str, data_dir: str | None) -> ArrayDataset:
    return _read_digits(info, split) if info.tfds_name is None else tfds.read_split(name, info, split, data_dir)


def _read_digits(info: DatasetInfo, split: str) -> ArrayDataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    test = stratified_holdout(labels, info.splits["test"])
    ids = {"test": test, "train": np.setdiff1d(np.arange(len(labels)), test)}[split]
    return ArrayDataset(images, labels, info.class_names).take(ids)


def _check_split(name: str, info: DatasetInfo, split: str, dataset: ArrayDataset) -> None:
    if len(dataset) != info.splits[split]:
        raise UserError(
            f"data.name: {name} should have {info.splits[split]} examples in its {split} split, found "
            f"{len(dataset)}; prepare it again: python -m resnet_jax.data.prepare {name}"
        )
    outside = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= info.num_classes))
    if len(outside):
        raise UserError(
            f"data.name: {name} has {info.num_classes} classes, labels 0 to {info.num_classes - 1}, but example "
            f"{outside[0]} of its {split} split has label {dataset.labels[outside[0]]} ({len(outside)} such examples)"
        )


# --- sources ---


@functools.lru_cache(maxsize=4)  # metadata and splits of a run both need it; the index of ImageNet takes seconds
def open_sources(name: str, data_dir: str | None) -> tuple[DatasetInfo, dict]:
    """Metadata and the official sources `train` and `test` of a data set that is not in `DATASETS`.

    Args:
      name: as in `KNOWN_DATASETS`.
      data_dir: root of the data; None for the default of TensorFlow Datasets.

    Raises:
      UserError: data that are not there, or not as expected.
    """
    kind, *arguments = name.split(":")
    if kind == "synthetic":
        sources = _open_synthetic(name, arguments)
    elif kind in ("folder", "tar"):
        if data_dir is None:
            raise UserError(
                f"data.data_dir: data.name={kind} needs the path of the data, found none; "
                "add --config.data.data_dir=PATH"
            )
        sources = {"folder": _open_folder, "tar": _open_shards}[kind](pathlib.Path(data_dir).expanduser())
    else:
        sources = tfds.open_train_and_test(name, data_dir)
    sizes = {split: len(source) for split, source in sources.items()}
    return DatasetInfo(sources["test"].class_names, None, sizes, PHOTO_MEAN, PHOTO_STD, None), sources


def _open_synthetic(name, arguments):
    try:
        examples, classes = map(int, arguments)
        if min(examples, classes) < 1:
            raise ValueError
    except ValueError:
        raise UserError(
            f"data.name: expected synthetic:EXAMPLES:CLASSES, like synthetic:1024:10, found {name}"
        ) from None
    return {
        "train": SyntheticSource(examples, classes, seed=0),
        "test": SyntheticSource(max(1, examples // 10), classes, seed=1),
    }


def _open_folder(data_dir):
    train = FolderSource(data_dir / "train", index_folder(data_dir / "train"))
    test = next((data_dir / name for name in ("test", "val", "validation") if (data_dir / name).is_dir()), None)
    if test is None:
        found = ", ".join(sorted(path.name for path in data_dir.iterdir())) or "nothing"
        raise UserError(
            f"data.data_dir: expected folders train and test (or val, validation) in {data_dir}, found {found}"
        )
    return {"train": train, "test": FolderSource(test, index_folder(test, train.class_names))}


def _open_shards(data_dir):
    shards = {name: sorted(data_dir.glob(f"{name}*.tar")) for name in ("train", "test", "val", "validation")}
    test = next((name for name in ("test", "validation", "val") if shards[name]), None)
    if not shards["train"] or test is None:
        raise UserError(f"data.data_dir: expected train*.tar and test*.tar (or val*.tar) in {data_dir}")
    train = TarSource(shards["train"], index_shards(shards["train"], "train"))
    return {"train": train, "test": TarSource(shards[test], index_shards(shards[test], "test", train.class_names))}
