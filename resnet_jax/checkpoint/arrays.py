"""The arrays of a saved step, by name, through Orbax."""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.checkpoint.errors import CorruptCheckpoint, mismatch, not_readable
from resnet_jax.checkpoint.manifest import Manifest, read_manifest, verify_files, write_manifest
from resnet_jax.errors import DivergedError, UserError
from resnet_jax.workdir import fsync, path_for_orbax

Arrays = Mapping[str, np.ndarray]
_MAX_LISTED = 20
_ONE_AT_A_TIME = threading.Lock()  # two saves at once, of replicas, mix up Orbax's temporary folders
SAVING, DELETING = ".saving-", ".deleting-"  # before the names of folders that are not steps yet, or any more


def to_host(trees: Mapping[str, object]) -> dict[str, dict[str, np.ndarray]]:
    """Copies of the arrays of pytrees, by item and name."""
    # Copies: on CPU the host's view of an array is the device's memory, which the next step asks to be given.
    return {item: {name: np.array(leaf) for name, leaf in _named(tree)} for item, tree in trees.items()}


def check_finite(items: Mapping[str, Arrays], step: int) -> None:
    """Raise `DivergedError` for a number that is not finite."""
    for item, arrays in items.items():
        for name, array in arrays.items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                message = f"{item} {name} is not finite after step {step}, so that step is not saved"
                # In a job the other processes do not know, and cannot go back to a checkpoint together with this one.
                raise DivergedError(message, step if jax.process_count() == 1 else None)


def describe(arrays: Arrays) -> dict[str, list]:
    """`[dtype, shape]` of each array, plain JSON."""
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    result = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        result.update(f"{name} {array.dtype} {array.shape}\n".encode())
        result.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.ndim else array.tobytes())
    return result.hexdigest()


def write_step(path: pathlib.Path, items: Mapping[str, Arrays], manifest: Manifest) -> None:
    """Write the folder of a step, whole or not at all.

    Args:
      path: a new folder.
      items: arrays by item and name.
      manifest: step, metrics, notes and card; descriptions of arrays and files are added.

    Raises:
      DivergedError: a number is not finite.
    """
    check_finite(items, manifest.step)
    unfinished = path.with_name(f"{SAVING}{path.name}")
    arguments = {name: ocp.args.StandardSave(dict(arrays)) for name, arrays in items.items()}
    try:
        with _checkpointer() as checkpointer, path_for_orbax(path.parent) as parent:
            checkpointer.save(parent / unfinished.name, args=ocp.args.Composite(**arguments))
        described = {name: describe(arrays) for name, arrays in items.items()}
        write_manifest(unfinished, manifest._replace(arrays=described))
        unfinished.rename(path)
        fsync(path.parent)
    except BaseException:
        for folder in path.parent.glob(f"{unfinished.name}*"):  # Orbax has a name of its own for what it writes
            shutil.rmtree(folder, ignore_errors=True)
        raise


def remove(path: pathlib.Path) -> None:
    """Remove the folder of a step, whole or not at all."""
    removed = path.rename(path.with_name(f"{DELETING}{path.name}"))
    shutil.rmtree(removed, ignore_errors=True)


def read_step(path: pathlib.Path, names: Sequence[str]) -> tuple[dict[str, dict[str, np.ndarray]], Manifest]:
    """(arrays by item and name, manifest) of a saved step, verified.

    Raises:
      CorruptCheckpoint: it cannot be read, or does not match its digests.
      UserError: it may not be read, or was saved by a newer version.
    """
    manifest = read_manifest(path)
    verify_files(path, manifest, names)
    arguments = {name: ocp.args.StandardRestore() for name in names}
    try:
        with _checkpointer() as checkpointer, path_for_orbax(path.absolute()) as folder:
            restored = checkpointer.restore(folder, args=ocp.args.Composite(**arguments)) if names else {}
        items = {name: restored[name] for name in names}
    except MemoryError:  # not corrupt
        raise
    except Exception as error:  # whatever Orbax and its storage say about a broken file
        _check_readable(path)
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read ({type(error).__name__})") from error
    for name, arrays in items.items():
        if manifest.arrays is None:
            same = digest(arrays) == manifest.digests.get(name)
        else:
            same = describe(arrays) == manifest.arrays[name]
        if not same:
            raise mismatch(path, name)
    return items, manifest


def read_trees(path: pathlib.Path, like: Mapping[str, object]) -> tuple[dict[str, object], Manifest]:
    """(trees by item, manifest) of a saved step, in the structure of trees of shapes and dtypes.

    Raises:
      CorruptCheckpoint: see `read_step`.
      UserError: names, shapes or dtypes differ; both sides are listed.
    """
    found = read_manifest(path).arrays
    for item, tree in like.items() if found else ():  # before anything large is read
        check_fits(tree, found.get(item, {}), path)
    items, manifest = read_step(path, tuple(like))
    return {item: unflatten(tree, items[item], path) for item, tree in like.items()}, manifest


def unflatten(template, arrays: Arrays, path: pathlib.Path):
    """The arrays in the structure of a tree of shapes and dtypes.

    Raises:
      UserError: names, shapes or dtypes differ; both sides are listed.
    """
    check_fits(template, describe(arrays), path)
    names = [name for name, _ in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in names])


def check_fits(template, found: Mapping[str, list], path: pathlib.Path) -> None:
    """Raise `UserError` if a tree of shapes and dtypes is not what `describe` gave, with the difference by path."""
    expected = {name: [str(np.dtype(leaf.dtype)), list(leaf.shape)] for name, leaf in _named(template)}
    differing = (name for name in {*expected, *found} if expected.get(name) != found.get(name))
    names = sorted(differing, key=lambda name: (not name.startswith("params."), name))  # parameters say most
    if names:
        listing = [f"  {name}: expected {_say(expected.get(name))}, found {_say(found.get(name))}" for name in names]
        more = [f"  and {len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
        raise UserError(
            "\n".join(
                [
                    f"checkpoint {path} does not fit this model; {len(names)} arrays differ:",
                    *listing[:_MAX_LISTED],
                    *more,
                ]
            )
        )


def _say(description: list | None) -> str:
    return f"{description[0]} {tuple(description[1])}" if description else "nothing"


# The names are not those of flax.traverse_util: states of optimizers are no dicts.
def _named(tree) -> Iterator[tuple[str, object]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """Orbax for this process alone: by default the processes of a job wait for each other."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    silence_orbax()
    with _ONE_AT_A_TIME, ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        yield checkpointer


@functools.cache
def silence_orbax() -> None:
    """Keep Orbax and TensorStore from logging and printing, at times later, the errors that they raise as well."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    threads, unraisable = threading.excepthook, sys.unraisablehook

    def thread_hook(args):
        if not type(args.thread).__module__.startswith("orbax"):
            threads(args)

    def unraisable_hook(args):
        if str(args.exc_value) != "Event loop is closed":  # a write ends after another one has failed
            unraisable(args)

    threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook


def _check_readable(path: pathlib.Path) -> None:
    """Raise `UserError` if a file below cannot be opened: then nothing is known of what it holds."""

    def refuse(error):
        raise error

    try:
        for folder, _, files in os.walk(path, onerror=refuse):
            for name in files:
                os.close(os.open(os.path.join(folder, name), os.O_RDONLY))
    except OSError as error:
        raise not_readable(error) from None
