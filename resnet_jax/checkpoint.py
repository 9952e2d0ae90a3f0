"""Checkpoints, by Orbax. This file alone knows how they lie on the disk.

Orbax does not checksum arrays: a flipped bit restores as a wrong weight. So each checkpoint carries SHA-256 digests of
its arrays, and one that does not match is refused. It lists any directory with a number for a name as a step: here a
step counts only if it was committed, which the presence of its `meta` item shows.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from resnet_jax.errors import UserError
from resnet_jax.step import TrainState

_DIRECTORY = "checkpoints"
_DAMAGED = "checkpoints_damaged"
_ITEMS = ("model", "optimizer", "meta")


class Checkpoints:
    """The checkpoints in a workdir: the last `keep` and the best by a metric. A context manager.

    Args:
      workdir: of the run.
      keep: how many of the last to keep.
      best_metric: name of the metric that makes the best: the highest, or the lowest if it is a loss. Among equals the
        lower loss wins.
      read_only: look, but change nothing.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int, best_metric: str, read_only: bool = False):
        self.workdir = pathlib.Path(workdir).absolute()
        if read_only and not (self.workdir / _DIRECTORY).is_dir():
            raise UserError(f"{workdir}: expected a run with checkpoints, found no {_DIRECTORY}/ in it")
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
        with _orbax_warnings_silenced():  # it warns of every folder that it opens read-only
            self._manager = ocp.CheckpointManager(self.workdir / _DIRECTORY, options=options, item_names=_ITEMS)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for the save under way

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return [step for step in sorted(self._manager.all_steps()) if (self._path(step) / "meta").is_dir()]

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

    def save(self, step: int, state: TrainState, *, metrics: dict | None, notes: dict) -> None:
        """Save in the background.

        Args:
          step: must be above every saved step.
          state: on the devices.
          metrics: of the validation split, or None.
          notes: plain JSON that comes back with `restore_latest`.
        """
        items = {name: _to_host(tree) for name, tree in _split_state(state).items()}
        digests = {name: digest(arrays) for name, arrays in items.items()}
        meta = {"digests": {**digests, "notes": _text_digest(notes)}, "notes": notes}
        arguments = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
        with _orbax_warnings_silenced():  # it warns of a save without metrics
            saved = self._manager.save(
                step, metrics=metrics, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arguments)
            )
        if not saved:
            raise RuntimeError(f"step {step} was not saved: the latest is {self._manager.latest_step()}")

    def restore_latest(self, template: TrainState) -> tuple[TrainState, dict, list[str]] | None:
        """The state of the newest checkpoint that is whole, on the host, or None before the first is saved.

        Damaged ones are moved to `checkpoints_damaged/`, so that their steps can be saved again.

        Args:
          template: a state with the shapes and dtypes expected.

        Returns:
          (state, notes, messages about damaged checkpoints).

        Raises:
          UserError: there are checkpoints, but none is whole.
        """
        messages = []
        for step in reversed(self.steps()):
            try:
                items, notes = self._read(step, ("model", "optimizer"))
                return _join_state(template, items, step), notes, messages
            except DamagedCheckpoint as error:
                messages.append(f"{error}; it was moved to {_DAMAGED}/")
                self._remove(step)
        if messages:
            raise UserError("\n".join([*messages, "no whole checkpoint is left; start in another --workdir"]))
        return None

    def read_best(self, shapes: dict) -> tuple[int, dict, list[str]]:
        """(step, variables, messages about damaged checkpoints) of the best checkpoint that is whole.

        Raises:
          UserError: there is none.
        """
        messages = []
        while True:
            step = self.resolve("best")
            try:
                return step, self.read_variables(step, shapes), messages
            except DamagedCheckpoint as error:
                messages.append(f"{error}; it was moved to {_DAMAGED}/")
                self._remove(step)

    def read_variables(self, step: int, shapes: dict) -> dict:
        """Model variables on the host: {"params", "batch_stats"}, and {"ema": ...} if the run kept averages.

        Args:
          step: a number from `resolve`.
          shapes: of {"params", "batch_stats"}.

        Raises:
          UserError: the checkpoint is damaged.
        """
        items, _ = self._read(step, ("model",))
        arrays = items["model"]
        has_ema = any(name.startswith("ema.") for name in arrays)
        return _unflatten({**shapes, "ema": shapes} if has_ema else shapes, arrays, step)

    def wait(self) -> None:
        """Return when the save under way is on the disk, for every process to see; raise if it failed."""
        self._manager.wait_until_finished()
        multihost_utils.sync_global_devices("saved")  # one process commits; the others must not read before

    def _path(self, step: int) -> pathlib.Path:
        return self.workdir / _DIRECTORY / str(step)

    def _read(self, step: int, names: tuple[str, ...]) -> tuple[dict, dict]:
        args = {name: ocp.args.StandardRestore() for name in names}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args))
            items = {name: restored[name] for name in names}
            digests, notes = restored["meta"]["digests"], restored["meta"]["notes"]
        except (MemoryError, PermissionError):  # no damage
            raise
        except Exception as error:  # whatever Orbax and its storage say about a broken file
            raise DamagedCheckpoint(f"checkpoint {self._path(step)} cannot be read ({type(error).__name__})") from error
        found = {name: digest(arrays) for name, arrays in items.items()} | {"notes": _text_digest(notes)}
        for name in found:
            if found[name] != digests[name]:
                raise DamagedCheckpoint(
                    f"checkpoint {self._path(step)} is damaged: its {name} does not match the digest it was saved with"
                )
        return items, notes

    def _remove(self, step: int) -> None:
        _in_the_main_process(self._set_aside, self._path(step))
        self._manager.reload()

    def _set_aside_uncommitted(self) -> None:
        directory = self.workdir / _DIRECTORY
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name.isdigit() and not (path / "meta").is_dir():
                self._set_aside(path)

    def _set_aside(self, path: pathlib.Path) -> None:
        target = self.workdir / _DAMAGED / path.name
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "_again")
        shutil.move(path, target)


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or that does not hold what was saved."""


def _in_the_main_process(function, *arguments) -> None:
    if jax.process_index() == 0:
        function(*arguments)
    multihost_utils.sync_global_devices("checkpoint")  # nothing to wait for if there is one process


@contextlib.contextmanager
def _orbax_warnings_silenced():
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    result = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        result.update(f"{name} {array.dtype} {array.shape}\n".encode())
        result.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.ndim else array.tobytes())
    return result.hexdigest()


def _text_digest(notes: dict) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _split_state(state: TrainState) -> dict[str, dict]:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    if state.ema is not None:
        model["ema"] = state.ema
    return {"model": model, "optimizer": {"opt_state": state.opt_state, "step": state.step}}


def _join_state(template: TrainState, items: dict[str, dict], step: int) -> TrainState:
    trees = {name: _unflatten(tree, items[name], step) for name, tree in _split_state(template).items()}
    model, optimizer = trees["model"], trees["optimizer"]
    return TrainState(
        optimizer["step"], model["params"], model["batch_stats"], optimizer["opt_state"], model.get("ema")
    )


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _to_host(tree) -> dict[str, np.ndarray]:
    # A copy: on CPU the host's view of an array is the device's memory, which the next step asks to be given.
    return {_name(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _unflatten(template, arrays: dict[str, np.ndarray], step: int):
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    expected = {_name(path): (leaf.shape, leaf.dtype) for path, leaf in paths}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if expected != found:
        names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        listing = "\n".join(
            f"  {name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
            for name in names[:10]
        )
        raise UserError(f"checkpoint {step} does not fit this model; {len(names)} arrays differ:\n{listing}")
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in expected])
