"""Arrays of safetensors files, by the library of that format."""

import pathlib

import numpy as np
import safetensors

from resnet_jax.weights.checks import reading, refuse

_MAX_HEADER = 100_000_000  # bytes; https://github.com/huggingface/safetensors#format


def read_safetensors(path: pathlib.Path, file_size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, metadata) of a safetensors file.

    Raises:
      UserError: its header or its size is wrong.
    """
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    limit = min(_MAX_HEADER, file_size - 8)
    if header > limit:
        raise refuse(path, f"a safetensors header of at most {limit:,} bytes", f"{header:,}", "get the file again")
    with reading(path, "a safetensors file"), safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
