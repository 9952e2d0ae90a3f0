"""Data sets that stay on disk: any example by its number, and a few bytes of memory for each.

A source has a length, `class_names`, `labels` (int32 (n,), or None where knowing them means reading everything),
`read(index)` and `name(index)`. Worker processes get copies of it (pickle).
"""

import functools
import os
import pathlib
from typing import NamedTuple

import cv2
import numpy as np

from resnet_jax.data.facts import DatasetFacts
from resnet_jax.data.index import Index, index_folder, index_shards
from resnet_jax.errors import UserError

# Of ImageNet, as in fb.resnet.torch and torchvision; the habit is to use them for all photographs.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Builders of TensorFlow Datasets with a name of their own here, the split that is tested on, and the official sizes.
_TFDS = {
    "imagenet2012": ("validation", {"train": 1_281_167, "test": 50_000}),
    "imagenette": ("validation", {}),
    "oxford_iiit_pet": ("test", {}),
}
NAMED = tuple(_TFDS)
ARCHIVES = (*NAMED, "tfds:BUILDER", "folder", "tar", "synthetic:EXAMPLES:CLASSES")


def is_archive(name: str) -> bool:
    """Is this `data.name` one of a data set that stays on disk?"""
    return name in _TFDS or name in ("folder", "tar") or name.startswith(("tfds:", "synthetic:"))


class Stored(NamedTuple):
    """An example as it is stored.

    Attributes:
      image: the bytes of an image file, or pixels, uint8 (h, w, c).
      label: int; or several, int32 (k,), for ImageNet-ReaL.
    """

    image: bytes | np.ndarray
    label: int | np.ndarray


def _read(path, offset=0, size=-1) -> bytes:
    """A part of a file; nothing, that is a damaged image, of one that cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # not kept open: there may be thousands
            file.seek(offset)
            return file.read(size)
    except OSError:
        return b""


class FolderSource:
    """Image files in folders by class."""

    def __init__(self, folder: pathlib.Path, index: Index):
        self._folder, self._index = str(folder), index
        self.labels = index.labels
        self.class_names = tuple(map(str, index.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of the file."""
        return os.path.join(self._folder, self._index.name(index))

    def read(self, index: int) -> Stored:
        """The file."""
        return Stored(_read(self.name(index)), int(self.labels[index]))


class TarSource:
    """Image files in tar shards, read in place."""

    def __init__(self, shards: list[pathlib.Path], index: Index):
        self._shards, self._index = shards, index
        self.labels = index.labels
        self.class_names = tuple(map(str, index.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Shard and member."""
        return f"{self._shards[self._index.places[index, 0]]}: {self._index.name(index)}"

    def read(self, index: int) -> Stored:
        """The member."""
        shard, offset, size = map(int, self._index.places[index])
        return Stored(_read(self._shards[shard], offset, size), int(self.labels[index]))


class TfdsSource:
    """A split that TensorFlow Datasets has prepared as ArrayRecord files; images are left encoded.

    Args:
      builder: from `open_builder`.
      split: its name for it.
      name, data_dir: as in a config, for messages.
    """

    labels = None

    def __init__(self, builder, split: str, name: str, data_dir: str | None):
        features = builder.info.features
        self._label = "real_label" if "real_label" in features else "label"
        self._records = open_records(builder, split, name, data_dir)
        self._names = f"{builder.info.full_name} {split}"
        label = features[self._label]
        self.class_names = tuple(getattr(label, "feature", label).names)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Name of the builder and the split, and the number."""
        return f"{self._names} {index}"

    def read(self, index: int) -> Stored:
        """The record.

        Raises:
          UserError: a label that is none (TensorFlow Datasets has -1 where labels are secret).
        """
        record = self._records[index]
        labels = np.asarray(record[self._label], np.int32)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise UserError(f"data.name: {self.name(index)} has the label {labels}, which none of its classes has")
        return Stored(record["image"], labels)


class SyntheticSource:
    """Made-up pictures, 256x256, a pure function of their number: a pattern of its class, and noise."""

    def __init__(self, examples: int, classes: int, seed: int):
        self.labels = (np.arange(examples) % classes).astype(np.int32)
        self.class_names = tuple(f"synthetic {label}" for label in range(classes))
        self._seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """That it is made up."""
        return f"synthetic example {index}"

    def read(self, index: int) -> Stored:
        """Made on the spot."""
        label = int(self.labels[index])
        pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3))
        noise = np.random.default_rng((self._seed, index)).integers(-60, 61, (16, 16, 3))
        coarse = np.clip(pattern.repeat(4, 0).repeat(4, 1) + noise, 0, 255).astype(np.uint8)
        return Stored(cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_LINEAR), label)


class ArraySource:
    """Pixels and labels in memory, uint8 (n, h, w, c) and int32 (n,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]):
        self.images, self.labels, self.class_names = images, labels, class_names

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The number."""
        return f"example {index}"

    def read(self, index: int) -> Stored:
        """Not copied."""
        return Stored(self.images[index], int(self.labels[index]))


class Subset:
    """Some examples of a source.

    Args:
      source: of all.
      ids: int32 (n,), their numbers there.
    """

    def __init__(self, source, ids: np.ndarray):
        self._source, self._ids = source, np.asarray(ids, np.int32)
        self.labels = None if source.labels is None else source.labels[self._ids]
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, index: int) -> str:
        """As in the whole."""
        return self._source.name(int(self._ids[index]))

    def read(self, index: int) -> Stored:
        """As in the whole."""
        return self._source.read(int(self._ids[index]))


@functools.lru_cache(maxsize=4)
def open_archive(name: str, data_dir: str | None) -> tuple[DatasetFacts, dict]:
    """What is known of a data set, and its sources `train` and `test`.

    Args:
      name: as `ARCHIVES` says.
      data_dir: where the data are.

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
        sources = _open_tfds(name, data_dir)
    sizes = {split: len(source) for split, source in sources.items()}
    official = _TFDS.get(name.removeprefix("tfds:"), (None, {}))[1]
    if official and sizes != official:
        raise UserError(f"data.name: {name} should have the splits {official}, found {sizes}; prepare it again")
    return DatasetFacts(sources["test"].class_names, None, sizes, _MEAN, _STD, None), sources


# Evaluation sets whose labels are those of ImageNet, but that hold some of the classes only: the others are no option.
_OF_SOME_CLASSES = ("imagenet_a", "imagenet_r")


def open_evaluation_set(name: str, data_dir: str | None, class_names: tuple[str, ...]) -> tuple:
    """A data set to evaluate on: its source, and which classes are possible, bool (classes,), or None for all.

    Args:
      name: a builder of TensorFlow Datasets, with its config after a slash: `imagenet_v2`, `imagenet2012_real` (all
        right labels of each image; Beyer et al. 2020, arXiv:2006.07159), `imagenet_a`, `imagenet_r` (among their 200
        classes, as their authors score them), `imagenet_sketch`, `imagenet2012_corrupted/fog_1`,
        `cifar10_corrupted/fog_1`; or the path of a folder of images by class.
      data_dir: where TensorFlow Datasets has its data.
      class_names: of the net that is evaluated.

    Raises:
      UserError: data that are not there, or of other classes.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir() or name.startswith((".", "/", "~")):  # with a folder for each class in it
        return FolderSource(folder, index_folder(folder, class_names)), None
    builder = open_builder(name, name.removeprefix("tfds:"), data_dir)
    split = "test" if "test" in builder.info.splits else "validation"
    source = TfdsSource(builder, split, name, data_dir)
    if source.class_names != class_names:
        raise UserError(
            f"--data: expected the {len(class_names)} classes of the run ({class_names[0]}, ...), found "
            f"{len(source.class_names)} in {name} ({source.class_names[0]}, ...)"
        )
    if builder.name not in _OF_SOME_CLASSES:
        return source, None
    present = {int(source.read(index).label) for index in range(len(source))}
    return source, np.isin(np.arange(len(class_names)), list(present))


# Hendrycks & Dietterich 2019 (arXiv:1903.12261): the 15 corruptions of the benchmark, of five severities.
_CORRUPTIONS = {
    "imagenet2012_corrupted": "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur "
    "snow frost fog brightness contrast elastic_transform pixelate jpeg_compression",
    "cifar10_corrupted": "gaussian_noise shot_noise impulse_noise defocus_blur frosted_glass_blur motion_blur "
    "zoom_blur snow frost fog brightness contrast elastic pixelate jpeg_compression",
}


def expand_corruptions(names: list[str]) -> list[str]:
    """`cifar10_corrupted` and `imagenet2012_corrupted` stand for all the 75 sets of their benchmarks."""
    expanded = []
    for name in (name.removeprefix("tfds:") for name in names):
        kinds = _CORRUPTIONS.get(name, "").split()
        expanded += [f"{name}/{kind}_{severity}" for kind in kinds for severity in range(1, 6)] or [name]
    return expanded


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


def _open_tfds(name, data_dir):
    builder = open_builder(name, name.removeprefix("tfds:"), data_dir)
    splits = builder.info.splits
    test, _ = _TFDS.get(name.removeprefix("tfds:"), ("test" if "test" in splits else "validation", {}))
    if "label" not in builder.info.features or not {"train", test} <= set(splits):
        raise UserError(
            f"data.name: expected a data set with a label and the splits train and {test}, found {name} with "
            f"{', '.join(builder.info.features)} and the splits {', '.join(splits)}"
        )
    return {
        "train": TfdsSource(builder, "train", name, data_dir),
        "test": TfdsSource(builder, test, name, data_dir),
    }


def open_builder(name: str, tfds_name: str, data_dir: str | None):
    """The builder, of TensorFlow Datasets, of a data set that is prepared as ArrayRecord files.

    Raises:
      UserError: unknown, or not prepared; with the command that prepares it.
    """
    import tensorflow_datasets as tfds

    command = _prepare_command(name, data_dir)
    try:
        builder = tfds.builder(tfds_name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"data.name: TensorFlow Datasets has no {tfds_name!r}") from None
    except ValueError as error:  # prepared in another format, or no such config
        raise UserError(f"data.name: {name} cannot be read: {error}; try another data.data_dir and {command}") from None
    if not pathlib.Path(builder.data_dir).exists():
        root = str(builder.data_dir).removesuffix(builder.info.full_name).rstrip("/")
        raise UserError(f"data.name: {name} is not prepared in {root}; run: {command}")
    return builder


def open_records(builder, split: str, name: str, data_dir: str | None):
    """The records of a split, with their images left encoded.

    Raises:
      UserError: files that are missing or broken.
    """
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # whatever TFDS and its storage say about missing or broken files
        raise UserError(
            f"data.name: {name} in {builder.data_dir} cannot be read ({error}); delete that folder and run: "
            f"{_prepare_command(name, data_dir)}"
        ) from error


def _prepare_command(name, data_dir):
    return f"python -m resnet_jax.data.prepare {name}" + (f" --data_dir {data_dir}" if data_dir else "")
