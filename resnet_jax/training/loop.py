"""The loop, told once: ask for inputs, step, let the hooks do their duties; and again. For one run or K replicas."""

import contextlib
import functools

from resnet_jax.errors import DivergedError
from resnet_jax.training.accumulator import StepTimer
from resnet_jax.training.hooks import Hook, make_hooks
from resnet_jax.training.preemption import Preemption
from resnet_jax.training.program import Program
from resnet_jax.training.results import final_result
from resnet_jax.training.run import TrainingRun
from resnet_jax.training.step import TrainState


def run_loop(
    program: Program,
    recipe,
    state: TrainState,
    step: int,
    timer: StepTimer,
    hooks: list[Hook],
    preemption: Preemption,
) -> TrainState:
    """Train from `step` to the end.

    Args:
      program: compiled functions.
      recipe: `num_steps` and `steps_in_call`.
      state: a run's, or that of replicas with a leading axis.
      step: number of updates that the state has had.
      timer: gets the sums of each call.
      hooks: called in this order after each call.
      preemption: may end the process while a program compiles.
    """

    def stop(step, state):
        return "\n".join(filter(None, (hook.stop(step, state) for hook in hooks)))

    for hook in hooks:
        hook.start(step, state)
    while step < recipe.num_steps:
        count = recipe.steps_in_call(step)
        with timer.waiting_for_input():
            inputs = program.inputs(step)
        with preemption.interruptible(functools.partial(stop, step, state)):
            program.prepare(count, state, inputs)
        state, sums = program.train_steps(count)(state, inputs)
        step += count
        timer.add(step, sums, inputs.sharded)
        for hook in hooks:
            hook(step, state)
    return state


def train_run(run: TrainingRun, preemption: Preemption) -> dict:
    """Train one run to its end and return its result.

    Raises:
      DivergedError: a number is not finite; the message says where to continue from.
      InterruptedRun: asked to stop; a checkpoint was saved.
    """
    run.timer, run.preemption = StepTimer(run.accumulator.add, run.seconds_before), preemption
    try:
        with preemption.at_work():
            hooks = make_hooks(run, preemption)
            state, step = run.state, run.step
            while True:
                try:
                    state = run_loop(run.program, run.recipe, state, step, run.timer, hooks, preemption)
                    return final_result(run, state)
                except DivergedError as error:
                    state, step = run.roll_back(error)
    except DivergedError as error:
        raise explained(run, error) from None


def explained(run: TrainingRun, error: DivergedError) -> DivergedError:
    """The error with what is left of the run, and what to try."""
    saved = []
    if run.checkpoints is not None:  # each process by itself: it may be the only one that has the error
        with contextlib.suppress(DivergedError):
            run.checkpoints.wait()
        saved = run.checkpoints.steps()
    good = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint was saved before"
    return DivergedError(
        f"{error}; {good}, in {run.workdir}. Try a lower optim.lr or a warmup; or continue "
        "without what broke it: --config.train.nonfinite=skip"
    )
