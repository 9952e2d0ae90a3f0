"""Writers of torch's two formats that need no torch, so that tests can also write what torch would not."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LEGACY_HEADER = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


class Global(NamedTuple):
    """An object by the names of its module and its own."""

    module: str
    name: str


class Call(NamedTuple):
    """A function that unpickling calls."""

    function: Global
    arguments: tuple


class Persistent(NamedTuple):
    """An object that the pickle names and the file holds elsewhere."""

    value: object


def pickled(value: object) -> bytes:
    """A pickle of protocol 2."""
    return pickle.PROTO + b"\x02" + opcodes(value) + pickle.STOP


def opcodes(value: object) -> bytes:
    """What puts a value on the stack."""
    match value:
        case Global(module, name):
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + pickle.REDUCE
        case Persistent(inner):
            return opcodes(inner) + pickle.BINPERSID
        case tuple():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(opcodes, value)) + pickle.APPENDS
        case dict():
            items = b"".join(opcodes(key) + opcodes(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    return pickle.dumps(value, 2)[2:-1]  # without PROTO and STOP


def tensor(key: str, dtype: str, numel: int, offset: int, shape: tuple, stride: tuple, legacy: bool = False) -> Call:
    """A tensor that is a view of the storage `key`."""
    storage = ("storage", Global("torch", _STORAGES[dtype]), key, "cpu", numel, *([None] if legacy else []))
    arguments = (Persistent(storage), offset, shape, stride, False, Call(Global("collections", "OrderedDict"), ()))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def tensors(arrays: Mapping[str, np.ndarray], legacy: bool = False) -> dict[str, Call]:
    """A contiguous tensor for each array; the storages are numbered."""
    return {
        name: tensor(str(key), array.dtype.name, array.size, 0, array.shape, _strides(array), legacy)
        for key, (name, array) in enumerate(arrays.items())
    }


def write_zip(path, state: object, storages: Mapping[str, bytes], extra: Mapping[str, bytes] | None = None) -> None:
    """Write a pickle and its storages as `torch.save` does."""
    write_zip_pickle(path, pickled(state), storages, extra)


def write_zip_pickle(path, pickle_bytes: bytes, storages=None, extra=None) -> None:
    """Write the bytes of a pickle and its storages as `torch.save` does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)


def write_state_dict(path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a state dict in the zip format."""
    write_zip(path, tensors(arrays), {str(i): array.tobytes() for i, array in enumerate(arrays.values())})


def write_legacy(path, state: object, storages: Mapping[str, np.ndarray]) -> None:
    """Write a pickle and its storages as torch did before version 1.6."""
    with open(path, "wb") as file:
        for part in (*LEGACY_HEADER, state, list(storages)):
            file.write(pickled(part))
        for content in storages.values():
            file.write(struct.pack("<q", content.size) + content.tobytes())


def _strides(array) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in array.strides)
