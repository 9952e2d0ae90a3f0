"""Pickles made to run code or to exhaust memory, in each of torch's containers: refused, and nothing happens."""

import io
import pickle
import shlex
import sys

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.weights.read import read_arrays
from tests.weights.bounds import refused
from tests.weights.files import (
    LEGACY_HEADER,
    Call,
    Global,
    Persistent,
    opcodes,
    pickled,
    tensor,
    write_legacy,
    write_zip,
    write_zip_pickle,
)

OS_SYSTEM = Global("os", "system")


def text(value: str) -> bytes:
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()


def wrapped(body: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + body + pickle.STOP


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def code(marker) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def shell(marker) -> str:
    return f"touch {shlex.quote(str(marker))}"


def call(module: str, name: str, *arguments) -> bytes:
    return pickled(Call(Global(module, name), arguments))


# Each makes the marker when Python's own unpickler reads it; `test_the_payloads_are_live` shows that.
LIVE = {
    "os.system": lambda m: call("os", "system", shell(m)),
    "posix.system": lambda m: call("posix", "system", shell(m)),
    "eval": lambda m: call("builtins", "eval", code(m)),
    "exec": lambda m: call("builtins", "exec", code(m)),
    "exec of python 2": lambda m: call("__builtin__", "exec", code(m)),
    "open": lambda m: call("builtins", "open", str(m), "w"),
    "io.open": lambda m: call("io", "open", str(m), "w"),
    "subprocess.check_call": lambda m: call("subprocess", "check_call", ["touch", str(m)]),
    "subprocess.Popen": lambda m: pickled(
        Call(Global("subprocess", "Popen.wait"), (Call(Global("subprocess", "Popen"), (["touch", str(m)],)),))
    ).replace(b"\x80\x02", b"\x80\x04", 1),
    "runpy": lambda m: call("runpy", "_run_code", code(m), {}),
    "timeit": lambda m: call("timeit", "timeit", "pass", code(m), Global("time", "perf_counter"), 1),
    "pickle.loads": lambda m: call("pickle", "loads", Call(Global("_codecs", "encode"), (_latin(m), "latin1"))),
    "getattr of a module": lambda m: pickled(
        Call(
            Call(Global("builtins", "getattr"), (Call(Global("importlib", "import_module"), ("os",)), "system")),
            (shell(m),),
        )
    ),
    "__import__": lambda m: pickled(
        Call(Call(Global("operator", "attrgetter"), ("system",)), (Call(Global("builtins", "__import__"), ("os",)),))
    ).replace(pickle.STOP, text(shell(m)) + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP),
    "functools.partial": lambda m: pickled(Call(Call(Global("functools", "partial"), (OS_SYSTEM, shell(m))), ())),
    "map in a dict": lambda m: pickled({"weight": Call(Global("builtins", "list"), (_map(m),))}),
    "STACK_GLOBAL": lambda m: wrapped(stack_global("os", "system") + text(shell(m)) + pickle.TUPLE1 + pickle.REDUCE),
    "STACK_GLOBAL from the memo": lambda m: wrapped(
        text("os") + pickle.MEMOIZE + text("system") + pickle.MEMOIZE + b"00" + pickle.BINGET + b"\0" + pickle.BINGET
        # Python's unpickler pops both names again; ours has no use for POP.
        + b"\1" + pickle.STACK_GLOBAL + text(shell(m)) + pickle.TUPLE1 + pickle.REDUCE
    ),
    "a nested attribute": lambda m: wrapped(
        stack_global("pathlib", "os.system") + text(shell(m)) + pickle.TUPLE1 + pickle.REDUCE
    ),
    "INST": lambda m: wrapped(pickle.MARK + text(shell(m)) + pickle.INST + b"os\nsystem\n"),
    "OBJ": lambda m: wrapped(pickle.MARK + opcodes(OS_SYSTEM) + text(shell(m)) + pickle.OBJ),
    "NEWOBJ": lambda m: wrapped(
        # list(map(os.system, [...])) by the constructor of a class
        opcodes(Global("builtins", "tuple")) + opcodes(_map(m)) + pickle.TUPLE1 + pickle.NEWOBJ
    ),
    "NEWOBJ_EX": lambda m: wrapped(
        opcodes(Global("builtins", "tuple")) + opcodes(_map(m)) + pickle.TUPLE1 + pickle.EMPTY_DICT + pickle.NEWOBJ_EX
    ),
    "BUILD with __setstate__": lambda m: wrapped(
        # functools.partial.__setstate__ replaces the function, the arguments and the attributes
        opcodes(Call(Global("functools", "partial"), (Global("builtins", "print"),)))
        + opcodes((OS_SYSTEM, (shell(m),), {}, {})) + pickle.BUILD + pickle.EMPTY_TUPLE + pickle.REDUCE
    ),
    "a text pickle": lambda m: b"cos\nsystem\n(V" + shell(m).encode() + b"\ntR.",
    "a persistent id": lambda m: pickled(Persistent(("storage", Call(OS_SYSTEM, (shell(m),)), "0", "cpu", 1))),
}  # fmt: skip


def _map(marker) -> Call:
    return Call(Global("builtins", "map"), (OS_SYSTEM, [shell(marker)]))


def _latin(marker) -> str:
    return call("os", "system", shell(marker)).decode("latin1")


class PersistentUnpickler(pickle.Unpickler):
    def persistent_load(self, pid):
        return pid


@pytest.mark.parametrize("name", LIVE)
def test_the_payloads_are_live(tmp_path, name):
    marker = tmp_path / "marker"
    PersistentUnpickler(io.BytesIO(LIVE[name](marker))).load()
    assert marker.exists()


def in_zip(path, payload: bytes):
    write_zip_pickle(path, payload)


def as_magic(path, payload: bytes):
    path.write_bytes(payload)


def in_legacy(path, payload: bytes):
    path.write_bytes(b"".join(map(pickled, LEGACY_HEADER)) + payload + pickled([]))


def as_keys(path, payload: bytes):
    path.write_bytes(b"".join(map(pickled, [*LEGACY_HEADER, {}])) + payload)


CONTAINERS = pytest.mark.parametrize("write", [in_zip, as_magic, in_legacy, as_keys])


@CONTAINERS
@pytest.mark.parametrize("name", LIVE)
def test_a_pickle_that_would_run_code_is_refused_unexecuted(tmp_path, name, write):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    write(path, LIVE[name](marker))
    message = refused(path)
    assert "nothing was executed" in message
    assert not marker.exists() and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch", "os.system"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.serialization", "os.system"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "namedtuple"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("torchvision.models.resnet", "ResNet"),
        ("evil\r\x1b[2K" + "x" * 1000, "y"),
    ],
)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL"])
def test_a_global_off_the_list_is_named_and_not_imported(tmp_path, module, name, opcode):
    path = tmp_path / "weights.pth"
    body = opcodes(Global(module, name)) if opcode == "GLOBAL" else stack_global(module, name)
    write_zip_pickle(path, wrapped(body))
    before = set(sys.modules)
    message = refused(path)
    assert (module if module.isprintable() else "evil") in message and "nothing was executed" in message
    assert not {"torch", "torchvision"} & (set(sys.modules) - before)


MALFORMED = {
    "an extension": pickle.EXT1 + b"\x01",
    "a string as persistent id": opcodes(Persistent("storage")),
    "a number as persistent id": opcodes(Persistent(3)),
    "a module as persistent id": opcodes(Persistent(("module", Global("torch", "FloatStorage"), "a.py", "import os"))),
    "a storage of no storage type": opcodes(Persistent(("storage", Global("torch", "float32"), "0", "cpu", 1))),
    "a storage of negative size": opcodes(Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", -1))),
    "a call of a storage type": opcodes(Call(Global("torch", "FloatStorage"), (10**12,))),
    "a call of a string": opcodes("os.system") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    "a tensor of a string": opcodes(Call(Global("torch._utils", "_rebuild_tensor_v2"), ("s", 0, (), (), 0, {}))),
    "a dict of numbers": opcodes(Call(Global("collections", "OrderedDict"), ([1, 2],))),
    "attributes of a list": pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.BUILD,
    "an object of OrderedDict": opcodes(Global("collections", "OrderedDict")) + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
    "items of a tuple": pickle.EMPTY_TUPLE + opcodes("a") + opcodes("b") + pickle.SETITEM,
    "an empty stack": pickle.REDUCE,
    "a missing mark": pickle.TUPLE,
    "nothing in the memo": pickle.BINGET + b"\x05",
    "no end": opcodes({}) + pickle.MARK,
    # bombs
    "a memo of 4 billion": pickle.NONE + pickle.LONG_BINPUT + b"\xff" * 4,
    "a long of 2 GB": pickle.LONG4 + b"\xff\xff\xff\x7f",
    "a string of 16 EB": pickle.BINUNICODE8 + b"\xff" * 8,
    "a string of 4 GB": pickle.BINUNICODE + b"\xff" * 4,
    "bytes of 1 TB": pickle.BINBYTES8 + (2**40).to_bytes(8, "little"),
    "a bytearray of 1 TB": pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little"),
    "a frame of 16 EB": pickle.FRAME + b"\xff" * 8,
    "the hash of 2**200 tuples": pickle.EMPTY_DICT + pickle.EMPTY_TUPLE
    + 200 * (pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2) + pickle.NONE + pickle.SETITEM,
    "a list that doubles": pickle.EMPTY_LIST + 200 * (pickle.DUP + pickle.APPEND),
    "lists, one in the other": 10**5 * pickle.EMPTY_LIST + 10**5 * pickle.APPEND,
    "a million dicts": 10**6 * pickle.EMPTY_DICT,
}  # fmt: skip


@pytest.mark.parametrize("write", [in_zip, in_legacy])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_pickle_is_refused(tmp_path, name, write):
    path = tmp_path / "weights.pth"
    write(path, wrapped(MALFORMED[name]))
    assert refused(path, megabytes=60)  # the bound on opcodes holds for a file of any size


HUGE = 10**6
VIEWS = {
    "an offset beyond the storage": (1000, (4,), (1,)),
    "an offset that leaves too little": (13, (4,), (1,)),
    "a stride beyond the storage": (0, (4,), (6,)),
    "a negative offset": (-4, (4,), (1,)),
    "a negative stride": (8, (4,), (-1,)),
    "a negative size": (0, (-4,), (1,)),
    "too many elements": (0, (17,), (1,)),
    "more elements by a stride of 0": (0, (HUGE, HUGE), (0, 0)),
    "more elements by small strides": (0, (8, 8), (1, 1)),
    "numbers beyond 64 bits": (0, (2, 2), (2**70, 1)),
    "an offset beyond 64 bits": (2**64, (4,), (1,)),
    "a shape without strides": (0, (4, 4), (1,)),
    "a shape that is no tuple": (0, [4], (1,)),
    "a shape of truth values": (0, (True,), (1,)),
    "100,000 dimensions": (0, (1,) * 100_000, (1,) * 100_000),
    "nothing of huge size": (0, (0, 2**70), (1, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_view_out_of_its_storage_is_refused(tmp_path, name, zipped):
    path = tmp_path / "weights.pth"
    state = {"weight": tensor("0", "float32", 16, *VIEWS[name], legacy=not zipped)}
    content = np.arange(16, dtype=np.float32)
    if zipped:
        write_zip(path, state, {"0": content.tobytes()})
    else:
        write_legacy(path, state, {"0": content})
    assert refused(path)


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    """Each is fine, but whoever copies them all needs a thousand times the file."""
    state = {str(i): tensor("0", "float32", 10**6, 0, (10**6,), (1,)) for i in range(1000)}
    write_zip(tmp_path / "weights.pth", state, {"0": bytes(4 * 10**6)})
    assert "4,000,000,000 bytes" in refused(tmp_path / "weights.pth")


@pytest.mark.parametrize("view", [("1", 10, 8), ("1", -1, 4), ("1", 0, -4), ("1", 0), "part", ("1", "0", 4)])
def test_a_part_out_of_a_legacy_storage_is_refused(tmp_path, view):
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 16, view))
    state = {"weight": Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (4,), (1,), False, {}))}
    write_legacy(tmp_path / "weights.pth", state, {"0": np.zeros(16, np.float32)})
    assert refused(tmp_path / "weights.pth")


def test_a_good_file_beside_them_is_read(tmp_path):
    """The writers of this file write what the reader takes, but for what each test breaks."""
    content = np.arange(16, dtype=np.float32)
    write_legacy(tmp_path / "a.pth", {"w": tensor("0", "float32", 16, 1, (3, 2), (4, 2), legacy=True)}, {"0": content})
    write_zip(tmp_path / "b.pth", {"w": tensor("0", "float32", 16, 1, (3, 2), (4, 2))}, {"0": content.tobytes()})
    for name in ("a.pth", "b.pth"):
        assert np.array_equal(read_arrays(tmp_path / name).arrays["w"], [[1, 3], [5, 7], [9, 11]])
    with pytest.raises(UserError, match="expected arrays, found none"):
        write_zip(tmp_path / "c.pth", {}, {})
        read_arrays(tmp_path / "c.pth")
