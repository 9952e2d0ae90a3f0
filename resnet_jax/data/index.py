"""Indexes of image folders and tar shards: built once, cached in a file beside the data, few bytes per example."""

import collections
import hashlib
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.data.files import IMAGE_SUFFIXES, is_data, is_image, walk
from resnet_jax.errors import UserError
from resnet_jax.workdir import cache_folder

_MAX_CLASSES = 100_000


class Index(NamedTuple):
    """Labels and places of the examples of a split.

    Attributes:
      class_names: (classes,) strings, one per label.
      labels: int32 (n,).
      names: uint8, the names of all examples in UTF-8, one after another: as Python strings 1.28 million of them would
        take 150 MB.
      name_ends: int64 (n,), where each ends.
      places: int64 (n, 3) for tar shards: number of the shard, offset, size; (n, 0) for folders.
      left_out: (suffixes,) strings: how many files of which suffix are no images that can be read.
    """

    class_names: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    places: np.ndarray
    left_out: np.ndarray

    def name(self, index: int) -> str:
        """Path of an example below the folder of its split, or inside its shard."""
        start = self.name_ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.name_ends[index]].tobytes())


def index_folder(folder: pathlib.Path, class_names: Sequence[str] | None = None) -> Index:
    """The images of a split in folders by class, `folder/CLASS/**/*.jpg`, sorted by class and path.

    Left out are hidden files and folders, what systems leave behind (see `files`), and folders that were met before
    under another name.

    Args:
      folder: directory of the split.
      class_names: in label order; None for the names of the subfolders, sorted.

    Raises:
      UserError: no folder, no images, a class that is not among `class_names`.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(
            f"data.data_dir: expected a folder of images by class, found no {folder}; name the folder above train"
        )

    def build():
        here = os.stat(folder)
        seen, left_out = {(here.st_dev, here.st_ino)}, collections.Counter()
        found = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_data(path.name))
        found = [name for name in found if not os.path.samefile(folder / name, folder)]
        classes = _check_classes(folder, found, class_names)
        names, labels, folders = [], [], [folder]
        for name in found:
            for parent, files in walk(folder / name, seen):
                images = [file.name for file in files if is_image(file.name) and file.is_file()]
                left_out.update(_suffix(file.name) for file in files if not is_image(file.name))
                left_out["broken links, pipes and devices"] += sum(
                    is_image(file.name) and not file.is_file() for file in files
                )
                names += [os.path.relpath(os.path.join(parent, image), folder) for image in images]
                labels += [classes.index(name)] * len(images)
                folders.append(pathlib.Path(parent))
        empty = sorted(set(range(len(classes))) - set(labels))
        if empty and names and class_names is None:
            nothing = folder / classes[empty[0]]
            raise UserError(f"data.data_dir: expected images in the folder of every class, found none in {nothing}")
        index = _make_index(folder, classes, labels, names, left_out=left_out)
        return index, folders  # a folder's time changes with its entries

    try:
        return _cached(folder.parent, folder.name, [str(folder), *(class_names or ())], build)
    except OSError as error:
        raise UserError(f"data.data_dir: {error.filename} cannot be read: {error.strerror}") from None


def index_shards(shards: Sequence[pathlib.Path], split: str, class_names: Sequence[str] | None = None) -> Index:
    """The images in tar files, in the order of the shards and of their members.

    The label of `KEY.jpg` is the number in the member `KEY.cls` (WebDataset); where there is none, the class is the
    folder that it lies in (`CLASS/NAME.jpg`).

    Args:
      shards: tar files of one split, in one folder.
      split: name of the split.
      class_names: in label order; None for the names of the folders, sorted, or "0", "1", ...

    Raises:
      UserError: a file that is no tar, no images, an image without a label, a class that is not among `class_names`.
    """

    shards = [shard.resolve() for shard in shards]

    def build():
        names, places, numbers, left_out = [], [], {}, collections.Counter()
        for shard, path in enumerate(shards):
            try:
                with tarfile.open(path, "r:") as tar:  # not compressed: members are read in place
                    for member in tar:
                        stem, suffix = os.path.splitext(member.name)
                        if not member.isfile() or not all(map(is_data, member.name.removeprefix("./").split("/"))):
                            continue
                        if is_image(member.name):
                            names.append(member.name)
                            places.append((shard, member.offset_data, member.size))
                        elif suffix == ".cls":
                            numbers[shard, stem] = int(tar.extractfile(member).read(20))
                        else:
                            left_out[_suffix(member.name)] += 1
            except (tarfile.TarError, ValueError) as error:
                raise UserError(f"data.data_dir: {path} cannot be read as an uncompressed tar file: {error}") from None
        if numbers:
            keys = [(place[0], os.path.splitext(name)[0]) for name, place in zip(names, places, strict=True)]
            labels = [numbers.get(key, -1) for key in keys]
            if max(labels) >= _MAX_CLASSES:
                raise UserError(
                    f"data.data_dir: expected labels below {_MAX_CLASSES:,} in the .cls members of {shards[0].parent}, "
                    f"found {max(labels):,}"
                )
            classes = list(class_names or map(str, range(max(labels) + 1)))
        else:
            folders = [os.path.basename(os.path.dirname(name)) for name in names]
            classes = _check_classes(shards[0].parent, sorted(set(folders)), class_names)
            numbered = {name: label for label, name in enumerate(classes)}
            labels = [-1 if folder == "" else numbered[folder] for folder in folders]
        for name, label in zip(names, labels, strict=True):
            if not 0 <= label < len(classes):
                raise UserError(
                    f"data.data_dir: {name} in {shards[0].parent} has no label from 0 to {len(classes) - 1}; expected "
                    "a number in a member beside it that ends in .cls, or a folder named like its class around it"
                )
        return _make_index(shards[0].parent, classes, labels, names, places, left_out), shards

    return _cached(shards[0].parent, split, [*map(str, shards), *(class_names or ())], build)


def _check_classes(folder, found, class_names) -> list[str]:
    if class_names is not None and (unknown := sorted(set(found) - set(class_names))):
        raise UserError(f"data.data_dir: {folder} has a class {unknown[0]!r}, which the training split has not")
    return list(found if class_names is None else class_names)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "(no suffix)"


def _make_index(folder, classes, labels, names, places=None, left_out=None) -> Index:
    if not names:
        raise UserError(f"data.data_dir: found no images ({' '.join(IMAGE_SUFFIXES)}) in the folders of {folder}")
    encoded = [os.fsencode(name) for name in names]
    return Index(
        np.asarray(classes),
        np.asarray(labels, np.int32),
        np.frombuffer(b"".join(encoded), np.uint8),
        np.cumsum([len(name) for name in encoded], dtype=np.int64),
        np.asarray(places, np.int64) if places else np.empty((len(names), 0), np.int64),
        np.asarray([f"{suffix} ({count})" for suffix, count in sorted((left_out or {}).items()) if count], str),
    )


def _cached(folder: pathlib.Path, split: str, of: list[str], build: Callable[[], tuple[Index, list[pathlib.Path]]]):
    """The index in `folder`, or in the user's cache where `folder` cannot be written; built if it is not up to date.

    Args:
      folder: directory beside the data.
      split: name of the split.
      of: paths and classes that the index is of: paths in full, since a copy of the folder holds the index of the
        original.
      build: makes the index, and lists the paths whose times change when the index is out of date.
    """
    digest = hashlib.sha256("\0".join([str(folder.resolve()), split]).encode()).hexdigest()[:16]
    files = [folder / f".resnet_jax_{split}.npz"]
    if cache := cache_folder():
        files.append(cache / "indexes" / f"{digest}.npz")
    for file in files:
        if index := _read_index(file, of):
            return index
    index, watched = build()
    made_from = json.dumps({"of": of, "times": {str(path): path.stat().st_mtime_ns for path in watched}})
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f"{file.stem}.{os.getpid()}.npz")
            np.savez(unfinished, made_from=made_from, **index._asdict())
            unfinished.replace(file)
            break
        except OSError:
            continue
    return index


def _read_index(file: pathlib.Path, of: list[str]) -> Index | None:
    try:
        with np.load(file) as stored:
            made_from = json.loads(str(stored["made_from"]))
            if made_from["of"] != of:
                return None
            if any(pathlib.Path(path).stat().st_mtime_ns != time for path, time in made_from["times"].items()):
                return None
            return Index(**{name: stored[name] for name in Index._fields})
    except Exception:  # not there, or corrupt, or of another version: it will be built
        return None
