"""What holds for every file that is refused."""

import pathlib
import re

import pytest

from resnet_jax.errors import UserError
from resnet_jax.weights.read import read_arrays


def refused(path, megabytes: int = 10) -> str:
    """The one line that says why a file is not read, in no more than so much memory and four times its size."""
    # Not by tracemalloc: under CPython 3.11 it crashes where threads of other libraries, as Orbax's, enter Python.
    before = _reset_peak_memory()
    with pytest.raises(UserError) as caught:
        read_arrays(path)
    peak = _memory("VmHWM") - before
    size = path.stat().st_size if path.is_file() else 0
    assert peak < megabytes * 2**20 + 4 * size
    message = str(caught.value)
    assert message.isprintable() and len(message) < 800 and str(path) in message
    return message


def _reset_peak_memory() -> int:
    """Bytes that the process has in memory, from which its peak is counted from now on."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    return _memory("VmRSS")


def _memory(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
