"""Duties of the loop, each a small object: `hook(step, state)` after every call, `hook.start(step, state)` before."""

import functools
import signal
import time
from collections.abc import Callable

import numpy as np

from resnet_jax.data.corrupt import check_corrupt
from resnet_jax.errors import InterruptedRun
from resnet_jax.training.processes import from_main
from resnet_jax.training.run import StopWatching, TrainingRun
from resnet_jax.training.step import TrainState


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
    """Moves the progress bar, and tells the watchdog that something moves."""

    def start(self, step, state):
        self.run.watchdog.wait()

    def __call__(self, step, state):
        self.run.watchdog.wait()
        self.run.display.advance(step)


class LogTraining(Hook):
    """Writes and shows the training metrics since the last line."""

    def __call__(self, step, state):
        run = self.run
        if run.recipe.is_log_step(step):
            rates = run.timer.lap(step)
            means = run.accumulator.close()
            if means is None:  # no step was finite
                return
            values = {**means, **rates, "learning_rate": run.recipe.learning_rate(step - 1)}
            run.log.write("train", step, run.recipe.epoch(step), values)
            run.display.train(step, run.recipe.epoch(step), values)


class Diagnose(Hook):
    """Looks inside the net."""

    def start(self, step, state):
        if step == 0:
            with self.run.interruptible(step, state):
                self(step, state)

    def __call__(self, step, state):
        run = self.run
        if run.recipe.is_diagnosis_step(step):
            run.log.write("layers", step, run.recipe.epoch(step), run.probes.layers(state, step))
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
        run.check_saving()
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
        *run.checks,
        ShowProgress(run),
        LogTraining(run),
        Diagnose(run),
        CheckCorrupt(run),
        evaluate,
        Save(run, evaluate),
        Preempt(run, evaluate, stop_requested),
    ]
