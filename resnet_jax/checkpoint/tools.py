"""List, verify, compare, average and slim checkpoints."""

import datetime
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoint.arrays import describe, read_step, write_step
from resnet_jax.checkpoint.card import read_card
from resnet_jax.checkpoint.errors import CorruptCheckpoint
from resnet_jax.checkpoint.manifest import Manifest, is_step, read_manifest
from resnet_jax.checkpoint.store import DIRECTORY, SavedSteps
from resnet_jax.errors import UserError
from resnet_jax.workdir import check_room

ITEMS = ("model", "optimizer")


class Listed(NamedTuple):
    """A step of a run.

    Attributes:
      path: folder.
      manifest: manifest, or None if the step is corrupt.
      size: bytes on the disk.
      saved: time of the last change.
      problem: why it is no checkpoint, or None.
    """

    path: pathlib.Path
    manifest: Manifest | None
    size: int
    saved: datetime.datetime
    problem: str | None


def step_folders(path: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the steps of a run, oldest first; or that of one step.

    Raises:
      UserError: it is neither.
    """
    if is_step(path):
        return [path]
    directory = path if path.name == DIRECTORY else path / DIRECTORY
    if not directory.is_dir():
        raise UserError(f"{path}: expected a run, or the folder of one step of it, found neither")
    found = [folder for folder in directory.iterdir() if folder.name.isdecimal()]
    if not found:
        raise UserError(f"{path}: no checkpoint yet; the first is saved after the first evaluation")
    return sorted(found, key=lambda folder: int(folder.name))


def list_steps(path: pathlib.Path) -> list[Listed]:
    """The steps of a run, by their manifests alone."""
    return [_look_at(folder) for folder in step_folders(path)]


def _look_at(folder: pathlib.Path) -> Listed:
    files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    size = sum(file.st_size for file in files)
    saved = datetime.datetime.fromtimestamp(max((file.st_mtime for file in files), default=folder.stat().st_mtime))
    try:
        manifest = read_manifest(folder)
        if folder.name.isdecimal() and manifest.step not in (int(folder.name), None):
            raise CorruptCheckpoint(f"checkpoint {folder} holds step {manifest.step}, so it is a copy")
    except CorruptCheckpoint as error:
        return Listed(folder, None, size, saved, str(error))
    return Listed(folder, manifest, size, saved, None)


def verify(path: pathlib.Path) -> Iterator[tuple[pathlib.Path, str | None]]:
    """(folder, what is wrong or None) of each step, all its files read."""
    for folder in step_folders(path):
        try:
            read_step(folder, items_of(folder))
            yield folder, _look_at(folder).problem
        except CorruptCheckpoint as error:
            yield folder, str(error)


def items_of(folder: pathlib.Path) -> tuple[str, ...]:
    """Names of the items that a step holds."""
    manifest = read_manifest(folder)
    return tuple(manifest.arrays or [name for name in ITEMS if name in manifest.digests])


class Difference(NamedTuple):
    """An array that differs between two checkpoints.

    Attributes:
      name: item and path.
      left, right: dtype and shape in words; "nothing" where one lacks it.
      largest: the largest difference of two numbers, or None where shapes or dtypes differ.
    """

    name: str
    left: str
    right: str
    largest: float | None


def differences(left: pathlib.Path, right: pathlib.Path) -> tuple[list[Difference], int]:
    """(arrays that differ, number of those that are equal) of two steps.

    Raises:
      CorruptCheckpoint: one of them is.
    """
    sides = [_all_arrays(one_step(path)) for path in (left, right)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    found = [_difference(name, *(side.get(name) for side in sides)) for name in names]
    different = [difference for difference in found if difference is not None]
    return different, len(names) - len(different)


def _difference(name, left, right) -> Difference | None:
    words = [_words(array) for array in (left, right)]
    if words[0] != words[1]:
        return Difference(name, *words, None)
    if np.array_equal(left, right):
        return None
    return Difference(name, *words, float(np.max(np.abs(left.astype(np.float64) - right.astype(np.float64)))))


def _words(array: np.ndarray | None) -> str:
    return "nothing" if array is None else f"{array.dtype} {array.shape}"


def _all_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    items = read_step(folder, items_of(folder))[0]
    return {f"{item}.{name}": array for item, arrays in items.items() for name, array in arrays.items()}


def one_step(path: pathlib.Path) -> pathlib.Path:
    """The folder of a step: its own, or that of a run's best step."""
    if is_step(path):
        return path
    step_folders(path)  # refuses what is no run
    steps = saved_steps(path)
    return steps.path(steps.resolve("best"))


def saved_steps(path: pathlib.Path) -> SavedSteps:
    """The steps of a run, ranked as its card says."""
    workdir = path.parent if path.name == DIRECTORY else path
    card = read_card(workdir)
    return SavedSteps(workdir, card.best_metric if card else "accuracy")


def slim(source: pathlib.Path, out: pathlib.Path) -> None:
    """Write a copy of a step without what only training needs: the state of the optimizer."""
    items, manifest = read_step(source, ("model",))
    _write(out, items, manifest)


def average(sources: Sequence[pathlib.Path], out: pathlib.Path) -> list[int | None]:
    """Write the mean of the weights of several steps as a step, and return their numbers.

    Batch statistics are averaged as well; those of the averaged weights are others. `examples/average_weights.py`
    measures them.

    Raises:
      UserError: fewer than two steps, or steps of different nets.
    """
    if len(sources) < 2:
        raise UserError(f"average: expected two steps or more, found {len(sources)}; save more: checkpoint.keep")
    total, first, steps = {}, None, []
    for source in sources:  # one after another: they need not fit into memory together
        items, manifest = read_step(source, ("model",))
        arrays, described = items["model"], describe(items["model"])
        first = first or (source, manifest, described)
        if described != first[2]:
            raise UserError(f"average: expected steps of one net, found other arrays in {source} than in {first[0]}")
        steps.append(manifest.step)
        total = {name: total.get(name, 0) + array.astype(np.float64) for name, array in arrays.items()}
    mean = {name: (value / len(sources)).astype(jnp.dtype(first[2][name][0])) for name, value in total.items()}
    source = {**(first[1].card or {}).get("source", {}), "metrics": None, "average_of_steps": steps}
    card = {**first[1].card, "source": source} if first[1].card else None
    last = max((step for step in steps if step is not None), default=None)
    _write(out, {"model": mean}, Manifest(last, None, {}, card))
    return steps


def _write(out, items, manifest) -> None:
    check_room(out.parent, sum(array.nbytes for arrays in items.values() for array in arrays.values()))
    write_step(out, items, manifest)
