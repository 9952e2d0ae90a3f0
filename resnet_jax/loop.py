"""The story of a run, told once: ask for a batch, step, log, evaluate, save; and again."""

import contextlib
import pathlib
import signal
import threading

import jax
import ml_collections
from jax.experimental import multihost_utils
from rich.console import Console

from resnet_jax.build import Run
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.logs import MetricsLog, TrainingDisplay, read_metrics
from resnet_jax.metrics import means
from resnet_jax.parallel import is_main_process, join_processes
from resnet_jax.screens import end_screen, start_screen
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
    workdir = claim_workdir(workdir, config, write=is_main_process())
    result = read_result(workdir)
    if result and result["completed"]:
        console.print(f"This run is complete: {workdir}", highlight=False, soft_wrap=True)
    else:
        console.print(start_screen(run, workdir))
        with Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best_metric) as checkpoints:
            try:
                result = _train(run, checkpoints, workdir, console)
            except DivergedError as error:
                checkpoints.wait()
                saved = checkpoints.steps()
                good = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
                raise DivergedError(f"{error}; {good}, in {workdir}. Try a lower optim.lr or a warm-up") from None
    console.print(end_screen(result, workdir))
    return result


def _train(run: Run, checkpoints: Checkpoints, workdir: pathlib.Path, console: Console) -> dict:
    state, step, window = _start_or_resume(run, checkpoints, console)
    with (
        MetricsLog(workdir, after_step=step, enabled=is_main_process()) as log,
        TrainingDisplay(console, step, run.num_steps) as display,
        _stop_requests() as stop_requested,
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
                values = {**window.close(), "learning_rate": float(run.schedule(step - 1))}
                log.write("train", step, run.epoch(step), values)
                display.train(step, run.epoch(step), values)
            if run.is_eval_step(step):
                metrics = _evaluate(run, state, "validation") if "validation" in run.splits else None
                if metrics:
                    log.write("validation", step, run.epoch(step), metrics)
                    display.evaluation("validation", run.epoch(step), metrics)
                checkpoints.save(step, state, metrics=metrics, notes=window.notes())
                window.restart_clock()
            elif stopping:
                checkpoints.save(step, state, metrics=None, notes=window.notes())
            if stopping and step < run.num_steps:
                if is_main_process():
                    write_json(workdir / "result.json", {"completed": False, "step": step, "steps": run.num_steps})
                raise InterruptedRun(
                    f"stopped at step {step} of {run.num_steps}, which is saved; to go on, give the same command with "
                    f"--workdir={workdir}"
                )
        checkpoints.wait()
        result = {
            "completed": True,
            "step": step,
            "steps": run.num_steps,
            "parameters": run.num_parameters,
            "seconds": round(window.seconds(), 3),
            "images_per_second": window.images_per_second(),
            **_final_scores(run, state, step, checkpoints, log, workdir),
        }
    if not is_main_process():
        return result
    write_json(workdir / "result.json", result)
    from resnet_jax import report  # on use: it brings matplotlib, which the start of a run should not wait for

    report.plot_curves(workdir, workdir / "curves.png")
    return result


def _start_or_resume(run: Run, checkpoints: Checkpoints, console: Console):
    restored = checkpoints.restore_latest(run.state_shapes)
    if restored is None:
        return run.initial_state(), 0, TrainingWindow()
    host_state, notes, messages = restored
    step = int(host_state.step)
    for message in (*messages, f"going on from step {step} of {run.num_steps}"):
        console.print(message, highlight=False, soft_wrap=True)
    return run.parallel.replicate(host_state), step, TrainingWindow(notes)


def _evaluate(run: Run, state, split: str) -> dict[str, float]:
    """Metrics of the weights and, as `ema_...`, of their moving average."""
    metrics = means(run.evaluate(state.variables, split))
    if state.ema is not None:
        averaged = means(run.evaluate(state.ema, split))
        metrics |= {f"ema_{name}": value for name, value in averaged.items()}
    return metrics


def _final_scores(run: Run, state, step: int, checkpoints: Checkpoints, log: MetricsLog, workdir) -> dict[str, dict]:
    """Scores of the last and of the best weights: the only use of the test split."""
    lines = read_metrics(workdir / "metrics.jsonl")
    train_lines = {line["step"]: line for line in lines if line["split"] == "train"}
    best_step = checkpoints.resolve("best")
    scores = {}
    for scored_step in sorted({best_step, step}):
        scored = state
        if scored_step != step:
            scored = state.replace(**run.parallel.replicate(checkpoints.read_variables(scored_step, state.variables)))
        train = {name: train_lines[scored_step][name] for name in ("loss", "accuracy", "top5")}
        scores[scored_step] = {"step": scored_step, "train": train}
        for split in run.splits.keys() - {"train"}:
            scores[scored_step][split] = _evaluate(run, scored, split)
        log.write("test", scored_step, run.epoch(scored_step), scores[scored_step]["test"])
    return {"last": scores[step], "best": scores[best_step]}


@contextlib.contextmanager
def _stop_requests():
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

    # Signals can be handled in the main thread only; elsewhere they are the caller's.
    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield lambda step: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
