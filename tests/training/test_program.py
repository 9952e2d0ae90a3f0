"""The compiled programs of a run are traced once."""

import chex
import jax.numpy as jnp
import pytest

from resnet_jax.config import build as module
from resnet_jax.config.build import Assembly, initial_state, make_recipe, random_keys
from resnet_jax.training.replicas import stack_states
from tests.tiny import tiny_config

STREAM = {"data__name": "synthetic:60:5", "data__loader": "stream", "data__image_size": 16, "data__validation_size": 10}
RUNS = {
    "shard_map": {"parallel__devices": 2},
    "pmap": {"parallel__devices": 2, "parallel__wrapper": "pmap"},
    "moving average": {"train__ema_decay": 0.9, "augment__mixup": 0.2},
    "stream": {**STREAM, "augment__view": "random_resized", "train__batch_size": 16},
    "replicas": {"replicas": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_training_step_is_traced_once(name, monkeypatch, fresh_programs):
    settings = dict(RUNS[name])
    count = settings.pop("replicas", 1)
    make = module.make_train_step
    monkeypatch.setattr(module, "make_train_step", lambda *a, **k: chex.assert_max_traces(make(*a, **k), n=1))
    chex.clear_trace_counter()
    recipes = [make_recipe(tiny_config(seed=seed, **settings)) for seed in range(count)]
    assembly = Assembly(recipes[0])
    keys = [random_keys(recipe.config.seed)[0] for recipe in recipes]
    program = assembly.program(keys[0] if count == 1 else jnp.stack(keys))
    states = [initial_state(recipe) for recipe in recipes]
    state = assembly.parallel.replicate(states[0] if count == 1 else stack_states(states))
    for step in range(4):
        state, sums = program.train_steps(1)(state, program.inputs(step))
    program.loader.close()
    chex.assert_shape(list(sums.values()), (1,) if count == 1 else (count, 1))
