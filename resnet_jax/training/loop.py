"""The loop, told once: ask for inputs, step, let the hooks do their duties; and again. For one run or K replicas."""

import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils
from rich.console import Console

from resnet_jax.errors import DivergedError
from resnet_jax.training.accumulator import StepTimer
from resnet_jax.training.hooks import Hook, TrainingRun, make_hooks
from resnet_jax.training.program import Program
from resnet_jax.training.results import final_result
from resnet_jax.training.step import TrainState


def run_loop(program: Program, recipe, state: TrainState, step: int, timer: StepTimer, hooks: list[Hook]) -> TrainState:
    """Train from `step` to the end.

    Args:
      program: compiled functions.
      recipe: `num_steps` and `steps_in_call`.
      state: a run's, or that of replicas with a leading axis.
      step: number of updates that the state has had.
      timer: gets the sums of each call.
      hooks: called in this order after each call.
    """
    for hook in hooks:
        hook.start(step, state)
    while step < recipe.num_steps:
        count = recipe.steps_in_call(step)
        with timer.waiting_for_input():
            inputs = program.inputs(step)
        state, sums = program.train_steps(count)(state, inputs)
        step += count
        timer.add(step, sums, inputs.sharded)
        for hook in hooks:
            hook(step, state)
    return state


def train_run(run: TrainingRun, stop_requested: Callable[[int], bool]) -> dict:
    """Train one run to its end and return its result.

    Raises:
      DivergedError: a number is not finite; the message says where to continue from.
      InterruptedRun: asked to stop; a checkpoint was saved.
    """
    run.timer = StepTimer(run.accumulator.add, run.seconds_before)
    try:
        hooks = make_hooks(run, stop_requested)
        state = run_loop(run.program, run.recipe, run.state, run.step, run.timer, hooks)
        return final_result(run, state)
    except DivergedError as error:
        raise explained(run, error) from None


def explained(run: TrainingRun, error: DivergedError) -> DivergedError:
    """The error with what is left of the run, and what to try."""
    run.checkpoints.wait()
    saved = run.checkpoints.steps()
    good = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
    return DivergedError(f"{error}; {good}, in {run.workdir}. Try a lower optim.lr or a warmup")


@contextlib.contextmanager
def stop_requests(console: Console) -> Iterator[Callable[[int], bool]]:
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
        # In a thread, which waits until the file is free: the signal may have come while this one prints. A raw one:
        # it may have come while this one starts a thread.
        message = "stopping after the next step; once more to end without saving"
        _thread.start_new_thread(console.print, (message,), {"highlight": False})

    # Signals can be handled in the main thread only; elsewhere they are the caller's.
    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield lambda step: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
