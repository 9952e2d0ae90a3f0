"""Sources: random access to the examples of a split, in memory, on disk or synthetic.

A source has a length, `class_names`, `labels` (int32 (n,), or None where knowing them means reading everything),
`read(index)`, `name(index)` for messages, `key(index)`, which is the same in a copy elsewhere, and `digest()`, equal
for the same examples by keys and labels. Worker processes get pickled copies.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import NamedTuple

import cv2
import numpy as np

from resnet_jax.data.files import is_data, is_image, read_bytes
from resnet_jax.data.index import Index
from resnet_jax.errors import UserError


class Record(NamedTuple):
    """One stored example.

    Attributes:
      image: bytes of an image file, or pixels, uint8 (h, w, c).
      label: int; or several, int32 (k,), for ImageNet-ReaL.
    """

    image: bytes | np.ndarray
    label: int | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A split in host memory.

    Attributes:
      images: uint8 (n, height, width, channels).
      labels: int32 (n,).
      class_names: one name per label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> "ArrayDataset":
        """The examples with these ids, copied."""
        return dataclasses.replace(self, images=self.images[ids], labels=self.labels[ids])

    def name(self, index: int) -> str:
        """`example INDEX`."""
        return f"example {index}"

    key = name

    def digest(self) -> str:
        """Of shapes and labels."""
        return digest_of(str(self.images.shape), self.labels)

    def read(self, index: int) -> Record:
        """The pixels, not copied, and the label."""
        return Record(self.images[index], int(self.labels[index]))


class Subset:
    """Some examples of another source.

    Args:
      source: where all examples are.
      ids: int (n,), numbers of the examples there.
    """

    def __init__(self, source, ids: np.ndarray):
        self._source, self._ids = source, np.asarray(ids, np.int32)
        self.labels = None if source.labels is None else source.labels[self._ids]
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, index: int) -> str:
        """The name in the other source."""
        return self._source.name(int(self._ids[index]))

    def key(self, index: int) -> str:
        """The key in the other source."""
        return self._source.key(int(self._ids[index]))

    def digest(self) -> str:
        """Of the other source and the numbers there."""
        return digest_of(self._source.digest(), self._ids)

    def read(self, index: int) -> Record:
        """The record in the other source."""
        return self._source.read(int(self._ids[index]))


class FolderSource:
    """Image files in one folder per class.

    Args:
      folder: directory of the split.
      index: from `index.index_folder`.
    """

    def __init__(self, folder: pathlib.Path, index: Index):
        self.folder, self._index = str(folder), index
        self.labels, self.left_out = index.labels, index.left_out
        self.class_names = tuple(map(str, index.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of the file."""
        return os.path.join(self.folder, self._index.name(index))

    def key(self, index: int) -> str:
        """Path below the folder."""
        return self._index.name(index)

    def digest(self) -> str:
        """Of the paths below the folder, and labels."""
        return digest_of(self._index.names, self._index.name_ends, self.labels)

    def read(self, index: int) -> Record:
        """Bytes of the file (none if it cannot be read) and the label."""
        return Record(_bytes_or_nothing(self.name(index)), int(self.labels[index]))


class TarSource:
    """Image files in tar shards, read in place.

    Args:
      shards: uncompressed tar files.
      index: from `index.index_shards`.
    """

    def __init__(self, shards: list[pathlib.Path], index: Index):
        self.folder, self._shards, self._index = str(shards[0].parent), shards, index
        self.labels, self.left_out = index.labels, index.left_out
        self.class_names = tuple(map(str, index.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """`SHARD: MEMBER`."""
        return f"{self._shards[self._index.places[index, 0]]}: {self._index.name(index)}"

    def key(self, index: int) -> str:
        """`SHARD: MEMBER`, the shard without its folder."""
        return f"{self._shards[self._index.places[index, 0]].name}: {self._index.name(index)}"

    def digest(self) -> str:
        """Of the members: names, sizes, and labels."""
        return digest_of(self._index.names, self._index.name_ends, self._index.places, self.labels)

    def read(self, index: int) -> Record:
        """Bytes of the member (none if the shard cannot be read) and the label."""
        shard, offset, size = map(int, self._index.places[index])
        return Record(_bytes_or_nothing(self._shards[shard], offset, size), int(self.labels[index]))


class UnlabelledSource:
    """Image files without labels.

    Args:
      path: an image file, or a folder with such.
      class_names: one name per label.

    Raises:
      UserError: there is none.
    """

    labels = None

    def __init__(self, path: pathlib.Path, class_names: tuple[str, ...]):
        self.class_names, self._folder = class_names, path if path.is_dir() else path.parent
        found = sorted(file.name for file in path.iterdir()) if path.is_dir() else [path.name]
        self._names = [name for name in found if is_data(name) and is_image(name)]
        if not self._names:
            raise UserError(f"--data: expected images, found none in {path}")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(self._folder / self._names[index])

    def key(self, index: int) -> str:
        """Name of the file."""
        return self._names[index]

    def read(self, index: int) -> Record:
        """Bytes of the file (none if it cannot be read), and no label."""
        return Record(_bytes_or_nothing(self.name(index)), np.zeros(0, np.int32))


class SyntheticSource:
    """Synthetic images, 256x256, a pure function of their number: a pattern of their class, and noise.

    Args:
      examples: number of examples.
      classes: number of classes; example i has label i % classes.
      seed: seed of the noise.
    """

    def __init__(self, examples: int, classes: int, seed: int):
        self.labels = (np.arange(examples) % classes).astype(np.int32)
        self.class_names = tuple(f"synthetic {label}" for label in range(classes))
        self._seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """`synthetic example INDEX`."""
        return f"synthetic example {index}"

    key = name

    def digest(self) -> str:
        """Of the number of examples, the labels and the seed."""
        return digest_of(str(self._seed), self.labels)

    def read(self, index: int) -> Record:
        """Pixels, uint8 (256, 256, 3), and the label."""
        label = int(self.labels[index])
        pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3))
        noise = np.random.default_rng((self._seed, index)).integers(-60, 61, (16, 16, 3))
        coarse = np.clip(pattern.repeat(4, 0).repeat(4, 1) + noise, 0, 255).astype(np.uint8)
        return Record(cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_LINEAR), label)


def digest_of(*parts: str | np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of texts and arrays."""
    result = hashlib.sha256()
    for part in parts:
        result.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
        result.update(b"/")
    return result.hexdigest()[:16]


def _bytes_or_nothing(*arguments) -> bytes:
    """See `files.read_bytes`; nothing, which is a corrupt image, where the file cannot be read."""
    try:
        return read_bytes(*arguments)
    except OSError:
        return b""
