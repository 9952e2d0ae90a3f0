"""A run at work: what is logged, evaluated and saved, and when."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress

from resnet_jax.build import Run
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.logs import MetricsLog, TrainingDisplay, read_metrics
from resnet_jax.metrics import means
from resnet_jax.models.profile import depth, totals
from resnet_jax.parallel import is_main_process
from resnet_jax.probes import LayerProbe, probe_batch_statistics, probe_lesions
from resnet_jax.screens import start_screen
from resnet_jax.step import TrainState
from resnet_jax.window import TrainingWindow
from resnet_jax.workdir import write_json


@contextlib.contextmanager
def open_session(
    run: Run, workdir: pathlib.Path, console: Console, bars: Progress | None = None
) -> Iterator["Session"]:
    """A `Session` at the start of a run, or where its last checkpoint left it."""
    config = run.config
    with Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best_metric) as checkpoints:
        console.print(start_screen(run, workdir))
        state, step, window = _start_or_resume(run, checkpoints, console)
        with (
            MetricsLog(workdir, step, enabled=is_main_process(), test_curve=config.eval.test_curve) as log,
            TrainingDisplay(console, step, run.num_steps, bars) as display,
            contextlib.closing(run),
        ):
            yield Session(run, workdir, console, checkpoints, log, display, window, LayerProbe(run), step, state)


@dataclasses.dataclass
class Session:
    """A run at work: its parts, and where its traces go.

    Attributes:
      step, state: where it began.
      runs_at_once: how many share the time that it takes.
    """

    run: Run
    workdir: pathlib.Path
    console: Console
    checkpoints: Checkpoints
    log: MetricsLog
    display: TrainingDisplay
    window: TrainingWindow
    probe: LayerProbe
    step: int
    state: TrainState
    runs_at_once: int = 1

    def after_step(self, step: int, state: TrainState, stopping: bool) -> None:
        """Log, evaluate and save whatever is due.

        Raises:
          InterruptedRun: `stopping`, before the end; it is saved.
          UserError: too many damaged images.
        """
        run, window = self.run, self.window
        if run.is_log_step(step):
            values = {**window.close(), "learning_rate": run.learning_rate(step - 1)}
            self.log.write("train", step, run.epoch(step), values)
            self.display.train(step, run.epoch(step), values)
            self.probe_layers(step, state)
            window.restart_clock()
        run.check_training_images(window.damaged, self.step, step)
        if run.is_eval_step(step):
            self.checkpoints.save(step, state, metrics=self._evaluate(step, state), notes=window.notes())
            window.restart_clock()
        elif stopping:
            self.checkpoints.save(step, state, metrics=None, notes=window.notes())
        if stopping and step < run.num_steps:
            if is_main_process():
                write_json(self.workdir / "result.json", {"completed": False, **self._progress(step)})
            raise InterruptedRun(
                f"stopped at step {step} of {run.num_steps}, which is saved; to go on, give the same command with\n"
                f"  --workdir={self.workdir}"
            )

    def probe_layers(self, step: int, state: TrainState) -> None:
        """Look inside the net, if it is time to."""
        started_already = step and step == self.step
        if self.probe.is_due(step) and not started_already:
            self.log.write("layers", step, self.run.epoch(step), self.probe.measure(state, step))

    def explained(self, error: DivergedError) -> DivergedError:
        """The error with what is left of the run, and what to try."""
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        good = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
        return DivergedError(f"{error}; {good}, in {self.workdir}. Try a lower optim.lr or a warm-up")

    def finish(self, state: TrainState) -> dict:
        """Score the last and the best weights, and write the result."""
        run, config = self.run, self.run.config
        self.checkpoints.wait()
        result = {"completed": True, **self._progress(run.num_steps), **self._final_scores(state)}
        if config.measure.lesions:
            result["lesions"] = probe_lesions(run, state.variables, "test")
        if config.measure.precise_statistics and state.batch_stats:
            result["batch_statistics"] = probe_batch_statistics(run, state, "test")
        if not is_main_process():
            return result
        from resnet_jax import plots  # on use: it brings matplotlib, which the start of a run should not wait for

        title = f"{config.model.name} on {config.data.name}"
        plots.plot_run(read_metrics(self.workdir / "metrics.jsonl"), self.workdir / "curves.png", title)
        write_json(self.workdir / "result.json", result)  # last: a run that has it is complete
        return result

    def _progress(self, step: int) -> dict:
        _, multiply_adds, _ = totals(self.run.layers)
        return {
            "data": self.run.config.data.name,
            "step": step,
            "steps": self.run.num_steps,
            "parameters": self.run.num_parameters,
            "multiply_adds": multiply_adds,
            "depth": depth(self.run.layers),
            "seconds": round(self.window.seconds() / self.runs_at_once, 3),
            "images_per_second": self.window.images_per_second(),
        }

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float] | None:
        """Scores on the validation split, if there is one; the test split is scored for its curve alone."""
        scores = {}
        for split in ("validation", "test"):
            if split in self.run.splits and (split == "validation" or self.run.config.eval.test_curve):
                scores[split], speed = _evaluate(self.run, state, split, step)
                self.log.write(split, step, self.run.epoch(step), {**scores[split], **speed})
                self.display.evaluation(split, self.run.epoch(step), scores[split])
        return scores.get("validation")

    def _final_scores(self, state: TrainState) -> dict[str, dict]:
        """Scores of the last and of the best weights. Nothing was chosen by the test split before."""
        run, step = self.run, self.run.num_steps
        best_step, best_variables, messages = self.checkpoints.read_best(state.variables)
        for message in messages:
            self.console.print(message, highlight=False, soft_wrap=True)
        states = {step: state, best_step: state.replace(**run.parallel.replicate(best_variables))}
        scores = {}
        for scored_step in sorted(states):
            scores[scored_step] = {"step": scored_step, "train": self.log.train_scores.get(scored_step)}
            for split in (name for name in run.splits if name != "train"):  # not a set: everywhere in the same order
                scores[scored_step][split], speed = _evaluate(run, states[scored_step], split, scored_step)
            if not run.config.eval.test_curve:  # which holds these points already
                values = {**scores[scored_step]["test"], **speed}
                self.log.write("test", scored_step, run.epoch(scored_step), values)
        return {"last": scores[step], "best": scores[best_step]}


def _start_or_resume(run: Run, checkpoints: Checkpoints, console: Console):
    restored = checkpoints.restore_latest(run.state_shapes)
    if restored is None:
        return run.initial_state(), 0, TrainingWindow()
    host_state, notes, messages = restored
    step = int(host_state.step)
    for message in (*messages, f"going on from step {step} of {run.num_steps}"):
        console.print(message, highlight=False, soft_wrap=True)
    return run.parallel.replicate(host_state), step, TrainingWindow(notes)


def _evaluate(run: Run, state: TrainState, split: str, step: int) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the weights and, as `ema_...`, of their moving average; and what else a line of metrics holds."""
    start = time.perf_counter()
    metrics = means(run.evaluate(state.variables, split))
    if state.ema is not None:
        averaged = means(run.evaluate(state.ema, split))
        metrics |= {f"ema_{name}": value for name, value in averaged.items()}
    if not all(map(math.isfinite, metrics.values())):
        raise DivergedError(f"the loss on the {split} split after step {step} is not finite: {metrics}")
    passes = 1 if state.ema is None else 2
    rate = passes * len(run.splits[split]) / (time.perf_counter() - start)
    return metrics, {"learning_rate": run.learning_rate(step - 1), "images_per_second": rate}
