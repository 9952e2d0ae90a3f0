"""Updates that leave the state as it was where a number is not finite."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from resnet_jax.training.step import TrainState

POLICIES = ("abort", "skip", "rollback")


def skip_nonfinite(train_step: Callable) -> Callable:
    """A training step that keeps the whole state back where any number of its update is not finite.

    Only the number of the step, and with it the learning rate, goes on: the next step has the next batch.

    Args:
      train_step: from `step.make_train_step`.

    Returns:
      The step. Its sums have `skipped`, float32: 1 if the state was kept back, else 0.
    """

    def step(state: TrainState, inputs) -> tuple[TrainState, dict]:
        updated, sums = train_step(state, inputs)
        changed = {name: getattr(updated, name) for name in ("params", "batch_stats", "ema")}
        changed["inner_state"] = updated.opt_state.inner_state
        before = {name: getattr(state, name) for name in ("params", "batch_stats", "ema")}
        before["inner_state"] = state.opt_state.inner_state
        numbers = filter(_is_floating, jax.tree.leaves((changed, sums)))
        finite = functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in numbers])
        kept = jax.tree.map(functools.partial(jnp.where, finite), changed, before)
        opt_state = updated.opt_state._replace(inner_state=kept.pop("inner_state"))
        return updated.replace(**kept, opt_state=opt_state), {**sums, "skipped": 1.0 - finite.astype(jnp.float32)}

    return step


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
