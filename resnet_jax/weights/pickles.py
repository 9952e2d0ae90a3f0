"""Pickles of torch's state dicts, interpreted without Python's unpickler: nothing in a file can be called.

`pickletools.genops` splits a pickle into opcodes. The machine below knows those that `torch.save` writes for a state
dict. A global is a name to it, never an object: nothing is imported, and the few names that may be "called" stand in a
table of functions that only build dicts, tuples and descriptions of tensors. Sizes are checked before anything is
allocated, by the reader of the file.
"""

import pathlib
import pickletools
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.weights.checks import refuse, short

_MAX_OPCODES = 500_000  # a state dict has about 50 for each tensor; this bounds memory at about 50 MB


class Storage(NamedTuple):
    """A flat array that tensors are views of.

    Attributes:
      dtype: dtype of its elements.
      key: its name within the file.
      numel: number of elements.
      view: (key, offset, numel) of a part of it, in the legacy format; else None.
    """

    dtype: np.dtype
    key: str
    numel: int
    view: tuple | None


class Tensor(NamedTuple):
    """A view of a storage, in elements; not validated."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Pickle(NamedTuple):
    """The content of a pickle.

    Attributes:
      value: made of dicts, lists, tuples, str, numbers, `Tensor` and `Unneeded`.
      storages: all that it names, by key.
    """

    value: object
    storages: dict[str, Storage]


class _Global(NamedTuple):
    name: str


class Unneeded:
    """The place of an object that weights do not need, such as the arguments of a training script."""


_STORAGES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_DTYPES = {f"torch.{name}" for name in "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool".split()}


def read_pickle(file: BinaryIO, path: pathlib.Path) -> Pickle:
    """The content of one pickle of tensors.

    Args:
      file: binary file at the start of a pickle; it is left at its end.
      path: weight file that errors name.

    Raises:
      UserError: the pickle names anything but a tensor or a container, or is corrupt.
    """
    machine = _Machine(path)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= _MAX_OPCODES:
                raise refuse(path, f"a pickle of at most {_MAX_OPCODES:,} opcodes", "more")
            if opcode.name == "STOP":
                return Pickle(machine.stack.pop(), machine.storages)
            machine.run(opcode.name, argument)
    except UserError:
        raise
    # IndexError: an empty stack; KeyError: nothing in the memo; the others: operands of other types or sizes.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise refuse(path, "a pickle of tensors", f"a corrupt one ({short(error)}); nothing was executed") from error


class _Machine:
    """The stack machine of the pickle format.

    Attributes:
      stack: values since the last mark.
      marks: the stacks below each mark.
      memo: values by number.
      storages: named so far, by key.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, opcode: str, argument):
        """Apply one opcode to the stack."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in ("GLOBAL", "INST"):
            self.stack.append(self.named(argument.replace(" ", ".", 1)))
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif opcode in _OPERATIONS:
            _OPERATIONS[opcode](self)
        elif opcode not in ("PROTO", "FRAME"):
            found = f"the opcode {opcode}, which may run code; nothing was executed"
            raise refuse(self.path, "a pickle of tensors", found, _ADVICE)

    def named(self, name: str) -> object:
        """The stand-in for a global; only names in the tables are known."""
        if name in _STORAGES or name in _DTYPES or name in _CALLS or name == _NAMESPACE:
            return _Global(name)
        if "sparse" in name or "_rebuild_qtensor" in name or name.startswith("torch.Q"):
            raise refuse(self.path, "dense tensors", f"a sparse or quantised one ({short(name)})")
        found = f"a pickle that names {short(name)}, which may run code; nothing was executed"
        raise refuse(self.path, "tensors alone", found, _ADVICE)

    def pop_to_mark(self) -> list:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def tuple_to_mark(self):
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def tuple(self, size: int):
        if len(self.stack) < size:
            raise IndexError("a tuple of more values than the stack has")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def append(self, items: list):
        if type(self.stack[-1]) is not list:
            raise TypeError("items for what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list):
        _fill(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a global whose name is no string")
        self.stack.append(self.named(f"{module}.{name}"))

    def reduce(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or function.name not in _CALLS or type(arguments) is not tuple:
            raise TypeError("a call of what is no function")
        self.stack.append(_CALLS[function.name](*arguments))

    def new(self):
        _, made = self.stack.pop(), self.stack.pop()
        if not isinstance(made, _Global) or made.name != _NAMESPACE:
            raise TypeError("an object of an unknown class")
        self.stack.append(Unneeded())

    def build(self):
        self.stack.pop()  # attributes, such as the versions of modules that a state dict carries
        if not isinstance(self.stack[-1], dict | Unneeded):
            raise TypeError("attributes for what has none")

    def persistent(self):
        kind, storage_type, key, _, numel, *view = self.stack.pop()
        if kind != "storage" or not isinstance(storage_type, _Global) or type(key) is not str:
            raise TypeError("a persistent id that names no storage")
        storage = Storage(_STORAGES[storage_type.name], key, _count(numel), view[0] if view else None)
        self.storages[key] = storage
        self.stack.append(storage)


def _fill(target: dict, pairs) -> None:
    if type(target) is not dict:
        raise TypeError("items for what is no dict")
    for key, value in pairs:
        # The hash of a tuple of tuples of one another takes forever.
        if not isinstance(key, str | int):
            raise TypeError("a key that is neither a string nor a number")
        target[key] = value


def _count(value) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a size that is no natural number")
    return value


def _counts(values) -> tuple[int, ...]:
    if type(values) is not tuple:
        raise TypeError("a shape that is no tuple")
    return tuple(map(_count, values))


def _ordered_dict(pairs=()) -> dict:
    result: dict = {}
    _fill(result, pairs)
    return result


def _tensor(storage, offset, shape, stride, *_) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    return Tensor(storage, _count(offset), _counts(shape), _counts(stride))


def _parameter(tensor, *_) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError("a parameter without a tensor")
    return tensor


_NAMESPACE = "argparse.Namespace"
_ADVICE = "where the model was made, save its weights alone: torch.save(model.state_dict(), PATH)"
_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": lambda *_: Unneeded(),
    "torch.Size": _counts,
    "torch.device": lambda *_: Unneeded(),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = set(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING".split()
)
_OPERATIONS = {
    "EMPTY_LIST": lambda machine: machine.stack.append([]),
    "EMPTY_DICT": lambda machine: machine.stack.append({}),
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine: machine.tuple(1),
    "TUPLE2": lambda machine: machine.tuple(2),
    "TUPLE3": lambda machine: machine.tuple(3),
    "APPEND": lambda machine: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_to_mark()),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
