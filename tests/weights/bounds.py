"""What holds for every file that is refused."""

import tracemalloc

import pytest

from resnet_jax.errors import UserError
from resnet_jax.weights.read import read_arrays


def refused(path, megabytes: int = 10) -> str:
    """The one line that says why a file is not read, in no more than so much memory and four times its size."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            read_arrays(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = path.stat().st_size if path.is_file() else 0
    assert peak < megabytes * 2**20 + 4 * size
    message = str(caught.value)
    assert message.isprintable() and len(message) < 800 and str(path) in message
    return message
