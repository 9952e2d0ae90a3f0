"""The splits of a data set by its name: arrays in host memory, or sources that read one example at a time."""

import functools
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from resnet_jax.bucket.files import local_data
from resnet_jax.data import tfds
from resnet_jax.data.digits import read_digits
from resnet_jax.data.index import index_folder, index_shards
from resnet_jax.data.info import DATASETS, DatasetInfo
from resnet_jax.data.sources import ArrayDataset, FolderSource, Subset, SyntheticSource, TarSource
from resnet_jax.errors import UserError, did_you_mean

SPLIT_SETTINGS = ("name", "data_dir", "validation_size", "test_size", "use_validation_split")  # of `load_splits`
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


def dataset_info(
    name: str, data_dir: str | None, test_size: float = 0.2, use_validation_split: bool = False
) -> DatasetInfo:
    """Metadata of a data set; for those that are not in `DATASETS`, taken from the files.

    Args:
      name: as in `KNOWN_DATASETS`.
      data_dir, test_size, use_validation_split: see `load_splits`.

    Raises:
      UserError: an unknown name, or data that are not there.
    """
    check_dataset_name(name)
    return DATASETS[name] if name in DATASETS else open_sources(name, data_dir, test_size, use_validation_split)[0]


def load_splits(
    name: str,
    validation_size: float,
    data_dir: str | None,
    test_size: float = 0.2,
    use_validation_split: bool = False,
) -> dict:
    """The splits `train`, `validation` (absent if `validation_size` is 0) and `test`.

    The validation split is held out of the training split, and the same for every seed. It is stratified by class,
    except for sources of TensorFlow Datasets: knowing their labels means reading everything.

    Args:
      name: as in `KNOWN_DATASETS`.
      validation_size: number of examples, or below 1 the share of the training split.
      data_dir: root of the data; None for the default of TensorFlow Datasets.
      test_size: number or share of the examples that are the test split of a folder that is not divided into splits.
      use_validation_split: if a folder, or tar shards, have a validation and a test split, the first is the validation
        split, and none is held out; otherwise it is ignored.

    Returns:
      For a key of `DATASETS`, an `ArrayDataset` for each split; else sources (see `sources`).

    Raises:
      UserError: an unknown name; data that are not there, not of the official size, or with labels out of range.
    """
    check_dataset_name(name)
    if name in DATASETS:
        return _load_arrays(name, validation_size, data_dir)
    official = open_sources(name, data_dir, test_size, use_validation_split)[1]
    return official if "validation" in official else _hold_out(official, validation_size, take=Subset)


def fingerprint(splits: dict) -> dict:
    """Identity of data, as plain JSON: classes, and number and digest of the examples of each split."""
    examples = {name: {"examples": len(split), "digest": split.digest()} for name, split in splits.items()}
    return {"classes": list(splits["train"].class_names), **examples}


def check_same_data(found: dict, expected: dict, advice: str) -> None:
    """Refuse other data than a run began with.

    Args:
      found, expected: from `fingerprint`.
      advice: what to try.

    Raises:
      UserError: they differ; the first difference is named.
    """
    check_same_classes(found["classes"], expected["classes"])
    for name in (name for name in expected if found.get(name) != expected[name]):
        numbers = [side[name]["examples"] if name in side else "no" for side in (found, expected)]
        what = "others by name or label" if numbers[0] == numbers[1] else f"{numbers[0]}"
        raise UserError(f"data: expected the {numbers[1]} examples of the {name} split, found {what}; {advice}")


def check_same_classes(found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse other classes than a model was trained on.

    Raises:
      UserError: the names, or their order, differ.
    """
    unknown = [f"class {label}" for label in range(len(expected))]  # of runs of format 0 without their data
    if list(found) == list(expected) or list(expected) == unknown:
        return
    missing, new = ([name for name in one if name not in two] for one, two in ((expected, found), (found, expected)))
    sides = {"without": missing, "with": new}
    parts = [f"{word} {', '.join(map(repr, names[:5]))}" for word, names in sides.items() if names]
    raise UserError(
        f"data: expected the {len(expected)} classes of the model, found {len(found)}, "
        f"{' and '.join(parts) or 'in another order'}; give data with the same classes"
    )


def number_of(size: float, total: int) -> int:
    """The number of examples that a size means: a share if it is below 1.

    >>> number_of(0.1, 500), number_of(50, 500)
    (50, 50)
    """
    return round(size * total) if size < 1 else int(size)


@functools.lru_cache(maxsize=1)  # the runs of a study share it; nobody writes to it
def _load_arrays(name: str, validation_size: float, data_dir: str | None) -> dict[str, ArrayDataset]:
    info = DATASETS[name]
    official = {split: _read_split(name, info, split, data_dir) for split in ("train", "test")}
    for split, dataset in official.items():
        _check_split(name, info, split, dataset)
    return _hold_out(official, validation_size, take=ArrayDataset.take)


def _hold_out(official, validation_size, take) -> dict:
    """The official splits, with `validation_size` examples of `train` in a split of their own."""
    train = official["train"]
    if not number_of(validation_size, len(train)):
        return official
    kept, held_out = _divide(train, validation_size)
    return {"train": take(train, kept), "validation": take(train, held_out), "test": official["test"]}


def _divide(source, size) -> tuple[np.ndarray, np.ndarray]:
    """(ids that are kept, ids that are held out), sorted."""
    labels = source.labels if source.labels is not None else np.zeros(len(source), np.int32)
    held_out = stratified_holdout(labels, number_of(size, len(source)))
    return np.setdiff1d(np.arange(len(source)), held_out), held_out


def thinned(source, count: int | None):
    """`count` examples of a source, evenly spread; the source itself if it has no more, or for None."""
    if count is None or count >= len(source):
        return source
    ids = np.arange(count) * len(source) // count
    return source.take(ids) if isinstance(source, ArrayDataset) else Subset(source, ids)


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
    images, labels = read_digits()
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
def open_sources(
    name: str, data_dir: str | None, test_size: float = 0.2, use_validation_split: bool = False
) -> tuple[DatasetInfo, dict]:
    """Metadata and the sources `train`, `test` and maybe `validation` of a data set that is not in `DATASETS`.

    Args:
      name: as in `KNOWN_DATASETS`.
      data_dir, test_size, use_validation_split: see `load_splits`.

    Raises:
      UserError: data that are not there, or not as expected.
    """
    kind, *arguments = name.split(":")
    origins = {}
    if kind == "synthetic":
        sources = _open_synthetic(name, arguments)
    elif kind in ("folder", "tar"):
        if data_dir is None:
            raise UserError(
                f"data.data_dir: data.name={kind} needs the path of the data, found none; "
                "add --config.data.data_dir=PATH"
            )
        folder = pathlib.Path(local_data(data_dir)).expanduser()
        if kind == "folder":
            sources, origins = _open_folder(folder, test_size, use_validation_split)
        else:
            sources = _open_shards(folder, use_validation_split)
    else:
        sources = tfds.open_train_and_test(name, data_dir)
    sizes = {split: len(source) for split, source in sources.items()}
    return DatasetInfo(sources["test"].class_names, None, sizes, PHOTO_MEAN, PHOTO_STD, None, origins), sources


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


# Names that people give to a split, the most usual first.
_VALIDATION_NAMES = ("val", "validation", "valid", "dev")


def split_folders(data_dir: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders `train`, `test` and `validation` of a data set, as far as there are such.

    The only one besides `train` is the test split, whatever its name.
    """
    found = {name: data_dir / name for name in ("train", "test") if (data_dir / name).is_dir()}
    validation = next((data_dir / name for name in _VALIDATION_NAMES if (data_dir / name).is_dir()), None)
    if validation is not None:
        found["validation" if "test" in found else "test"] = validation
    return found


def _open_folder(data_dir, test_size, use_validation_split) -> tuple[dict, dict[str, str]]:
    """Sources by split, and where each comes from in words."""
    if not data_dir.is_dir():
        raise UserError(f"data.data_dir: expected a folder of images by class, found no folder {data_dir}")
    folders = split_folders(data_dir)
    if not folders:
        return _divide_folder(data_dir, test_size)
    if "train" not in folders:
        index_folder(data_dir / "train")  # says that it is not there
    if "test" not in folders:
        found = ", ".join(sorted(path.name for path in data_dir.iterdir()))
        raise UserError(
            f"data.data_dir: expected folders train and test (or {', '.join(_VALIDATION_NAMES)}) in {data_dir}, or one "
            f"for each class, found {found}; to divide one folder of classes, name that: "
            f"--config.data.data_dir={data_dir / 'train'}"
        )
    if not use_validation_split:
        folders.pop("validation", None)
    train = FolderSource(folders["train"], index_folder(folders["train"]))
    sources = {
        split: train if split == "train" else FolderSource(path, index_folder(path, train.class_names))
        for split, path in folders.items()
    }
    _warn_left_out(*sources.values())
    return sources, {split: f"{path.name}/" for split, path in folders.items()}


def _divide_folder(data_dir, test_size) -> tuple[dict, dict[str, str]]:
    whole = FolderSource(data_dir, index_folder(data_dir))
    _warn_left_out(whole)
    kept, held_out = _divide(whole, test_size)
    if not len(kept) or not len(held_out):
        raise UserError(f"data.test_size: expected a part of the {len(whole)} images of {data_dir}, found {test_size}")
    return {"train": Subset(whole, kept), "test": Subset(whole, held_out)}, {"test": "held out by data.test_size"}


def _warn_left_out(*sources) -> None:
    for source in (source for source in sources if len(source.left_out)):
        warnings.warn(
            f"data.data_dir: {source.folder}: left out what cannot be read as an image: {', '.join(source.left_out)}",
            stacklevel=1,
        )


def _open_shards(data_dir, use_validation_split) -> dict:
    shards = {name: sorted(data_dir.glob(f"{name}*.tar")) for name in ("train", "test")}
    validation = next(filter(None, (sorted(data_dir.glob(f"{name}*.tar")) for name in _VALIDATION_NAMES)), [])
    if not shards["test"]:
        shards["test"] = validation
    elif validation and use_validation_split:
        shards["validation"] = validation
    if not shards["train"] or not shards["test"]:
        raise UserError(f"data.data_dir: expected train*.tar and test*.tar (or val*.tar) in {data_dir}")
    train = TarSource(shards["train"], index_shards(shards["train"], "train"))
    sources = {
        split: train if split == "train" else TarSource(files, index_shards(files, split, train.class_names))
        for split, files in shards.items()
    }
    _warn_left_out(*sources.values())
    return sources
