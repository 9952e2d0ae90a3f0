"""The checkpoints of a run: which are whole, which is the best, and which are kept.

A step is written under another name, which it loses when its manifest, which is written last, is on the disk. A folder
with a number for a name counts as a step only if its manifest is whole, and says that number.
"""

import contextlib
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from resnet_jax.checkpoint.arrays import DELETING, SAVING, read_trees, remove, to_host, write_step
from resnet_jax.checkpoint.errors import CorruptCheckpoint
from resnet_jax.checkpoint.manifest import Manifest, amend_manifest, read_manifest
from resnet_jax.errors import UserError
from resnet_jax.workdir import StorageError, check_room, describe_failure, is_of_storage, make_workdir

DIRECTORY = "checkpoints"
_CORRUPT = "checkpoints_corrupt"
_UNFINISHED = (f"{SAVING}*", f"{DELETING}*", "*.orbax-checkpoint-tmp*")  # left by a run that was killed


class SavedSteps:
    """The checkpoints in a workdir, to be looked at.

    Args:
      workdir: run directory.
      best_metric: name of the metric that makes the best: the highest, or the lowest if it is a loss. Among equals the
        lower loss wins, then the later step.

    Attributes:
      corrupt: errors of the steps that are not whole, by number.

    Raises:
      UserError: a folder that may not be read.
    """

    def __init__(self, workdir: str | pathlib.Path, best_metric: str = "accuracy"):
        self.workdir = pathlib.Path(workdir).absolute()
        self._best_metric = best_metric
        self._metrics: dict[int, dict | None] = {}
        self.corrupt: dict[int, CorruptCheckpoint] = {}
        directory = self.workdir / DIRECTORY
        for name in sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ():
            if name.isdecimal():
                self._look_at(int(name))

    def _look_at(self, step: int) -> None:
        try:
            manifest = read_manifest(self.path(step))
            if manifest.step not in (step, None):
                raise CorruptCheckpoint(f"checkpoint {self.path(step)} holds step {manifest.step}, so it is a copy")
            self._metrics[step] = manifest.metrics
        except CorruptCheckpoint as error:
            self.corrupt[step] = error

    def steps(self) -> list[int]:
        """The whole steps, oldest first."""
        return sorted(self._metrics)

    def path(self, step: int) -> pathlib.Path:
        """The folder of a step."""
        return self.workdir / DIRECTORY / str(step)

    def resolve(self, step: str | int) -> int:
        """The number of the step called "latest", "best" or by its number. Without metrics, the best is the latest.

        Steps that are not whole are left out, and warned of.

        Raises:
          UserError: there is no such step.
        """
        steps = self.steps()
        if not steps and self.corrupt:
            raise UserError("\n".join([*map(str, self.corrupt.values()), "no whole checkpoint is left"]))
        if not steps:
            raise UserError(f"{self.workdir}: no checkpoint yet; the first is saved after the first evaluation")
        if step in ("latest", "best"):
            for error in self.corrupt.values():
                warnings.warn(f"{error}; it is left out", stacklevel=1)
            return steps[-1] if step == "latest" else self._best(steps)
        if str(step).isdecimal() and int(step) in self.corrupt:
            raise self.corrupt[int(step)]
        if str(step).isdecimal() and int(step) in steps:
            return int(step)
        raise UserError(f"step: expected best, latest or one of {steps}, found {step!r}")

    def best(self) -> int:
        """The best of the whole steps."""
        return self._best(self.steps())

    def _best(self, steps: list[int]) -> int:
        sign = -1 if self._best_metric.endswith("loss") else 1

        def rank(step):
            metrics = self._metrics[step]
            return sign * metrics[self._best_metric], -metrics["loss"], step

        return max((step for step in steps if self._metrics[step] is not None), key=rank, default=steps[-1])


class Checkpoints(SavedSteps):
    """The checkpoints of a run at work, for the one process that writes them. A context manager.

    Args:
      workdir: run directory.
      keep: number of the last steps to keep; the best and the last milestone are kept, too.
      best_metric: see `SavedSteps`.
      is_milestone: says of a step whether every run of this config saves it, whenever it is stopped.
      after_save: called when a step is on the disk, by the thread of writes; only then it is saved.

    Attributes:
      messages: which steps were not whole, and were moved to `checkpoints_corrupt/`, so that they can be saved again.

    Raises:
      UserError: there are checkpoints, but none is whole; nothing was moved. Or one may not be read.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int = 1,
        best_metric: str = "accuracy",
        is_milestone: Callable[[int], bool] = lambda step: True,
        after_save: Callable[[], None] = lambda: None,
    ):
        super().__init__(workdir, best_metric)
        self._keep, self._is_milestone, self._after_save = keep, is_milestone, after_save
        self.messages: list[str] = []
        self._directory = self.workdir / DIRECTORY
        make_workdir(self._directory)
        self._set_aside()
        with self._storage_errors():
            for path in (path for pattern in _UNFINISHED for path in self._directory.glob(pattern)):
                shutil.rmtree(path)
        self._saving: tuple[int, Future] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type, *_) -> None:
        with self._writer, contextlib.suppress(*([UserError] if error_type else [])):
            self.wait()

    def save(self, step: int, items: dict, *, metrics: dict | None, notes: dict, card: dict | None = None) -> None:
        """Save in the background; the caller waits for a copy of the arrays to the host.

        Args:
          step: a later one than that of the latest checkpoint; or that one, with the same arrays, once they are scored.
          items: any pytrees of arrays on the devices, by name.
          metrics: scores on the validation split, or None.
          notes: plain JSON that comes back with `restore_latest`.
          card: the model card, plain JSON.

        Raises:
          DivergedError, StorageError: the save before this one failed.
        """
        self.wait()
        if self._metrics and step < max(self._metrics):
            raise RuntimeError(f"step {step} was not saved: the latest is {max(self._metrics)}")
        if step in self._metrics:
            saving = self._writer.submit(self._amend, self.path(step), metrics, notes, card)
        else:
            saving = self._writer.submit(self._write, to_host(items), Manifest(step, metrics, notes, card))
        self._saving = step, saving

    def is_saved(self, step: int) -> bool:
        """True for a step that is on the disk, or being written."""
        return step in self._metrics or (self._saving is not None and self._saving[0] == step)

    def check_saving(self) -> None:
        """Raise the error of a save that has failed by now.

        Raises:
          DivergedError: a number is not finite; nothing was saved.
          StorageError: the disk is full, or cannot be written.
        """
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Return when the save under way is on the disk; it raises the same as `check_saving`."""
        if self._saving is not None:
            (step, saving), self._saving = self._saving, None
            with self._storage_errors():
                try:
                    self._metrics[step] = saving.result()
                except Exception:
                    if self.path(step).exists():  # its upload failed
                        self._look_at(step)
                    raise
                self._metrics = {step: self._metrics[step] for step in self._remove_old()}

    def restore_latest(self, like: Mapping[str, object], *, milestone: bool = False) -> tuple[int, dict, dict] | None:
        """(step, trees by item, notes) of the newest whole checkpoint, or None before the first is saved.

        Newer ones, which are corrupt, are moved to `checkpoints_corrupt/`, so that their steps can be saved again.

        Args:
          like: trees of the expected shapes and dtypes, by item.
          milestone: restore the newest milestone instead.

        Raises:
          UserError: there are checkpoints, but none is whole, or the newest does not fit; nothing was moved.
        """
        for step in (step for step in reversed(self.steps()) if self._is_milestone(step) or not milestone):
            try:
                trees, manifest = read_trees(self.path(step), like)
            except CorruptCheckpoint as error:
                self._mark_corrupt(step, error)
            else:
                self._set_aside()
                return step, trees, manifest.notes
        self._set_aside()
        return None

    def read_best(self, like: Mapping[str, object]) -> tuple[int, dict]:
        """(step, trees by item) of the best checkpoint that is whole; corrupt ones are moved as above.

        Raises:
          UserError: there is none.
        """
        self.wait()
        while True:
            step = self._best(self.steps() or [self.resolve("best")])  # resolve says that there is none
            try:
                trees, _ = read_trees(self.path(step), like)
            except CorruptCheckpoint as error:
                self._mark_corrupt(step, error)
            else:
                self._set_aside()
                return step, trees

    def _write(self, arrays: dict[str, dict[str, np.ndarray]], manifest: Manifest) -> dict | None:
        """Write a step, in the thread of writes, and return its metrics."""
        check_room(self.workdir, sum(array.nbytes for tree in arrays.values() for array in tree.values()))
        write_step(self.path(manifest.step), arrays, manifest)
        self._after_save()
        return manifest.metrics

    def _amend(self, path: pathlib.Path, metrics: dict | None, notes: dict, card: dict | None) -> dict | None:
        """Replace the manifest of a step, in the thread of writes: its folder cannot be replaced at once."""
        amend_manifest(path, metrics, notes, card)
        self._after_save()
        return metrics

    def _remove_old(self) -> set[int]:
        """Remove the steps that are not to be kept, and return the others."""
        steps = self.steps()
        kept = {*steps[-self._keep :], self._best(steps), *list(filter(self._is_milestone, steps))[-1:]}
        for step in set(steps) - kept:
            self._writer.submit(remove, self.path(step))
        return kept

    def _mark_corrupt(self, step: int, error: CorruptCheckpoint) -> None:
        self.corrupt[step] = error
        del self._metrics[step]

    def _set_aside(self) -> None:
        """Move the corrupt steps out of the way, if there is another."""
        if self.corrupt and not self.steps():
            self.resolve("latest")  # raises
        for step, error in self.corrupt.items():
            self._move(self.path(step))
            self.messages.append(f"{error}; it was moved to {_CORRUPT}/")
        self.corrupt = {}

    def _move(self, path: pathlib.Path) -> None:
        target = self.workdir / _CORRUPT / path.name
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "_again")
        shutil.move(path, target)

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Say what failed on the disk, and what is left, instead of a traceback."""
        try:
            yield
        except Exception as error:  # whatever Orbax and its storage say
            if isinstance(error, UserError) or not is_of_storage(error):
                raise
            steps = ", ".join(map(str, SavedSteps(self.workdir).steps()))
            left = f"whole checkpoints: {steps}" if steps else "no checkpoint was saved before"
            raise StorageError(f"{describe_failure(error, self.workdir)}; {left}") from error
