import numpy as np
import pytest

from resnet_jax.config.build import make_recipe
from resnet_jax.progress import unwatched
from resnet_jax.training.probes import LayerProbe, probe_batch_statistics, probe_lesions
from tests.tiny import build, tiny_config


@pytest.mark.parametrize("devices", [1, 4])
def test_gradient_norms_of_the_parts_make_that_of_the_next_step(devices):
    config = tiny_config(parallel__devices=devices, diagnostics__layers=True, augment__mixup=0.2)
    recipe, program, state = build(config)
    state, _ = program.train_steps(1)(state, program.inputs(0))
    parts = LayerProbe(program, recipe).measure(state, 1)["grad_norm"]
    _, sums = program.train_steps(1)(state, program.inputs(1))
    assert list(parts) == ["conv1", "bn1", "stage1_block1", "stage2_block1", "fc"]  # the order of the forward pass
    assert np.sqrt(sum(value**2 for value in parts.values())) == pytest.approx(float(sums["grad_norm"][0]), rel=1e-4)


def test_a_plain_net_has_no_ratio_of_branch_to_skip_in_the_log():
    recipe, program, state = build(tiny_config(model__shortcut="none", diagnostics__layers=True))
    assert LayerProbe(program, recipe).measure(state, 0)["branch_to_skip"] == {}


@pytest.mark.parametrize(("every", "steps", "due"), [(10, 25, [0, 10, 20, 25]), (100, 25, [0, 25])])
def test_layers_are_measured_at_the_start_at_logged_steps_and_at_the_end(every, steps, due):
    recipe = make_recipe(tiny_config(diagnostics__layers=True, log__every_steps=every, train__steps=steps))
    assert [step for step in range(steps + 1) if recipe.is_diagnosis_step(step)] == due
    assert not make_recipe(tiny_config()).is_diagnosis_step(0)


def test_what_a_run_measures_after_training_is_scored_on_its_splits():
    recipe, program, state = build(tiny_config(augment__pad_crop=0, norm__momentum=0.999))
    for step in range(30):
        state, _ = program.train_steps(1)(state, program.inputs(step))
    # With such a momentum the running statistics are still the initial ones, and useless.
    model = recipe.create_model(momentum=0.0)
    scores = probe_batch_statistics(program, model, state, batches=20, split="test", watch=unwatched)
    assert scores["precise"]["loss"] < scores["running"]["loss"] - 0.05
    found = probe_lesions(program, recipe.model, state.variables, "test", unwatched)
    assert found["accuracy"] == scores["running"]["accuracy"]
    assert found["removed"].keys() == {"stage1_block1", "stage2_block1"}
