"""Numbers that are not finite: abort, skip or rollback."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from resnet_jax import train
from resnet_jax.checkpoint import SavedSteps, read_trees
from resnet_jax.config import build
from resnet_jax.errors import DivergedError
from resnet_jax.training.logs import read_metrics
from resnet_jax.training.run import checkpoint_items, state_of_items
from tests.runs import assert_the_same_end, last_state, logged
from tests.tiny import build as build_run
from tests.tiny import tiny_config

QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("fresh_programs")


def change_step(monkeypatch, change):
    """Train by steps whose result is changed: `change(state before, state after, sums)`."""
    make = build.make_train_step

    def changed(*arguments, **settings):
        step = make(*arguments, **settings)
        return lambda state, inputs: change(state, *step(state, inputs))

    monkeypatch.setattr(build, "make_train_step", changed)


def break_at(*steps, where="params"):
    """A change: the updates that begin at these steps have one number that is not finite."""

    def change(before, after, sums):
        leaves, structure = jax.tree.flatten(getattr(after, where))
        place = max(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))
        is_broken = jnp.isin(before.step, jnp.array(steps))
        leaves[place] = jnp.where(is_broken, leaves[place].at[(0,) * leaves[place].ndim].set(jnp.nan), leaves[place])
        if where == "params":
            sums = {**sums, "param_norm": jnp.where(is_broken, jnp.nan, sums["param_norm"])}
        return after.replace(**{where: jax.tree.unflatten(structure, leaves)}), sums

    return change


def leave_out(step):
    """A change: the update that begins at this step is not made, though its number and its rate go on."""

    def change(before, after, sums):
        kept = {name: getattr(before, name) for name in ("params", "batch_stats", "ema")}
        opt_state = after.opt_state._replace(inner_state=before.opt_state.inner_state)
        left_out = after.replace(**kept, opt_state=opt_state)
        return jax.lax.cond(before.step == step, lambda: left_out, lambda: after), sums

    return change


def config_of(policy, **settings):
    return tiny_config(train__nonfinite=policy, train__ema_decay=0.9, optim__name="adamw", optim__lr=0.01, **settings)


@pytest.mark.parametrize("where", ["params", "batch_stats", "ema", "opt_state"])
def test_a_skipped_update_leaves_everything_but_the_step_as_it_was(tmp_path, monkeypatch, where):
    with monkeypatch.context() as patch:
        change_step(patch, leave_out(13))
        train(config_of("abort"), tmp_path / "left_out", QUIET)
    build.forget_programs()
    change_step(monkeypatch, break_at(13, where=where))
    assert train(config_of("skip"), tmp_path / "skipped", QUIET)["completed"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)  # two programs round differently
    jax.tree.map(close, last_state(tmp_path / "skipped"), last_state(tmp_path / "left_out"))
    skipped = {line["step"]: line.get("skipped", 0) for line in lines(tmp_path / "skipped", "train")}
    assert [step for step, count in skipped.items() if count] == [16] and skipped[16] == 1


def lines(workdir, split):
    return [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == split]


def test_the_means_of_a_log_line_are_those_of_the_steps_that_were_made(tmp_path, monkeypatch):
    change_step(monkeypatch, break_at(13))
    train(config_of("skip", log__every_steps=1), tmp_path / "each", QUIET)
    train(config_of("skip", log__every_steps=4), tmp_path / "four", QUIET)
    losses = {line["step"]: line["loss"] for line in lines(tmp_path / "each", "train")}
    assert 14 not in losses and set(losses) == set(range(1, 31)) - {14}
    (found,) = [line["loss"] for line in lines(tmp_path / "four", "train") if line["step"] == 16]
    assert found == pytest.approx(np.mean([losses[step] for step in (13, 15, 16)]), rel=1e-6)


def test_too_many_skipped_steps_in_a_row_end_the_run_even_across_a_resume(tmp_path, monkeypatch):
    change_step(monkeypatch, break_at(*range(11, 14)))
    config = config_of("skip", train__max_nonfinite=2)
    with pytest.raises(DivergedError, match="3 steps in a row, up to step 14, were not finite.*at most 2"):
        train(config, tmp_path / "whole", QUIET)
    with pytest.raises(Exception, match="stopped at step 13"):
        train(config, tmp_path / "parts", QUIET, stop_requested=lambda step: step == 13)
    with pytest.raises(DivergedError, match="3 steps in a row, up to step 14"):
        train(config, tmp_path / "parts", QUIET)
    assert train(config_of("skip", train__max_nonfinite=3), tmp_path / "parts", QUIET)["completed"]


def test_a_rollback_continues_after_the_broken_step_with_the_weights_of_the_checkpoint(tmp_path, monkeypatch):
    change_step(monkeypatch, break_at(13))
    result = train(config_of("rollback", checkpoint__keep=9), tmp_path / "run", QUIET)
    assert result["completed"] and result["rollbacks"] == 1
    _, program, state = build_run(config_of("rollback"))
    trees, _ = read_trees(SavedSteps(tmp_path / "run").path(10), checkpoint_items(state))
    state = program.parallel.replicate(state_of_items(state, trees, 14))
    for step in range(14, 30):
        state, _ = program.train_steps(1)(state, program.inputs(step))
    expected = jax.tree.leaves(jax.device_get(checkpoint_items(state)["model"]))
    found, _ = read_trees(SavedSteps(tmp_path / "run").path(30), {"model": checkpoint_items(state)["model"]})
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), expected)


@pytest.mark.parametrize("stop", [12, 17, 22])
def test_a_run_with_a_rollback_that_is_resumed_ends_as_the_one_that_was_not(tmp_path, monkeypatch, stop):
    change_step(monkeypatch, break_at(13, 25))
    train(config_of("rollback"), tmp_path / "whole", QUIET)
    with pytest.raises(Exception, match=f"stopped at step {stop}"):
        train(config_of("rollback"), tmp_path / "parts", QUIET, stop_requested=lambda step: step == stop)
    result = train(config_of("rollback"), tmp_path / "parts", QUIET)
    assert result["rollbacks"] == 2
    assert_the_same_end(tmp_path / "parts", tmp_path / "whole")


def test_a_run_goes_back_only_so_often_and_only_to_a_checkpoint(tmp_path, monkeypatch):
    change_step(monkeypatch, break_at(13, 17))
    with pytest.raises(DivergedError, match="step 18 is nan.*last good checkpoint is of step 10"):
        train(config_of("rollback", train__max_nonfinite=1), tmp_path / "twice", QUIET)
    build.forget_programs()
    with monkeypatch.context() as patch:
        change_step(patch, break_at(2))
        with pytest.raises(DivergedError, match="step 3 is nan; no checkpoint was saved before"):
            train(config_of("rollback"), tmp_path / "early", QUIET)
    assert logged(tmp_path / "early") == []
