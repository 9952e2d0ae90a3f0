"""State dicts of torch, in its zip format and in the older one, read without torch.

Both hold a pickle in which storages are only named, and the bytes of the storages. The formats are those of
`torch.serialization` (`_save` and `_legacy_save`) in torch 2.
"""

import io
import math
import pathlib
import struct
import zlib
from collections.abc import Callable

import numpy as np

from resnet_jax.weights.checks import check_total, map_file, reading, refuse, short
from resnet_jax.weights.pickles import Storage, Tensor, read_pickle
from resnet_jax.weights.zips import Archive

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format
# Where training scripts keep a state dict. Averaged weights come first, as in timm's own loader: timm evaluates them.
_NESTED = ("state_dict_ema", "state_dict", "model_state_dict", "model")
_PARALLEL = "module."  # before each name, by torch.nn.DataParallel
_MAX_DIMENSIONS = 64  # of torch and NumPy


def is_torch_archive(archive: Archive) -> bool:
    """True for what `torch.save` or `torch.jit.save` wrote."""
    return bool(_pickles(archive))


def read_zip(path: pathlib.Path, archive: Archive) -> dict[str, np.ndarray]:
    """The arrays of a torch archive by name, as views of the file.

    Raises:
      UserError: it is no state dict of dense tensors, or corrupt.
    """
    pickled, *others = _pickles(archive)
    root = pickled.removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") or name == f"{root}constants.pkl" for name in archive.starts):
        advice = "save its weights alone: torch.save(model.state_dict(), PATH)"
        raise refuse(path, "weights", "a TorchScript program, which is code; nothing was executed", advice)
    if others:
        raise refuse(path, "one data.pkl", f"{1 + len(others)}")
    for entry in archive.zip.infolist():
        if entry.compress_type or entry.file_size != entry.compress_size:
            raise refuse(path, "a torch archive, which is not compressed", f"the compressed {short(entry.filename)}")
        # 0: torch was told to compute none (torch.serialization.set_crc32_options).
        if entry.CRC and zlib.crc32(archive.stored(entry.filename)) != entry.CRC:
            raise refuse(path, f"CRC-32 {entry.CRC:08x} of {short(entry.filename)}", "another", "get the file again")
    order = f"{root}byteorder"
    _check_order(path, order not in archive.starts or archive.stored(order) == b"little")
    state, _ = read_pickle(io.BytesIO(archive.stored(pickled)), path)

    def content(storage: Storage) -> memoryview:
        name = f"{root}data/{storage.key}"
        if name not in archive.starts:
            raise refuse(path, f"the entry {short(name)}", "none")
        return archive.stored(name)

    return _arrays(path, state, content, len(archive.mapped))


def read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that torch wrote before version 1.6 by name, as views of the file.

    Raises:
      UserError: it is no state dict of dense tensors, or corrupt.
    """
    mapped = map_file(path)
    for expected in (_MAGIC, _PROTOCOL):
        if read_pickle(mapped, path).value != expected:
            raise refuse(path, "a file of torch", "another pickle; nothing was executed")
    with reading(path, "a file of torch"):
        _check_order(path, read_pickle(mapped, path).value["little_endian"])
        state, storages = read_pickle(mapped, path)
        keys, _ = read_pickle(mapped, path)
        contents, start = {}, mapped.tell()
        for key in keys:
            (numel,) = struct.unpack_from("<q", mapped, start)
            end = start + 8 + numel * storages[key].dtype.itemsize
            if numel != storages[key].numel or end > len(mapped):
                raise refuse(path, f"a storage of {storages[key].numel:,} elements", f"{numel:,} or a truncated file")
            contents[key] = memoryview(mapped)[start + 8 : end]
            start = end
        return _arrays(path, state, lambda storage: contents[storage.key], len(mapped))


def _pickles(archive) -> list[str]:
    return [name for name in archive.starts if name.split("/")[1:] == ["data.pkl"]]


def _check_order(path, little: bool) -> None:
    if not little:
        raise refuse(path, "little-endian numbers", "big-endian ones", "save the file on a little-endian machine")


def _arrays(
    path: pathlib.Path, state: object, content: Callable[[Storage], memoryview], file_size: int
) -> dict[str, np.ndarray]:
    with reading(path, "a file of torch"):
        tensors = _state_dict(path, state)
        arrays = {name: _view(path, name, tensor, content(tensor.storage)) for name, tensor in tensors.items()}
        check_total(path, sum(array.nbytes for array in arrays.values()), file_size)
        return arrays


def unnested(value: object) -> object:
    """The state dict in what a training script saved, by the names of the net itself; what is no dict, as it is."""
    if isinstance(value, dict):
        value = next((value[key] for key in _NESTED if isinstance(value.get(key), dict)), value)
        if all(isinstance(name, str) and name.startswith(_PARALLEL) for name in value):
            value = {name.removeprefix(_PARALLEL): tensor for name, tensor in value.items()}
    return value


def _state_dict(path, value) -> dict[str, Tensor]:
    value = unnested(value)
    if not isinstance(value, dict):
        raise refuse(path, "a dict of tensors by name", f"a {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            expected = f"tensors by name, there or under one of {', '.join(_NESTED)}"
            raise refuse(path, expected, f"a {type(tensor).__name__} named {short(name)}")
    return value


def _view(path, name: str, tensor: Tensor, content: memoryview) -> np.ndarray:
    """The array of a tensor, a view of its storage, if it lies within it and is not larger."""
    storage, offset, shape, stride = tensor
    if storage.numel * storage.dtype.itemsize > len(content):
        raise refuse(path, f"{storage.numel:,} elements of {short(name)}", f"{len(content):,} bytes")
    flat = np.frombuffer(content, storage.dtype, storage.numel)
    if storage.view is not None:
        _, start, numel = storage.view
        if not 0 <= start <= start + numel <= flat.size:
            raise refuse(path, f"{short(name)} within {flat.size:,} elements", f"elements {start} to {start + numel}")
        flat = flat[start : start + numel]
    size = math.prod(shape) if len(shape) <= _MAX_DIMENSIONS else math.inf
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if size > flat.size or (size and last >= flat.size):
        found = f"shape {short(shape)}, strides {short(stride)} and offset {offset}"
        raise refuse(path, f"{short(name)} within its storage of {flat.size:,} elements", found)
    if not size:
        return np.zeros(shape, storage.dtype)
    strides = [step * storage.dtype.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides, writeable=False)
