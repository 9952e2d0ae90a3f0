"""A run at work: its parts, and what its hooks and its end have in common."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from rich.console import Console

from resnet_jax.data.corrupt import check_corrupt
from resnet_jax.errors import DivergedError
from resnet_jax.training.accumulator import Accumulator, StepTimer
from resnet_jax.training.logs import MetricsLog
from resnet_jax.training.metrics import scores
from resnet_jax.training.preemption import NOTHING_LOST, Preemption
from resnet_jax.training.processes import from_main, read_by_main
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState
from resnet_jax.training.watchdog import Watchdog
from resnet_jax.workdir import StorageError, resume_command, storage_errors, write_json


@dataclasses.dataclass
class TrainingRun:
    """A run at work.

    Attributes:
      recipe: its durations, cadence and settings; `config.recipe.Recipe`.
      workdir: run directory.
      console: for messages.
      card: model card, plain JSON, saved with each checkpoint; see `checkpoint.card`.
      data: what tells the data from others; see `data.splits.fingerprint`.
      checkpoints: `checkpoint.Checkpoints`, or None in a process that is not the main one.
      log, display, accumulator: see there.
      seconds_before: wall time of earlier sessions.
      step, state: where the session begins.
      evaluated: False if the evaluation that is due at this step is still to come.
      initial_state: makes the state of step 0.
      program: compiled functions.
      probes: `probes.Probes`.
      timer: shared by replicas.
      preemption: says whether the run is asked to stop.
      watchdog: is told to wait after each call and each batch of an evaluation.
      rollbacks: number of times that the run went back to a checkpoint.
      publish: uploads the run directory, if it lies in a bucket.
      num_replicas: number of runs that share the time.
      checks: hooks that come before all others, which are to see no wrong state.
    """

    recipe: object
    workdir: pathlib.Path
    console: Console
    card: dict
    data: dict
    checkpoints: object | None
    log: MetricsLog
    display: object
    accumulator: Accumulator
    seconds_before: float
    step: int
    state: TrainState
    evaluated: bool
    initial_state: Callable[[], TrainState]
    program: Program | None = None
    probes: object | None = None
    timer: StepTimer | None = None
    preemption: Preemption | None = None
    watchdog: Watchdog | None = None
    rollbacks: int = 0
    publish: Callable[[], None] = lambda: None
    num_replicas: int = 1
    checks: tuple = ()

    def save(self, step: int, state: TrainState, metrics: dict | None, *, evaluated: bool = True) -> None:
        """Save a checkpoint in the background. The main process does; the state is replicated.

        Args:
          step: number of updates that the state has had.
          state: on the devices.
          metrics: scores on the validation split, or None.
          evaluated: False if an evaluation is due at this step that was not finished; it follows when a run is resumed.

        Raises:
          DivergedError, StorageError: the save before this one failed.
        """
        self.timer.flush()
        if self.checkpoints is None:
            return
        with self._failed_saves():
            self.checkpoints.wait()
        notes = {"sums": self.accumulator.notes(), "seconds": self.timer.seconds(), "data": self.data}
        notes |= {"evaluated": evaluated, "rollbacks": self.rollbacks}
        notes["skipped_in_a_row"] = self.accumulator.skipped_in_a_row
        source = {**self.card["source"], "step": step, "metrics": metrics}
        card = {**self.card, "source": source}
        self.checkpoints.save(step, checkpoint_items(state), metrics=metrics, notes=notes, card=card)

    def stop(self, step: int, state: TrainState, *, evaluated: bool = True) -> str:
        """Save at the request to stop, and say where and how to continue. Called in the main process alone."""
        if step == 0:
            return NOTHING_LOST
        with storage_errors(self.workdir):
            if not self.checkpoints.is_saved(step):
                self.save(step, state, None, evaluated=evaluated)
            self.checkpoints.wait()
            write_json(self.workdir / "result.json", {"completed": False, **self.progress(step)})
            self.publish()
        return (
            f"stopped at step {step} of {self.recipe.num_steps}, which is saved; to continue:\n"
            f"  {resume_command(self.workdir)}"
        )

    def roll_back(self, error: DivergedError) -> tuple[TrainState, int]:
        """(state of the last evaluation's checkpoint with the number of the broken step, that number).

        So the batch of that step, and the updates since the checkpoint, are left out. Other checkpoints, of a time or
        of a request to stop, are not used: the result must not depend on them.

        Raises:
          DivergedError: the one given, where there is nothing to roll back to, or too many were before.
        """
        if self.recipe.nonfinite != "rollback" or self.rollbacks >= self.recipe.max_nonfinite or error.step is None:
            raise error
        with contextlib.suppress(DivergedError):
            self.wait_until_saved()
        state = self.initial_state()
        like = checkpoint_items(state)

        def restore():
            restored = self.checkpoints.restore_latest(like, milestone=True)
            return restored[:2] if restored else (None, None)

        saved_step, trees = read_by_main(restore, like)
        if saved_step is None:
            raise error
        self.rollbacks += 1
        self.accumulator.clear()
        self.timer.discard()
        self.console.print(
            f"{error}; training continues after step {error.step} with the weights of step {saved_step} (rollback "
            f"{self.rollbacks} of at most {self.recipe.max_nonfinite})",
            highlight=False,
            soft_wrap=True,
        )
        return self.program.parallel.replicate(state_of_items(state, trees, error.step)), error.step

    def interruptible(
        self, step: int, state: TrainState, *, evaluated: bool = True
    ) -> contextlib.AbstractContextManager:
        """While inside, another thread may call `stop` with these arguments, and end the process."""
        if self.num_replicas > 1:  # one must not end the process before all are saved
            return contextlib.nullcontext()
        return self.preemption.interruptible(functools.partial(self.stop, step, state, evaluated=evaluated))

    def watch(self, name: str, items: Iterable, total: int) -> Iterator:
        """Show the progress of an iteration; see `progress.watch`.

        Raises:
          StopWatching: asked to stop.
        """
        for item in self.display.watch(name, items, total):
            self.watchdog.wait()
            if self.preemption.poll():
                raise StopWatching
            yield item

    def check_saving(self) -> None:
        """Notice a save that has failed by now.

        Raises:
          DivergedError, StorageError: it has.
        """
        if self.checkpoints is not None:
            with self._failed_saves():
                self.checkpoints.check_saving()

    def wait_until_saved(self) -> None:
        """Return when the save under way is on the disk; its error is that of all processes."""

        def wait():
            with self._failed_saves():
                self.checkpoints.wait()

        from_main(wait)

    @contextlib.contextmanager
    def _failed_saves(self) -> Iterator[None]:
        """Let a save that failed on the disk end the run, or be said, as the config wants it."""
        try:
            yield
        except StorageError as error:
            if self.recipe.on_save_error == "stop":
                raise
            self.console.print(f"not saved, and training continues: {error}", highlight=False, soft_wrap=True)

    def read_best(self, state: TrainState) -> tuple[int, dict]:
        """(step, weights as in `state`) of the best checkpoint; those that are corrupt are said and left out.

        Raises:
          UserError: none is whole.
        """
        like = {"model": checkpoint_items(state)["model"]}

        def read_best():
            known = len(self.checkpoints.messages)
            step, trees = self.checkpoints.read_best(like)
            return (step, self.checkpoints.messages[known:]), trees

        (step, messages), trees = read_by_main(read_best, like)
        for message in messages:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        return step, trees["model"]

    def evaluate(self, state: TrainState, split: str, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """(scores of the weights and, as `ema_...`, of their moving average; what else a line of metrics holds).

        Raises:
          StopWatching: asked to stop.
          DivergedError: the loss is not finite.
          UserError: too many corrupt images.
        """
        start = time.perf_counter()
        metrics = self._scores(state.variables, split)
        if state.ema is not None:
            metrics |= {f"ema_{name}": value for name, value in self._scores(state.ema, split).items()}
        if not all(map(math.isfinite, metrics.values())):
            raise DivergedError(f"the loss on the {split} split after step {step} is not finite: {metrics}", step)
        passes = 1 if state.ema is None else 2
        rate = passes * len(self.program.loader.splits[split]) / (time.perf_counter() - start)
        return metrics, {"learning_rate": self.recipe.learning_rate(step - 1), "images_per_second": rate}

    def _scores(self, variables, split):
        rows = self.program.evaluate(variables, split, self.watch)
        check_corrupt(rows["corrupt"].sum(), len(rows["loss"]), self.recipe.max_corrupt)
        return scores(rows)

    def progress(self, step: int) -> dict:
        """The part of `result.json` that says what was trained, and how far."""
        recipe = self.recipe
        return {
            "data": recipe.data_name,
            "classes": recipe.info.num_classes,
            "max_examples": recipe.max_examples,
            "step": step,
            "steps": recipe.num_steps,
            "parameters": recipe.num_parameters,
            "multiply_adds": recipe.multiply_adds,
            "depth": recipe.depth,
            "seconds": round(self.timer.seconds() / self.num_replicas, 3),
            "images_per_second": self.timer.images_per_second(),
            **({"rollbacks": self.rollbacks} if self.rollbacks else {}),
        }


class StopWatching(Exception):
    """Asked to stop in an iteration that is left where it is."""


def checkpoint_items(state: TrainState) -> dict:
    """The trees that a checkpoint holds.

    Not the key and the peak learning rate: they follow from the config.
    """
    model = {"params": state.params, "batch_stats": state.batch_stats}
    if state.ema is not None:
        model["ema"] = state.ema
    return {"model": model, "optimizer": {"opt_state": state.opt_state.inner_state, "step": state.step}}


def state_of_items(state: TrainState, trees: dict, step: int) -> TrainState:
    """A state with what `checkpoint_items` gave, at a step."""
    opt_state = state.opt_state._replace(inner_state=trees["optimizer"]["opt_state"], count=np.int32(step))
    return state.replace(**trees["model"], opt_state=opt_state, step=np.int32(step))
