"""Arrays of Keras weight files: legacy `.h5` and Keras 3's `.weights.h5`. A model's configuration is never read.

HDF5 may point into other files (external links, virtual and external datasets) and may claim more than it holds
(fill values, compression). Keras writes plain datasets, so nothing else is accepted.
"""

import math
import pathlib
from collections.abc import Iterator

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.weights.checks import as_numbers, check_total, reading, refuse, short

_MODEL = "model_weights"  # group of the weights in a file that holds a whole model
_LEGACY = ("layer_names", "layer_names0")  # attributes of the older format; the second, if it has many layers


def read_keras(path: pathlib.Path, file_size: int) -> dict[str, np.ndarray]:
    """The arrays of an HDF5 file of Keras by name.

    A legacy file gives the names that Keras stored, such as `conv1_conv/kernel:0`; one of Keras 3 gives paths, such as
    `layers/conv2d/vars/0`.

    Raises:
      UserError: it is corrupt, refers to other files, or holds more than plain arrays; or h5py is missing.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: HDF5 files need h5py; run: pip install h5py") from None
    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        group = file
        if isinstance(file.get(_MODEL, getlink=True), h5py.HardLink) and isinstance(file[_MODEL], h5py.Group):
            group = file[_MODEL]
        datasets = dict(_datasets(path, group, h5py))
        for name, dataset in datasets.items():
            _check_plain(path, name, dataset, h5py)
        check_total(path, sum(dataset.nbytes for dataset in datasets.values()), file_size)
        paths = (
            _legacy_paths(path, datasets) if any(name in group.attrs for name in _LEGACY) else {n: n for n in datasets}
        )
        return {name: as_numbers(path, name, datasets[key][()]) for name, key in paths.items()}


def _datasets(path, root, h5py) -> Iterator[tuple[str, object]]:
    """(path below the root, dataset) of every dataset; each group is entered once."""
    seen, groups = set(), [("", root)]
    while groups:
        prefix, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise refuse(path, "a tree of groups", f"{short(prefix)}, which is linked twice")
        seen.add(address)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                found = f"{type(link).__name__} {short(prefix + name)}; it was not followed"
                raise refuse(path, "arrays inside the file", found)
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((f"{prefix}{name}/", item))
            elif isinstance(item, h5py.Dataset):
                yield prefix + name, item


def _check_plain(path, name, dataset, h5py) -> None:
    """Refuse what lies in other files, is compressed, or has less content than its shape says."""
    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise refuse(path, "arrays inside the file", f"{short(name)}, which lies in other files; they were not read")
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise refuse(path, f"{short(name)} in one piece", "chunks", "copy the file by: h5repack -l CONTI -f NONE")
    if dataset.shape is None or dataset.id.get_storage_size() != math.prod(dataset.shape) * dataset.dtype.itemsize:
        raise refuse(path, f"the content of {short(name)}", f"{dataset.id.get_storage_size():,} bytes")


def _legacy_paths(path, datasets) -> dict[str, str]:
    """The path of each weight by the name that Keras stored: the path below the group of its layer."""
    paths = {}
    for key in datasets:
        name = key.partition("/")[2]
        if name in paths:
            raise refuse(path, "one weight of each name", f"{short(name)} in several layers")
        paths[name] = key
    return paths
