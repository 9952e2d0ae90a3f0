"""Duties of the loop, each a small object: `hook(step, state)` after every call, `hook.start(step, state)` before."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from rich.console import Console

from resnet_jax.data.corrupt import check_corrupt
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.training.accumulator import Accumulator, StepTimer
from resnet_jax.training.logs import MetricsLog
from resnet_jax.training.metrics import scores
from resnet_jax.training.preemption import NOTHING_LOST, Preemption
from resnet_jax.training.probes import LayerProbe
from resnet_jax.training.processes import broadcast, from_main
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState
from resnet_jax.workdir import resume_command, write_json


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
      program: compiled functions.
      timer: shared by replicas.
      preemption: says whether the run is asked to stop.
      num_replicas: number of runs that share the time.
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
    program: Program | None = None
    timer: StepTimer | None = None
    preemption: Preemption | None = None
    num_replicas: int = 1

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
        notes = {"sums": self.accumulator.notes(), "seconds": self.timer.seconds(), "data": self.data}
        notes["evaluated"] = evaluated
        source = {**self.card["source"], "step": step, "metrics": metrics}
        card = {**self.card, "source": source}
        self.checkpoints.save(step, checkpoint_items(state), metrics=metrics, notes=notes, card=card)

    def stop(self, step: int, state: TrainState, *, evaluated: bool = True) -> str:
        """Save at the request to stop, and say where and how to continue. Called in the main process alone."""
        if step == 0:
            return NOTHING_LOST
        if not self.checkpoints.is_saved(step):
            self.save(step, state, None, evaluated=evaluated)
        self.checkpoints.wait()
        write_json(self.workdir / "result.json", {"completed": False, **self.progress(step)})
        return (
            f"stopped at step {step} of {self.recipe.num_steps}, which is saved; to continue:\n"
            f"  {resume_command(self.workdir)}"
        )

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
            if self.preemption.poll():
                raise StopWatching
            yield item

    def wait_until_saved(self) -> None:
        """Return when the save under way is on the disk; its error is that of all processes."""
        from_main(lambda: self.checkpoints.wait())

    def read_best(self, state: TrainState) -> tuple[int, dict]:
        """(step, weights as in `state`) of the best checkpoint; those that are corrupt are said and left out.

        Raises:
          UserError: none is whole.
        """
        like, read = {"model": checkpoint_items(state)["model"]}, {}

        def read_best():
            known = len(self.checkpoints.messages)
            read["step"], read["trees"] = self.checkpoints.read_best(like)
            return read["step"], self.checkpoints.messages[known:]

        step, messages = from_main(read_best)
        for message in messages:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        return step, broadcast(read.get("trees"), like)["model"]

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
            raise DivergedError(f"the loss on the {split} split after step {step} is not finite: {metrics}")
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


class Hook:
    """A duty of the loop."""

    def __init__(self, run: TrainingRun):
        self.run = run

    def start(self, step: int, state: TrainState) -> None:
        """Before the first call; `step` is not 0 where a run is resumed."""

    def __call__(self, step: int, state: TrainState) -> None:
        """After each call, which ended with `step`."""

    def stop(self, step: int, state: TrainState) -> str:
        """Save what is to be saved at a request to stop, and say so; in another thread than the loop's."""
        return ""


class ShowProgress(Hook):
    """Moves the progress bar."""

    def __call__(self, step, state):
        self.run.display.advance(step)


class LogTraining(Hook):
    """Writes and shows the training metrics since the last line."""

    def __call__(self, step, state):
        run = self.run
        if run.recipe.is_log_step(step):
            rates = run.timer.lap(step)
            values = {**run.accumulator.close(), **rates, "learning_rate": run.recipe.learning_rate(step - 1)}
            run.log.write("train", step, run.recipe.epoch(step), values)
            run.display.train(step, run.recipe.epoch(step), values)


class Diagnose(Hook):
    """Looks inside the net."""

    def __init__(self, run: TrainingRun):
        super().__init__(run)
        self._probe = LayerProbe(run.program, run.recipe)

    def start(self, step, state):
        if step == 0:
            with self.run.interruptible(step, state):
                self(step, state)

    def __call__(self, step, state):
        run = self.run
        if run.recipe.is_diagnosis_step(step):
            run.log.write("layers", step, run.recipe.epoch(step), self._probe.measure(state, step))
            run.timer.restart()


class CheckCorrupt(Hook):
    """Stops where too many training images are corrupt. The number is that of all hosts, so that all stop together."""

    def __call__(self, step, state):
        run = self.run
        images = run.recipe.images_of_epochs(run.step, step)
        check_corrupt(run.accumulator.corrupt, images, run.recipe.max_corrupt)


class Evaluate(Hook):
    """Scores the validation split, if there is one; and the test split for its curve alone.

    Attributes:
      scores: those on the validation split at the last evaluation, or None.
      interrupted: asked to stop before the evaluation that is due was finished.
    """

    scores: dict | None = None
    interrupted = False

    def __call__(self, step, state):
        run = self.run
        if not run.recipe.is_eval_step(step):
            return
        try:
            found = self._evaluate(step, state)
        except StopWatching:
            self.interrupted = True
            return
        for split, (values, others) in found.items():
            run.log.write(split, step, run.recipe.epoch(step), {**values, **others})
        shown = {split: values for split, (values, _) in found.items()}
        run.display.evaluation(run.recipe.epoch(step), {"train": self._training_scores(step), **shown})
        self.scores = shown.get("validation")

    def _evaluate(self, step, state) -> dict[str, tuple[dict, dict]]:
        run = self.run
        wanted = ("validation", "test") if run.recipe.test_curve else ("validation",)
        with run.interruptible(step, state, evaluated=False):
            return {split: run.evaluate(state, split, step) for split in wanted if split in run.program.loader.splits}

    def _training_scores(self, step) -> dict[str, float]:
        """Scores of the training batches since the evaluation before."""
        lines, is_eval_step = self.run.log.train_scores, self.run.recipe.is_eval_step
        before = max((line for line in lines if line < step and is_eval_step(line)), default=0)
        steps = [line for line in lines if line > before]
        weights = np.diff([before, *steps])
        return {
            name: float(np.average([lines[line][name] for line in steps], weights=weights))
            for name in ("loss", "accuracy")
            if steps
        }


class Save(Hook):
    """Saves a checkpoint after each evaluation, and after so many minutes without one."""

    def __init__(self, run: TrainingRun, evaluate: Evaluate):
        super().__init__(run)
        self._evaluate = evaluate
        self._last_save = time.monotonic()

    def start(self, step, state):
        if not self.run.evaluated:
            self._evaluate(step, state)
            self._save(step, state)

    def __call__(self, step, state):
        run = self.run
        if run.checkpoints is not None:
            run.checkpoints.check_saving()
        if run.recipe.is_eval_step(step):
            self._save(step, state)
        elif time.monotonic() - self._last_save >= run.recipe.seconds_between_saves:
            self._save(step, state, of_evaluation=False)

    def _save(self, step, state, of_evaluation=True):
        if not self._evaluate.interrupted:
            self.run.save(step, state, self._evaluate.scores if of_evaluation else None)
            self.run.timer.restart()
            self._last_save = time.monotonic()


class Preempt(Hook):
    """Saves and ends the run when asked to."""

    def __init__(self, run: TrainingRun, evaluate: Evaluate, stop_requested: Callable[[int], signal.Signals | None]):
        super().__init__(run)
        self._evaluate, self._stop_requested = evaluate, stop_requested

    def start(self, step, state):
        if self._evaluate.interrupted:
            self(step, state)

    def __call__(self, step, state):
        if self._stop_requested(step):
            evaluated = not self._evaluate.interrupted
            raise InterruptedRun(from_main(functools.partial(self.run.stop, step, state, evaluated=evaluated)))

    def stop(self, step, state):
        return self.run.stop(step, state)


def make_hooks(run: TrainingRun, stop_requested: Callable[[int], signal.Signals | None]) -> list[Hook]:
    """The hooks of a run, in their order."""
    evaluate = Evaluate(run)
    return [
        ShowProgress(run),
        LogTraining(run),
        Diagnose(run),
        CheckCorrupt(run),
        evaluate,
        Save(run, evaluate),
        Preempt(run, evaluate, stop_requested),
    ]
