"""Duties of the loop, each a small object: `hook(step, state)` after every call, `hook.start(step, state)` before."""

import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console

from resnet_jax.checkpoint.store import Checkpoints
from resnet_jax.data.corrupt import check_corrupt
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.training.accumulator import Accumulator, StepTimer
from resnet_jax.training.logs import MetricsLog
from resnet_jax.training.metrics import scores
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.probes import LayerProbe
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState
from resnet_jax.workdir import resume_command, write_json

ITEMS = ("model", "optimizer")  # of a checkpoint


@dataclasses.dataclass
class TrainingRun:
    """A run at work.

    Attributes:
      recipe: its durations, cadence and settings; `config.recipe.Recipe`.
      workdir: run directory.
      console: for messages.
      card: model card, plain JSON, saved with each checkpoint; see `checkpoint.card`.
      data: what tells the data from others; see `data.splits.fingerprint`.
      checkpoints, log, display, accumulator: see there.
      seconds_before: wall time of earlier sessions.
      step, state: where the session begins.
      program: compiled functions.
      timer: shared by replicas.
      num_replicas: number of runs that share the time.
      checks: hooks that come before all others, which are to see no wrong state.
    """

    recipe: object
    workdir: pathlib.Path
    console: Console
    card: dict
    data: dict
    checkpoints: Checkpoints
    log: MetricsLog
    display: object
    accumulator: Accumulator
    seconds_before: float
    step: int
    state: TrainState
    program: Program | None = None
    timer: StepTimer | None = None
    num_replicas: int = 1
    checks: tuple["Hook", ...] = ()

    def save(self, step: int, state: TrainState, metrics: dict | None) -> None:
        """Save a checkpoint in the background."""
        self.timer.flush()
        notes = {"sums": self.accumulator.notes(), "seconds": self.timer.seconds(), "data": self.data}
        source = {**self.card["source"], "step": step, "metrics": metrics}
        card = {**self.card, "source": source}
        self.checkpoints.save(step, checkpoint_items(state), metrics=metrics, notes=notes, card=card)

    def evaluate(self, state: TrainState, split: str, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """(scores of the weights and, as `ema_...`, of their moving average; what else a line of metrics holds).

        Raises:
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
        rows = self.program.evaluate(variables, split, self.display.watch)
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
    """

    scores: dict | None = None

    def __call__(self, step, state):
        run = self.run
        if not run.recipe.is_eval_step(step):
            return
        found = {"train": self._training_scores(step)}
        for split in ("validation", "test"):
            wanted = split == "validation" or run.recipe.test_curve
            if split in run.program.loader.splits and wanted:
                found[split], others = run.evaluate(state, split, step)
                run.log.write(split, step, run.recipe.epoch(step), {**found[split], **others})
        run.display.evaluation(run.recipe.epoch(step), found)
        self.scores = found.get("validation")

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
    """Saves a checkpoint after each evaluation."""

    def __init__(self, run: TrainingRun, evaluate: Evaluate):
        super().__init__(run)
        self._evaluate = evaluate

    def __call__(self, step, state):
        if self.run.recipe.is_eval_step(step):
            self.run.save(step, state, self._evaluate.scores)
            self.run.timer.restart()


class Preempt(Hook):
    """Saves and ends the run when asked to."""

    def __init__(self, run: TrainingRun, stop_requested: Callable[[int], signal.Signals | None]):
        super().__init__(run)
        self._stop_requested = stop_requested

    def __call__(self, step, state):
        run = self.run
        request = self._stop_requested(step)
        if not request or step >= run.recipe.num_steps:
            return
        if not run.recipe.is_eval_step(step):
            run.save(step, state, None)
        run.checkpoints.check_saved(step)
        if is_main_process():
            write_json(run.workdir / "result.json", {"completed": False, **run.progress(step)})
        raise InterruptedRun(
            f"stopped at step {step} of {run.recipe.num_steps}, which is saved; to continue:\n"
            f"  {resume_command(run.workdir)}",
            by_person=request == signal.SIGINT,
        )


def make_hooks(run: TrainingRun, stop_requested: Callable[[int], signal.Signals | None]) -> list[Hook]:
    """The hooks of a run, in their order."""
    evaluate = Evaluate(run)
    return [
        *run.checks,
        ShowProgress(run),
        LogTraining(run),
        Diagnose(run),
        CheckCorrupt(run),
        evaluate,
        Save(run, evaluate),
        Preempt(run, stop_requested),
    ]
