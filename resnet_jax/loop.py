"""The story of a run, told once: ask for a batch, step, log, evaluate, save; and again."""

import contextlib
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable

import jax
import ml_collections
from jax.experimental import multihost_utils
from rich.console import Console

from resnet_jax.build import Run
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.logs import MetricsLog, TrainingDisplay
from resnet_jax.metrics import means
from resnet_jax.parallel import is_main_process, join_processes
from resnet_jax.screens import end_screen, start_screen
from resnet_jax.step import TrainState
from resnet_jax.window import TrainingWindow
from resnet_jax.workdir import claim_workdir, read_result, write_json


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict:
    """Train, or go on with the run that lies in `workdir`.

    Args:
      config: as from `configs/default.py`.
      workdir: where everything of the run is written.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: a config or a workdir that cannot be used.
      DivergedError: the loss is not finite.
      InterruptedRun: asked to stop; a checkpoint was saved.
    """
    use_compilation_cache()
    if config.parallel.distributed:
        join_processes()
    console = Console(quiet=not is_main_process())
    run = Run(config)
    with claim_workdir(workdir, config, write=is_main_process()) as workdir:
        return _train_in(workdir, run, console)


def _train_in(workdir: pathlib.Path, run: Run, console: Console) -> dict:
    config = run.config
    result = read_result(workdir)
    if result and result["completed"]:
        console.print(f"This run is complete: {workdir}", highlight=False, soft_wrap=True)
    else:
        with (
            _stop_requests(console) as stop_requested,
            Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best_metric) as checkpoints,
        ):
            console.print(start_screen(run, workdir))
            try:
                result = _train(run, checkpoints, workdir, console, stop_requested)
            except DivergedError as error:
                checkpoints.wait()
                saved = checkpoints.steps()
                good = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
                raise DivergedError(f"{error}; {good}, in {workdir}. Try a lower optim.lr or a warm-up") from None
    console.print(end_screen(result, workdir))
    return result


def _train(
    run: Run, checkpoints: Checkpoints, workdir: pathlib.Path, console: Console, stop_requested: Callable[[int], bool]
) -> dict:
    state, step, window = _start_or_resume(run, checkpoints, console)
    with (
        MetricsLog(workdir, after_step=step, enabled=is_main_process()) as log,
        TrainingDisplay(console, step, run.num_steps) as display,
    ):
        while step < run.num_steps:
            count = run.steps_in_dispatch(step)
            with window.waiting_for_input():
                feed = run.train_loader.feed(step)
            state, sums = run.train_steps(count)(state, feed)
            step += count
            window.add(step, sums)  # reads the sums of the dispatch before: the device never waits for the host
            display.advance(step)
            stopping = stop_requested(step)
            if run.is_log_step(step):
                values = {**window.close(), "learning_rate": run.learning_rate(step - 1)}
                log.write("train", step, run.epoch(step), values)
                display.train(step, run.epoch(step), values)
                window.restart_clock()
            if run.is_eval_step(step):
                metrics = None
                if "validation" in run.splits:
                    metrics, speed = _evaluate(run, state, "validation", step)
                    log.write("validation", step, run.epoch(step), {**metrics, **speed})
                    display.evaluation("validation", run.epoch(step), metrics)
                checkpoints.save(step, state, metrics=metrics, notes=window.notes())
                window.restart_clock()
            elif stopping:
                checkpoints.save(step, state, metrics=None, notes=window.notes())
            if stopping and step < run.num_steps:
                if is_main_process():
                    write_json(workdir / "result.json", {"completed": False, **_progress(run, step, window)})
                raise InterruptedRun(
                    f"stopped at step {step} of {run.num_steps}, which is saved; to go on, give the same command with\n"
                    f"  --workdir={workdir}"
                )
        checkpoints.wait()
        result = {
            "completed": True,
            **_progress(run, step, window),
            **_final_scores(run, state, step, checkpoints, log, console),
        }
    if not is_main_process():
        return result
    from resnet_jax import report  # on use: it brings matplotlib, which the start of a run should not wait for

    report.plot_curves(workdir, workdir / "curves.png")
    write_json(workdir / "result.json", result)  # last: a run that has it is complete
    return result


def _progress(run: Run, step: int, window: TrainingWindow) -> dict:
    return {
        "step": step,
        "steps": run.num_steps,
        "parameters": run.num_parameters,
        "seconds": round(window.seconds(), 3),
        "images_per_second": window.images_per_second(),
    }


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
    rate = passes * len(run.splits[split].labels) / (time.perf_counter() - start)
    return metrics, {"learning_rate": run.learning_rate(step - 1), "images_per_second": rate, "input_wait": 0.0}


def _final_scores(
    run: Run, state: TrainState, step: int, checkpoints: Checkpoints, log: MetricsLog, console: Console
) -> dict[str, dict]:
    """Scores of the last and of the best weights: the only use of the test split."""
    best_step, best_variables, messages = checkpoints.read_best(state.variables)
    for message in messages:
        console.print(message, highlight=False, soft_wrap=True)
    states = {step: state, best_step: state.replace(**run.parallel.replicate(best_variables))}
    scores = {}
    for scored_step in sorted(states):
        scores[scored_step] = {"step": scored_step, "train": log.train_scores.get(scored_step)}
        for split in (name for name in run.splits if name != "train"):  # not a set: all processes in the same order
            scores[scored_step][split], speed = _evaluate(run, states[scored_step], split, scored_step)
        log.write("test", scored_step, run.epoch(scored_step), {**scores[scored_step]["test"], **speed})
    return {"last": scores[step], "best": scores[best_step]}


@contextlib.contextmanager
def _stop_requests(console: Console):
    """A function of the step that says whether Ctrl-C or SIGTERM has come. A second one ends the process at once.

    Where there are several processes, JAX itself takes SIGTERM, and all of them stop after the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    requests = []

    def on_signal(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        console.print("stopping after the next step; once more to end without saving", highlight=False)

    # Signals can be handled in the main thread only; elsewhere they are the caller's.
    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield lambda step: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
