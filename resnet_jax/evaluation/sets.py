"""Other data sets to evaluate on, with the classes of the training data."""

import pathlib

import numpy as np

from resnet_jax.bucket.files import local_data
from resnet_jax.data.files import is_data
from resnet_jax.data.index import index_folder
from resnet_jax.data.sources import FolderSource, UnlabelledSource
from resnet_jax.data.splits import split_folders
from resnet_jax.data.tfds import TfdsSource, open_builder
from resnet_jax.errors import UserError

# Labels are those of ImageNet, but only some of its classes occur: the others are no option.
_OF_SOME_CLASSES = ("imagenet_a", "imagenet_r")


def _has_folders(folder: pathlib.Path) -> bool:
    return any(path.is_dir() and is_data(path.name) for path in folder.iterdir())


def open_evaluation_set(
    name: str, data_dir: str | None, class_names: tuple[str, ...]
) -> tuple[FolderSource | TfdsSource, np.ndarray | None]:
    """The source of a data set to evaluate on, and its possible classes.

    Args:
      name: a builder of TensorFlow Datasets, with its config after a slash: `imagenet_v2`, `imagenet2012_real` (all
        right labels of each image; Beyer et al. 2020, arXiv:2006.07159), `imagenet_a`, `imagenet_r` (among their 200
        classes, as their authors score them), `imagenet_sketch`, `imagenet2012_corrupted/fog_1`,
        `cifar10_corrupted/fog_1`; or the path of a folder of images by class, divided into splits or not; or of an
        image, or a folder of images, without labels.
      data_dir: root of the prepared data sets; None for the default of TensorFlow Datasets.
      class_names: classes of the model, in label order.

    Returns:
      (source, possible): bool (classes,), or None if all classes are possible.

    Raises:
      UserError: data that are not there, or of other classes.
    """
    folder = pathlib.Path(local_data(name)).expanduser()
    if folder.is_file() or (folder.is_dir() and not _has_folders(folder)):
        return UnlabelledSource(folder, class_names), None
    if folder.is_dir() or name.startswith((".", "/", "~")):  # with a folder for each class in it
        folder = split_folders(folder).get("test", folder)  # the same folder that training takes
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
