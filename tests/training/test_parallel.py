import jax
import numpy as np
import pytest

from resnet_jax.training.metrics import scores
from tests.tiny import build, tiny_config

STEPS = 20


def train(steps=STEPS, **overrides):
    """Losses of each step, the state after the last of them, and the program, which calls of other lengths share."""
    settings = {"train__steps": STEPS, "train__batch_size": 64, "augment__pad_crop": 1, "augment__mixup": 0.2}
    _, program, state = build(tiny_config(**settings, **overrides))
    losses = []
    for step in range(steps):
        state, sums = program.train_steps(1)(state, program.inputs(step))
        losses.append(float(sums["loss"][0]) / float(sums["count"][0]))
    return np.array(losses), state, program


@pytest.fixture(scope="module")
def one_device():
    return train(parallel__devices=1)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_four_devices_with_global_statistics_equal_one_device(one_device, wrapper):
    losses, state, _ = train(parallel__devices=4, parallel__wrapper=wrapper, norm__scope="global")
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
    assert losses[-1] < losses[0] - 0.3  # it did learn
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), state.variables, one_device[1].variables
    )


@pytest.mark.slow
def test_shard_map_and_pmap_give_equal_results():
    (losses, state, _), (pmap_losses, pmap_state, _) = (
        train(5, parallel__devices=4, parallel__wrapper=wrapper) for wrapper in ("shard_map", "pmap")
    )
    np.testing.assert_array_equal(losses, pmap_losses)
    jax.tree.map(np.testing.assert_array_equal, state.variables, pmap_state.variables)


def test_runs_that_differ_in_seed_and_rate_share_one_program():
    programs = set()
    for own in ({"seed": 0}, {"seed": 1}, {"optim__lr": 0.3}):
        config = tiny_config(augment__mixup=0.2, optim__schedule="step", optim__warmup_steps=3, **own)
        _, program, state = build(config)
        programs.add(program.train_steps(1).lower(state, program.inputs(0)).as_text())
    assert len(programs) == 1


@pytest.mark.slow
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
    for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_evaluation_does_not_depend_on_devices_or_batch_size(one_device):
    variables = jax.device_get(one_device[1].variables)
    reference = one_device[2].evaluate(one_device[1].variables, "test")
    for devices, batch_size in ((1, 7), (4, 1000), (4, 90), (3, 360)):
        config = tiny_config(parallel__devices=devices, eval__batch_size=batch_size, train__batch_size=60)
        _, program, _ = build(config)
        rows = program.evaluate(program.parallel.replicate(variables), "test")
        assert len(rows["loss"]) == 360
        np.testing.assert_array_equal(rows["prediction"], reference["prediction"])
        assert scores(rows)["loss"] == pytest.approx(scores(reference)["loss"], rel=1e-5)


def test_several_steps_in_one_program_equal_single_steps(one_device):
    settings = {"augment__pad_crop": 1, "augment__mixup": 0.2}
    _, program, state = build(tiny_config(train__steps_per_call=4, train__steps=STEPS, **settings))
    losses = []
    for step in range(0, STEPS, 4):
        state, sums = program.train_steps(4)(state, program.inputs(step))
        losses += (np.asarray(sums["loss"]) / np.asarray(sums["count"])).tolist()
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
