"""The checkpoints of a run: which are whole, which is the best, and which are kept.

Orbax lists any directory with a number for a name as a step: here a step counts only if the JSON that is saved with it
is whole, and says that number.
"""

import contextlib
import pathlib
import shutil
import threading
import warnings
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from resnet_jax.checkpoint.files import (
    META,
    CorruptCheckpoint,
    describe,
    orbax_logs_silenced,
    read_meta,
    read_step,
)
from resnet_jax.errors import UserError
from resnet_jax.workdir import StorageError, check_room, describe_failure, is_of_storage, make_workdir, path_for_orbax

DIRECTORY = "checkpoints"
_CORRUPT = "checkpoints_corrupt"


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
            meta = read_meta(self.path(step))
            if meta.step not in (step, None):
                raise CorruptCheckpoint(f"checkpoint {self.path(step)} holds step {meta.step}, so it is a copy")
            self._metrics[step] = meta.metrics
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

    def _best(self, steps: list[int]) -> int:
        sign = -1 if self._best_metric.endswith("loss") else 1

        def rank(step):
            metrics = self._metrics[step]
            return sign * metrics[self._best_metric], -metrics["loss"], step

        return max((step for step in steps if self._metrics[step] is not None), key=rank, default=steps[-1])


class Checkpoints(SavedSteps):
    """The checkpoints of a run at work. A context manager.

    Args:
      workdir: run directory.
      items: names of the trees that are saved with each step.
      keep: number of the last steps to keep; the best is kept, too.
      best_metric: see `SavedSteps`.

    Attributes:
      messages: which steps were not whole, and were moved to `checkpoints_corrupt/`, so that they can be saved again.

    Raises:
      UserError: there are checkpoints, but none is whole; nothing was moved. Or one may not be read.
    """

    def __init__(
        self, workdir: str | pathlib.Path, items: tuple[str, ...], keep: int = 1, best_metric: str = "accuracy"
    ):
        super().__init__(workdir, best_metric)
        self._items, self._keep = items, keep
        self.messages: list[str] = []
        self._manager = None
        make_workdir(self.workdir / DIRECTORY)
        self._set_aside()
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_quiet_threads())
        self._folder = self._stack.enter_context(path_for_orbax(self.workdir / DIRECTORY))
        self._manager = self._open_manager()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type, *_) -> None:
        with self._stack, contextlib.suppress(*([StorageError] if error_type else [])), self._storage_errors():
            self._manager.close()  # waits for the save under way

    def _open_manager(self) -> ocp.CheckpointManager:
        # Lightweight: it does not read metrics, which may be garbled; ours are in the JSON of a step.
        options = ocp.CheckpointManagerOptions(preservation_policy=self, lightweight_initialize=True)
        return ocp.CheckpointManager(self._folder, options=options, item_names=(*self._items, META))

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """The policy that Orbax asks which steps to keep."""
        steps = sorted(info.step for info in checkpoints)
        kept = {*steps[-self._keep :], self._best(steps)}
        return [info.step in kept for info in checkpoints]

    def save(self, step: int, items: dict, *, metrics: dict | None, notes: dict, card: dict | None = None) -> None:
        """Save in the background.

        Args:
          step: must be above every saved step.
          items: any pytrees of arrays on the devices, by name.
          metrics: scores on the validation split, or None.
          notes: plain JSON that comes back with `restore_latest`.
          card: the model card, plain JSON.

        Raises:
          DivergedError: a number is not finite; nothing is saved.
          StorageError: there is no room; or the save before this one failed.
        """
        arrays, meta = describe(step, items, metrics, notes, card)
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        with self._storage_errors():
            check_room(self.workdir, sum(x.nbytes for tree in arrays.values() for x in tree.values()))
            self._metrics[step] = metrics
            saved = self._manager.save(step, args=ocp.args.Composite(**{META: ocp.args.JsonSave(meta)}, **arguments))
        if not saved:
            raise RuntimeError(f"step {step} was not saved: the latest is {self._manager.latest_step()}")
        self._metrics = {step: self._metrics[step] for step in self._manager.all_steps()}

    def restore_latest(self, names: tuple[str, ...]) -> tuple[int, dict, dict] | None:
        """(step, arrays by item and name, notes) of the newest whole checkpoint, or None before the first is saved.

        Newer ones, which are corrupt, are moved to `checkpoints_corrupt/`, so that their steps can be saved again.

        Raises:
          UserError: there are checkpoints, but none is whole; nothing was moved.
        """
        for step in reversed(self.steps()):
            try:
                items, meta = read_step(self.path(step), names)
            except CorruptCheckpoint as error:
                self._mark_corrupt(step, error)
            else:
                self._set_aside()
                return step, items, meta.notes
        self._set_aside()
        return None

    def read_best(self, names: tuple[str, ...]) -> tuple[int, dict]:
        """(step, arrays by item and name) of the best checkpoint that is whole; corrupt ones are moved as above.

        Raises:
          UserError: there is none.
        """
        while True:
            step = self._best(self.steps() or [self.resolve("best")])  # resolve says that there is none
            try:
                items = read_step(self.path(step), names)[0]
            except CorruptCheckpoint as error:
                self._mark_corrupt(step, error)
            else:
                self._set_aside()
                return step, items

    def wait(self) -> None:
        """Return when the save under way is on the disk, for every process to see.

        Raises:
          StorageError: it failed.
        """
        with self._storage_errors():
            self._manager.wait_until_finished()
        multihost_utils.sync_global_devices("saved")  # one process commits; the others must not read before

    def check_saved(self, step: int) -> None:
        """Return when a step is on the disk and was read again.

        Raises:
          StorageError: it failed.
        """
        self.wait()
        with self._storage_errors():
            read_step(self.path(step), self._items)

    def _mark_corrupt(self, step: int, error: CorruptCheckpoint) -> None:
        self.corrupt[step] = error
        del self._metrics[step]

    def _set_aside(self) -> None:
        """Move the corrupt steps out of the way, if there is another."""
        if self.corrupt and not self.steps():
            self.resolve("latest")  # raises
        multihost_utils.sync_global_devices("seen")  # by all processes, before it is moved by one
        for step, error in self.corrupt.items():
            if jax.process_index() == 0:
                self._move(self.path(step))
            self.messages.append(f"{error}; it was moved to {_CORRUPT}/")
        multihost_utils.sync_global_devices("moved")
        if self.corrupt and self._manager:
            self._manager.close()
            self._manager = self._open_manager()
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
            if not is_of_storage(error):
                raise
            steps = ", ".join(map(str, SavedSteps(self.workdir).steps()))
            left = f"the checkpoints of steps {steps} are whole" if steps else "no checkpoint was saved before"
            raise StorageError(f"{describe_failure(error, self.workdir)}; {left}") from error


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keep Orbax's threads from printing and logging the errors that they hand over."""
    previous = threading.excepthook

    def hook(args):
        if not type(args.thread).__module__.startswith("orbax"):
            previous(args)

    threading.excepthook = hook
    try:
        with orbax_logs_silenced():
            yield
    finally:
        threading.excepthook = previous
