"""Checkpoints of Flax: MessagePack files of `flax.serialization`, and folders that Orbax wrote."""

import json
import math
import pathlib

import flax.serialization
import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.checkpoint.arrays import silence_orbax
from resnet_jax.weights.checks import check_total, map_file, reading, refuse, short

_ORBAX = "_METADATA"  # file that marks a folder of Orbax
_MAX_LIST = 10_000  # Flax stores dicts; the length of a list is only claimed, and memory is taken for it at once


def read_msgpack(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a Flax checkpoint by their path, such as `params/conv_init/kernel`.

    Raises:
      UserError: it is corrupt, or holds more than arrays.
    """
    mapped = map_file(path)

    def check(_, data):
        msgpack.unpackb(data, raw=True, max_array_len=_MAX_LIST)

    with reading(path, "a Flax checkpoint"):
        msgpack.unpackb(mapped, ext_hook=check, max_array_len=_MAX_LIST)
        return _flatten(path, flax.serialization.msgpack_restore(mapped))


def orbax_folder(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of a tree that Orbax saved: the path itself or the only one below it; None if there is none."""
    folders = [path, *sorted(path.iterdir())]
    found = [folder for folder in folders if (folder / _ORBAX).is_file()]
    return found[0] if found and (found[0] == path or len(found) == 1) else None


def read_orbax(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an Orbax folder by their path, on the host, whatever devices wrote them.

    Raises:
      UserError: it is corrupt, or refers to other files.
    """
    files = list(path.rglob("*"))
    for file in files:
        if file.is_symlink():
            raise refuse(path, "files inside the folder", f"the link {short(file.relative_to(path))}; it was not read")
    silence_orbax()
    with (
        reading(path, "an Orbax checkpoint"),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        _check_keys(path)
        described = checkpointer.metadata(path.absolute()).item_metadata.tree
        leaves = jax.tree_util.tree_leaves(described)
        total = sum(_nbytes(leaf) for leaf in leaves)
        check_total(path, total, sum(file.stat().st_size for file in files if file.is_file()))
        on_host = jax.tree_util.tree_map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        return _flatten(path, checkpointer.restore(path.absolute(), ocp.args.PyTreeRestore(restore_args=on_host)))


def _check_keys(path) -> None:
    """Refuse names that lead out of the folder, where each array has a folder of its name."""
    for entry in json.loads((path / _ORBAX).read_text())["tree_metadata"].values():
        for key in entry["key_metadata"]:
            if "/" in key["key"] or ".." in key["key"]:
                raise refuse(path, "names inside the folder", f"{short(key['key'])}; nothing was read")


def _nbytes(leaf) -> int:
    """The bytes that reading an array takes: a chunk may be larger than the array."""
    storage = getattr(leaf, "storage", None)
    shapes = [leaf.shape, *([storage.chunk_shape] if storage and storage.chunk_shape else [])]
    return max(map(math.prod, shapes)) * np.dtype(leaf.dtype).itemsize


def _flatten(path, tree) -> dict[str, np.ndarray]:
    arrays = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array | int | float):
            raise refuse(path, "arrays", f"a {type(leaf).__name__} named {short(name)}")
        arrays[name] = np.asarray(leaf)
    return arrays
