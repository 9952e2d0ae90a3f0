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
_LAYERS, _WEIGHTS = "layer_names", "weight_names"


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
        paths = _legacy_paths(path, group) if _names(path, group, _LAYERS) is not None else {n: n for n in datasets}
        missing = [key for key in paths.values() if key not in datasets]
        if missing:
            raise refuse(path, f"the dataset {short(missing[0])}", "none")
        return {name: _read(path, name, datasets[key]) for name, key in paths.items()}


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


def _names(path, group, attribute: str) -> list[str] | None:
    """The names in an attribute, which Keras cuts into parts (`layer_names0`, ...) if it is long; None without it."""
    parts = [attribute] if attribute in group.attrs else []
    while not parts or parts[0] != attribute:
        if (part := f"{attribute}{len(parts)}") not in group.attrs:
            break
        parts.append(part)
    if not parts:
        return None
    names = []
    for part in parts:
        stored = group.attrs.get_id(part)
        if stored.dtype.kind != "S" and math.prod(stored.shape):  # an empty list is stored as no numbers
            raise refuse(path, f"fixed-length strings in {part}", short(stored.dtype))
        names += [name.decode() for name in group.attrs[part]] if math.prod(stored.shape) else []
    return names


def _legacy_paths(path, group) -> dict[str, str]:
    """The path of each weight below the group, by the name that Keras stored."""
    paths = {}
    for layer in _names(path, group, _LAYERS):
        for name in _names(path, group[layer], _WEIGHTS) or []:
            if name in paths:
                raise refuse(path, "one weight of each name", f"{short(name)} twice")
            paths[name] = f"{layer}/{name}"
    return paths


def _read(path, name, dataset) -> np.ndarray:
    return as_numbers(path, name, dataset[()])
