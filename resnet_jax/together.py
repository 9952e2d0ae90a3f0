"""Several runs in one compiled program, by `vmap` over their states: small nets alone leave an accelerator idle."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import Progress

from resnet_jax.build import Run
from resnet_jax.data.device import TrainLoader
from resnet_jax.data.order import Feed
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import DivergedError, InterruptedRun, UserError
from resnet_jax.estimate import seconds_per_step
from resnet_jax.loop import train_session
from resnet_jax.parallel import is_main_process
from resnet_jax.session import Session, open_session
from resnet_jax.step import TrainState
from resnet_jax.workdir import claim_workdir


def shared_program(config: ml_collections.ConfigDict) -> str:
    """Equal for configs whose runs can be trained together: those that differ in seed and learning rate alone.

    Runs of the `stream` have each their own: their batches are made on the host, so together they win nothing.
    """
    values = json.loads(config.to_json())
    if values["data"]["loader"] == "device":
        del values["seed"], values["optim"]["lr"]
    return json.dumps(values, sort_keys=True)


def train_together(
    configs: Sequence[ml_collections.ConfigDict],
    workdirs: Sequence[str | pathlib.Path],
    console: Console,
    bars: Progress,
    stop_requested: Callable[[int], bool],
) -> list[dict | DivergedError]:
    """Train runs at once, or go on with them; each ends as it does alone (`loop.train`), to float tolerance.

    Runs that were stopped at different steps are trained in groups that stand at the same one.

    Args:
      configs: that differ in `seed` and `optim.lr` alone.
      workdirs: one for each.
      console, bars, stop_requested: as for `loop.train`.

    Returns:
      For each what its `result.json` holds, or the error that ended it.

    Raises:
      UserError: configs of different programs; otherwise as `loop.train`.
      InterruptedRun: asked to stop; all were saved.
    """
    use_compilation_cache()
    if len({shared_program(config) for config in configs}) > 1:
        raise UserError("train_together: expected configs that differ in seed and optim.lr alone")
    with contextlib.ExitStack() as stack:
        sessions = []
        for config, workdir in zip(configs, workdirs, strict=True):
            run = Run(config)
            folder = stack.enter_context(claim_workdir(workdir, run.config, write=is_main_process()))
            sessions.append(stack.enter_context(open_session(run, folder, console, bars)))
            sessions[-1].runs_at_once = len(configs)
        outcomes = {}
        for step in sorted({session.step for session in sessions}):
            group = [session for session in sessions if session.step == step]
            outcomes |= zip(map(id, group), _train_group(group, stop_requested), strict=True)
    return [outcomes[id(session)] for session in sessions]


class Together:
    """Runs of one program, side by side: states, feeds and sums have a leading axis for them.

    Attributes:
      train_steps: as `Run.train_steps`.
    """

    def __init__(self, runs: Sequence[Run]):
        self._run, own = runs[0], [run.own_feed for run in runs]
        self._own_feed = {name: np.stack([feed[name] for feed in own]) for name in own[0]}
        self.train_steps = functools.cache(self._compile_train_steps)
        train = self._run.config.train
        self._loader = TrainLoader(
            self._run.splits["train"],
            jnp.stack([run.order_key for run in runs]),
            train.batch_size,
            train.steps_per_dispatch,
            self._run.parallel.replicate,
        )

    def feed(self, step: int) -> Feed:
        """As `Run.feed`."""
        return Feed({**self._loader.feed(step).shared, **self._own_feed}, {})

    def _compile_train_steps(self, count: int) -> Callable:
        own = dict.fromkeys(("orders", *self._own_feed), 0)
        shared = dict.fromkeys(("images", "labels", "offset"))
        steps = jax.vmap(self._run.uncompiled_steps(count), in_axes=(0, Feed(own | shared, {})))
        return self._run.parallel.compile(steps, donate=True)


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """One state with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@dataclasses.dataclass
class _Member:
    """A run of a group.

    Attributes:
      session: of the run.
      place: in the leading axis.
      outcome: its result or its error, once it has ended.
    """

    session: Session
    place: int
    outcome: dict | DivergedError | None = None

    def own(self, tree):
        """This run's part of stacked arrays."""
        return jax.tree.map(lambda x: x[self.place], tree)

    @contextlib.contextmanager
    def may_diverge(self):
        """A divergence inside ends this run, and no other."""
        try:
            yield
        except DivergedError as error:
            self.outcome = self.session.explained(error)


def _train_group(sessions: list[Session], stop_requested: Callable[[int], bool]) -> list[dict | DivergedError]:
    members = [_Member(session, place) for place, session in enumerate(sessions)]
    if len(members) == 1:
        with members[0].may_diverge():
            members[0].outcome = train_session(sessions[0], stop_requested)
        return [members[0].outcome]

    def alive():
        return [member for member in members if member.outcome is None]

    def add_sums(dispatch):
        last_step, sums = dispatch[0], jax.device_get(dispatch[1])
        for member in alive():
            with member.may_diverge():
                member.session.window.add(last_step, member.own(sums))

    run, step = sessions[0].run, sessions[0].step
    together = Together([session.run for session in sessions])
    state = stack_states([session.state for session in sessions])
    for session in sessions:
        session.probe_layers(step, session.state)
    pending = []
    while step < run.num_steps and alive():
        count = run.steps_in_dispatch(step)
        with contextlib.ExitStack() as waiting:
            for session in sessions:
                waiting.enter_context(session.window.waiting_for_input())
            feed = together.feed(step)
        state, sums = together.train_steps(count)(state, feed)
        step += count
        pending.append((step, sums))
        stopping = stop_requested(step)
        due = stopping or run.is_log_step(step) or run.is_eval_step(step)
        while len(pending) > (0 if due else 1):  # one dispatch late, as in a run alone
            add_sums(pending.pop(0))
        for session in sessions:
            session.display.advance(step)
        if due:
            _after_step(alive(), step, state, stopping)
    for member in alive():
        with member.may_diverge():
            member.outcome = member.session.finish(member.own(state))
    return [member.outcome for member in members]


def _after_step(members: list[_Member], step: int, state: TrainState, stopping: bool) -> None:
    interruption = None
    for member in members:
        try:
            with member.may_diverge():
                member.session.after_step(step, member.own(state), stopping)
        except InterruptedRun as error:  # the others must be saved, too
            interruption = error
    if interruption:
        raise interruption


def speed_up(configs: Sequence[ml_collections.ConfigDict], steps: int = 10) -> tuple[float, float]:
    """Seconds for a step of all runs one after another, and in one program; both after compilation."""
    runs = [Run(config) for config in configs]
    together, states = Together(runs), stack_states([run.initial_state() for run in runs])
    alone = seconds_per_step(runs[0].train_steps(1), runs[0].initial_state(), runs[0].feed(0), steps)
    return len(runs) * alone, seconds_per_step(together.train_steps(1), states, together.feed(0), steps)
