"""The checkpoints of a run: which are kept, which is the best, and which are whole.

Orbax lists any directory with a number for a name as a step: here a step counts only if it was committed, which the
presence of its `meta` item shows.
"""

import pathlib
import shutil

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from resnet_jax.checkpoint.files import (
    META,
    CorruptCheckpoint,
    describe,
    is_step,
    orbax_warnings_silenced,
    read_step,
)
from resnet_jax.errors import UserError

DIRECTORY = "checkpoints"
_CORRUPT = "checkpoints_corrupt"


class Checkpoints:
    """The checkpoints in a workdir: the last `keep` and the best by a metric. A context manager.

    Args:
      workdir: run directory.
      items: names of the trees that are saved with each step.
      keep: number of the last ones to keep.
      best_metric: name of the metric that makes the best: the highest, or the lowest if it is a loss. Among equals the
        lower loss wins.
      read_only: look, but change nothing.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        items: tuple[str, ...] = (),
        keep: int = 1,
        best_metric: str = "accuracy",
        read_only: bool = False,
    ):
        self.workdir = pathlib.Path(workdir).absolute()
        if read_only and not (self.workdir / DIRECTORY).is_dir():
            raise UserError(f"{workdir}: expected a run with checkpoints, found no {DIRECTORY}/ in it")
        sign = -1 if best_metric.endswith("loss") else 1

        def rank(metrics):
            return sign * metrics[best_metric], -metrics["loss"]

        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0, best_fn=rank)
        else:
            keepers = [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False),
            ]
            policy = checkpoint_managers.AnyPreservationPolicy(keepers)
            options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=rank)
            _in_the_main_process(self._set_aside_uncommitted)
        with orbax_warnings_silenced():  # it warns of every folder that it opens read-only
            self._manager = ocp.CheckpointManager(
                self.workdir / DIRECTORY, options=options, item_names=(*items, META) if items else None
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for the save under way

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return [step for step in sorted(self._manager.all_steps()) if is_step(self.path(step))]

    def path(self, step: int) -> pathlib.Path:
        """The folder of a step."""
        return self.workdir / DIRECTORY / str(step)

    def resolve(self, step: str | int) -> int:
        """The number of the step called "latest", "best" or by its number. Without metrics, the best is the latest.

        Raises:
          UserError: there is no such step.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.workdir}: no checkpoint yet; the first is saved after the first evaluation")
        if step == "latest":
            return steps[-1]
        if step == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if str(step).isdecimal() and int(step) in steps:
            return int(step)
        raise UserError(f"step: expected best, latest or one of {steps}, found {step!r}")

    def save(self, step: int, items: dict, *, metrics: dict | None, notes: dict, card: dict | None = None) -> None:
        """Save in the background.

        Args:
          step: must be above every saved step.
          items: any pytrees of arrays on the devices, by name.
          metrics: scores on the validation split, or None.
          notes: plain JSON that comes back with `restore_latest`.
          card: the model card, plain JSON.
        """
        arrays, meta = describe(items, notes, card)
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        with orbax_warnings_silenced():  # it warns of a save without metrics
            saved = self._manager.save(
                step, metrics=metrics, args=ocp.args.Composite(**{META: ocp.args.JsonSave(meta)}, **arguments)
            )
        if not saved:
            raise RuntimeError(f"step {step} was not saved: the latest is {self._manager.latest_step()}")

    def restore_latest(self, names: tuple[str, ...]) -> tuple[int, dict, dict, list[str]] | None:
        """The newest checkpoint that is whole, on the host, or None before the first is saved.

        Corrupt ones are moved to `checkpoints_corrupt/`, so that their steps can be saved again.

        Returns:
          (step, arrays by item and name, notes, messages about corrupt checkpoints).

        Raises:
          UserError: there are checkpoints, but none is whole.
        """
        messages = []
        for step in reversed(self.steps()):
            try:
                items, notes, _ = read_step(self.path(step), names)
                return step, items, notes, messages
            except CorruptCheckpoint as error:
                messages.append(self._remove(step, error))
        if messages:
            raise UserError("\n".join([*messages, "no whole checkpoint is left; start in another --workdir"]))
        return None

    def read_best(self, names: tuple[str, ...]) -> tuple[int, dict, list[str]]:
        """(step, arrays by item and name, messages about corrupt checkpoints) of the best that is whole.

        Raises:
          UserError: there is none.
        """
        messages = []
        while True:
            step = self.resolve("best")
            try:
                return step, read_step(self.path(step), names)[0], messages
            except CorruptCheckpoint as error:
                messages.append(self._remove(step, error))

    def wait(self) -> None:
        """Return when the save under way is on the disk, for every process to see; raise if it failed."""
        self._manager.wait_until_finished()
        multihost_utils.sync_global_devices("saved")  # one process commits; the others must not read before

    def _remove(self, step: int, error: CorruptCheckpoint) -> str:
        _in_the_main_process(self._set_aside, self.path(step))
        self._manager.reload()
        return f"{error}; it was moved to {_CORRUPT}/"

    def _set_aside_uncommitted(self) -> None:
        directory = self.workdir / DIRECTORY
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name.isdigit() and not is_step(path):
                self._set_aside(path)

    def _set_aside(self, path: pathlib.Path) -> None:
        target = self.workdir / _CORRUPT / path.name
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "_again")
        shutil.move(path, target)


def _in_the_main_process(function, *arguments) -> None:
    if jax.process_index() == 0:
        function(*arguments)
    multihost_utils.sync_global_devices("checkpoint")  # nothing to wait for if there is one process
