"""Data sets that TensorFlow Datasets has prepared as ArrayRecord files; reading them needs no TensorFlow."""

import io
import pathlib

import numpy as np

from resnet_jax.bucket.files import local_data
from resnet_jax.data.info import DatasetInfo
from resnet_jax.data.sources import ArrayDataset, Record, digest_of
from resnet_jax.errors import UserError

# Builders with a name of their own here: the split that is tested on, and the official sizes.
NAMED = {
    "imagenet2012": ("validation", {"train": 1_281_167, "test": 50_000}),
    "imagenette": ("validation", {}),
    "oxford_iiit_pet": ("test", {}),
}

# Hendrycks & Dietterich 2019 (arXiv:1903.12261): the 15 corruptions of the benchmark, of five severities.
_CORRUPTIONS = {
    "imagenet2012_corrupted": "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur "
    "snow frost fog brightness contrast elastic_transform pixelate jpeg_compression",
    "cifar10_corrupted": "gaussian_noise shot_noise impulse_noise defocus_blur frosted_glass_blur motion_blur "
    "zoom_blur snow frost fog brightness contrast elastic pixelate jpeg_compression",
}


class TfdsSource:
    """A split of a prepared data set; images stay encoded until they are read.

    Args:
      builder: from `open_builder`.
      split: name of the split in TensorFlow Datasets.
      name, data_dir: name and root of the data set, for messages.
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
        """`BUILDER SPLIT INDEX`."""
        return f"{self._names} {index}"

    key = name

    def digest(self) -> str:
        """Of the builder, its version, the split and the number of examples."""
        return digest_of(self._names, str(len(self)))

    def read(self, index: int) -> Record:
        """The encoded image and its label or labels.

        Raises:
          UserError: a label out of range (TensorFlow Datasets has -1 where labels are secret).
        """
        record = self._records[index]
        labels = np.asarray(record[self._label], np.int32)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise UserError(f"data.name: {self.name(index)} has the label {labels}, which none of its classes has")
        return Record(record["image"], labels)


def read_split(name: str, info: DatasetInfo, split: str, data_dir: str | None) -> ArrayDataset:
    """Read and decode a whole split of images of one shape.

    Args:
      name: name of the data set, for messages.
      info: metadata, with `tfds_name` and `image_shape`.
      split: name of the split in TensorFlow Datasets.
      data_dir: root of the prepared data sets; None for the default of TensorFlow Datasets.

    Raises:
      UserError: the data set is not prepared, or cannot be read.
    """
    from PIL import Image

    records = open_records(open_builder(name, info.tfds_name, data_dir), split, name, data_dir)
    images = np.empty((len(records), *info.image_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), 1000):  # reading by the thousand is three times as fast as one by one
        ids = range(start, min(start + 1000, len(records)))
        for index, record in zip(ids, records.__getitems__(ids), strict=True):
            images[index] = np.asarray(Image.open(io.BytesIO(record["image"]))).reshape(info.image_shape)
            labels[index] = record["label"]
    return ArrayDataset(images, labels, info.class_names)


def open_train_and_test(name: str, data_dir: str | None) -> dict[str, TfdsSource]:
    """The sources `train` and `test` of a data set for classification.

    Args:
      name: a key of `NAMED`, or `tfds:BUILDER`.
      data_dir: root of the prepared data sets; None for the default of TensorFlow Datasets.

    Raises:
      UserError: no labels or no such splits, another size than the official one, or as `open_builder`.
    """
    tfds_name = name.removeprefix("tfds:")
    builder = open_builder(name, tfds_name, data_dir)
    splits = builder.info.splits
    test, official = NAMED.get(tfds_name, ("test" if "test" in splits else "validation", {}))
    if "label" not in builder.info.features or not {"train", test} <= set(splits):
        raise UserError(
            f"data.name: expected a data set with a label and the splits train and {test}, found {name} with "
            f"{', '.join(builder.info.features)} and the splits {', '.join(splits)}"
        )
    sources = {
        "train": TfdsSource(builder, "train", name, data_dir),
        "test": TfdsSource(builder, test, name, data_dir),
    }
    sizes = {split: len(source) for split, source in sources.items()}
    if official and sizes != official:
        raise UserError(f"data.name: {name} should have the splits {official}, found {sizes}; prepare it again")
    return sources


def open_builder(name: str, tfds_name: str, data_dir: str | None):
    """The `tfds.core.DatasetBuilder` of a data set that is prepared as ArrayRecord files.

    Args:
      name: name of the data set, for messages.
      tfds_name: name of the builder, with its config after a slash if need be.
      data_dir: root of the prepared data sets; None for the default of TensorFlow Datasets.

    Raises:
      UserError: unknown, or not prepared; with the command that prepares it.
    """
    import tensorflow_datasets as tfds

    command = _prepare_command(name, data_dir)
    if data_dir is not None:
        data_dir = local_data(data_dir, tfds_name.split("/")[0])
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
    """The records of a split, a sequence of dicts whose `image` stays encoded.

    Args:
      builder: from `open_builder`.
      split: name of the split in TensorFlow Datasets.
      name, data_dir: name and root of the data set, for messages.

    Raises:
      UserError: files are missing or broken.
    """
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # whatever TFDS and its storage say about missing or broken files
        raise UserError(
            f"data.name: {name} in {builder.data_dir} cannot be read ({error}); delete that folder and run: "
            f"{_prepare_command(name, data_dir)}"
        ) from error


def expand_corruptions(names: list[str]) -> list[str]:
    """Replace `cifar10_corrupted` and `imagenet2012_corrupted` by the 75 sets of each benchmark.

    >>> expand_corruptions(["imagenet_v2", "cifar10_corrupted"])[:2]
    ['imagenet_v2', 'cifar10_corrupted/gaussian_noise_1']
    """
    expanded = []
    for name in (name.removeprefix("tfds:") for name in names):
        kinds = _CORRUPTIONS.get(name, "").split()
        expanded += [f"{name}/{kind}_{severity}" for kind in kinds for severity in range(1, 6)] or [name]
    return expanded


def _prepare_command(name, data_dir):
    return f"python -m resnet_jax.data.prepare {name}" + (f" --data_dir {data_dir}" if data_dir else "")
