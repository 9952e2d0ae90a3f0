"""K runs in one compiled program, by `vmap` over their states: small nets alone leave an accelerator idle."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.training.accumulator import StepTimer
from resnet_jax.training.hooks import Hook, make_hooks
from resnet_jax.training.loop import explained, run_loop, train_run
from resnet_jax.training.preemption import Preemption
from resnet_jax.training.probes import make_probes
from resnet_jax.training.program import Program
from resnet_jax.training.results import final_result
from resnet_jax.training.run import TrainingRun
from resnet_jax.training.step import TrainState


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """One state with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def replica_state(state: TrainState, index: int) -> TrainState:
    """The state of one replica."""
    return jax.tree.map(lambda x: x[index], state)


@dataclasses.dataclass
class Replica:
    """One of several runs in a program.

    Attributes:
      run: the run at work.
      index: its place in the leading axis.
      hooks: its duties.
      outcome: its result or its error, once it has ended.
    """

    run: TrainingRun
    index: int
    hooks: list[Hook] = dataclasses.field(default_factory=list)
    outcome: dict | DivergedError | None = None

    @contextlib.contextmanager
    def may_diverge(self):
        """Let a divergence inside end this run, and no other."""
        try:
            yield
        except DivergedError as error:
            self.outcome = explained(self.run, error)


class AllEnded(Exception):
    """No replica is left."""


class EachReplica(Hook):
    """The hooks of each replica that is still at work."""

    def __init__(self, replicas: Sequence[Replica], preemption: Preemption):
        self._replicas, self._preemption = replicas, preemption
        for replica in replicas:
            replica.hooks = make_hooks(replica.run, lambda step: preemption.request)

    def alive(self) -> list[Replica]:
        """The replicas that have not ended."""
        return [replica for replica in self._replicas if replica.outcome is None]

    def deliver(self, last_step: int, sums: dict) -> None:
        """Give each replica its own sums."""
        for replica in self.alive():
            with replica.may_diverge():
                replica.run.accumulator.add(last_step, {name: value[replica.index] for name, value in sums.items()})

    def start(self, step, state):
        for replica in self.alive():
            for hook in replica.hooks:
                hook.start(step, replica_state(state, replica.index))

    def __call__(self, step, state):
        recipe = self._replicas[0].run.recipe
        stopping = self._preemption(step)
        for replica in self._replicas:
            replica.run.watchdog.wait()
            replica.run.display.advance(step)
        if stopping or recipe.is_log_step(step):  # else the hooks of a replica have nothing to do
            self._replicas[0].run.timer.flush()  # a replica that has diverged by now has no duties
            self._call_hooks(step, state)
        if not self.alive():
            raise AllEnded

    def stop(self, step, state):
        texts = [
            hook.stop(step, replica_state(state, replica.index)) for replica in self.alive() for hook in replica.hooks
        ]
        return "\n".join(filter(None, texts))

    def _call_hooks(self, step, state):
        interruption = None
        for replica in self.alive():
            own = replica_state(state, replica.index)
            try:
                with replica.may_diverge():
                    for hook in replica.hooks:
                        hook(step, own)
            except InterruptedRun as error:  # the others must be saved, too
                interruption = error
        if interruption:
            raise interruption


def train_replicas(
    runs: Sequence[TrainingRun],
    make_program: Callable[[Sequence[TrainingRun]], Program],
    preemption: Preemption,
) -> list[dict | DivergedError]:
    """Train runs to their ends, those that stand at the same step in one program.

    Args:
      runs: at work, in any order; of recipes that differ in seed and learning rate alone.
      make_program: the program of some of them.
      preemption: asked after each call.

    Returns:
      For each its result, or the error that ended it.

    Raises:
      InterruptedRun: asked to stop; all were saved.
    """
    outcomes = {}
    for step in sorted({run.step for run in runs}):
        group = [run for run in runs if run.step == step]
        program = make_program(group)
        with contextlib.closing(program.loader):
            outcomes |= zip(map(id, group), _train_group(group, program, preemption), strict=True)
    return [outcomes[id(run)] for run in runs]


def _train_group(runs, program, preemption) -> list[dict | DivergedError]:
    replicas = [Replica(run, index) for index, run in enumerate(runs)]
    if len(runs) == 1:
        runs[0].program, runs[0].probes = program, make_probes(program, runs[0].recipe)
        try:
            return [train_run(runs[0], preemption)]
        except DivergedError as error:
            return [error]
    for replica in replicas:
        run = replica.run
        run.program, run.num_replicas = program.replica(replica.index), len(runs)
        run.probes = make_probes(run.program, run.recipe)
    each = EachReplica(replicas, preemption)
    timer = StepTimer(each.deliver, max(run.seconds_before for run in runs))
    for run in runs:
        run.timer, run.preemption = timer, preemption
    state = stack_states([run.state for run in runs])
    with preemption.at_work():
        with contextlib.suppress(AllEnded):
            state = run_loop(program, runs[0].recipe, state, runs[0].step, timer, [each], preemption)
        for replica in each.alive():
            with replica.may_diverge():
                replica.outcome = final_result(replica.run, replica_state(state, replica.index))
    return [replica.outcome for replica in replicas]


def seconds_per_step(program: Program, state: TrainState, steps: int) -> float:
    """Mean wall time of a training step, after a first one that compiles."""
    step, inputs = program.train_steps(1), program.inputs(0)
    state, _ = step(state, inputs)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, inputs)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps
