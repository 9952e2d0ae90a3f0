import jax
import numpy as np
import pytest

from resnet_jax.build import Run
from resnet_jax.metrics import means
from tests.tiny import tiny_config

STEPS = 20


def train(steps=STEPS, **overrides):
    """Losses of each step, and the final state."""
    run = Run(tiny_config(train__steps=steps, train__batch_size=64, augment__crop=1, augment__mixup=0.2, **overrides))
    state, losses = run.initial_state(), []
    for step in range(steps):
        state, sums = run.train_steps(1)(state, run.feed(step))
        losses.append(float(sums["loss"][0]) / float(sums["count"][0]))
    return np.array(losses), state, run


@pytest.fixture(scope="module")
def one_device():
    return train(parallel__devices=1)


@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_four_devices_with_global_statistics_equal_one_device(one_device, wrapper):
    losses, state, _ = train(parallel__devices=4, parallel__wrapper=wrapper, norm__scope="global")
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
    assert losses[-1] < losses[0] - 0.3  # it did learn
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), state.variables, one_device[1].variables
    )


def test_shard_map_and_pmap_give_equal_results():
    (losses, state, _), (pmap_losses, pmap_state, _) = (
        train(5, parallel__devices=4, parallel__wrapper=wrapper) for wrapper in ("shard_map", "pmap")
    )
    np.testing.assert_array_equal(losses, pmap_losses)
    jax.tree.map(np.testing.assert_array_equal, state.variables, pmap_state.variables)


def test_runs_that_differ_in_seed_and_rate_share_one_program():
    programs = set()
    for own in ({"seed": 0}, {"seed": 1}, {"optim__lr": 0.3}):
        run = Run(tiny_config(augment__mixup=0.2, optim__schedule="step", optim__warmup_steps=3, **own))
        programs.add(run.train_steps(1).lower(run.state_shapes, run.feed(0)).as_text())
    assert len(programs) == 1


def test_groups_of_all_devices_are_global_and_groups_of_one_are_local():
    scopes = {
        "global": {"norm__scope": "global"},
        "group of 4": {"norm__scope": "group", "norm__group_size": 4},
        "group of 2": {"norm__scope": "group", "norm__group_size": 2},
        "group of 1": {"norm__scope": "group", "norm__group_size": 1},
        "local": {"norm__scope": "local"},
    }
    losses = {name: train(5, parallel__devices=4, **scope)[0] for name, scope in scopes.items()}
    np.testing.assert_allclose(losses["group of 4"], losses["global"], rtol=1e-5)
    np.testing.assert_allclose(losses["group of 1"], losses["local"], rtol=1e-5)
    for other in ("global", "local"):
        assert np.abs(losses["group of 2"] - losses[other]).max() > 1e-3


@pytest.mark.parametrize("scope", ["local", "global"])
def test_weights_and_running_statistics_agree_on_all_devices(scope):
    _, state, _ = train(3, parallel__devices=4, norm__scope=scope)
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_evaluation_does_not_depend_on_devices_or_batch_size(one_device):
    variables = jax.device_get(one_device[1].variables)
    reference = one_device[2].evaluate(one_device[1].variables, "test")
    for devices, batch_size in ((1, 7), (4, 1000), (4, 90), (3, 360)):
        run = Run(tiny_config(parallel__devices=devices, eval__batch_size=batch_size, train__batch_size=60))
        sums = run.evaluate(run.parallel.replicate(variables), "test")
        assert sums["count"] == 360
        np.testing.assert_array_equal(sums["class_correct"], reference["class_correct"])
        assert means(sums)["loss"] == pytest.approx(means(reference)["loss"], rel=1e-5)


def test_several_steps_in_one_program_equal_single_steps(one_device):
    run = Run(tiny_config(train__steps_per_dispatch=4, train__steps=STEPS, augment__crop=1, augment__mixup=0.2))
    state, losses = run.initial_state(), []
    for step in range(0, STEPS, 4):
        state, sums = run.train_steps(4)(state, run.feed(step))
        losses += (np.asarray(sums["loss"]) / np.asarray(sums["count"])).tolist()
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
