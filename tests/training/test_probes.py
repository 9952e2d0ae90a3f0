import numpy as np
import pytest

from resnet_jax.build import Run
from resnet_jax.probes import LayerProbe, probe_batch_statistics, probe_lesions
from tests.tiny import tiny_config


@pytest.mark.parametrize("devices", [1, 4])
def test_gradient_norms_of_the_parts_make_that_of_the_next_step(devices):
    run = Run(tiny_config(parallel__devices=devices, measure__layers=True, augment__mixup=0.2))
    state, _ = run.train_steps(1)(run.initial_state(), run.feed(0))
    parts = LayerProbe(run).measure(state, 1)["grad_norm"]
    _, sums = run.train_steps(1)(state, run.feed(1))
    assert list(parts) == ["conv1", "bn1", "stage1_block1", "stage2_block1", "fc"]  # the order of the forward pass
    assert np.sqrt(sum(value**2 for value in parts.values())) == pytest.approx(float(sums["grad_norm"][0]), rel=1e-4)


def test_a_plain_net_has_no_ratio_of_branch_to_skip_in_the_log():
    run = Run(tiny_config(model__shortcut="none", measure__layers=True))
    assert LayerProbe(run).measure(run.initial_state(), 0)["branch_to_skip"] == {}


@pytest.mark.parametrize(("every", "steps", "due"), [(10, 25, [0, 10, 20, 25]), (100, 25, [0, 25])])
def test_layers_are_measured_at_the_start_at_logged_steps_and_at_the_end(every, steps, due):
    probe = LayerProbe(Run(tiny_config(measure__layers=True, log__every_steps=every, train__steps=steps)))
    assert [step for step in range(steps + 1) if probe.is_due(step)] == due
    assert not LayerProbe(Run(tiny_config())).is_due(0)


def test_what_a_run_measures_after_training_is_scored_on_its_splits():
    run = Run(tiny_config(augment__crop=0, norm__momentum=0.999))
    state = run.initial_state()
    for step in range(30):
        state, _ = run.train_steps(1)(state, run.feed(step))
    # With such a momentum the running statistics are still the initial ones, and useless.
    scores = probe_batch_statistics(run, state, "test")
    assert scores["precise"]["loss"] < scores["running"]["loss"] - 0.05
    found = probe_lesions(run, state.variables, "test")
    assert found["accuracy"] == scores["running"]["accuracy"]
    assert found["removed"].keys() == {"stage1_block1", "stage2_block1"}
