"""Steps that do not fit into memory are refused before they run."""

import re

import jax
import pytest
from rich.console import Console

from resnet_jax import UserError, train
from resnet_jax.config import memory
from resnet_jax.config.build import state_shapes
from resnet_jax.config.plan import planned_program, planned_recipe
from resnet_jax.device_memory import memory_needed
from tests.tiny import tiny_config

QUIET = Console(quiet=True)


def needed(config):
    recipe = planned_recipe(config)
    program = planned_program(recipe, jax.devices()[: config.parallel.devices])
    return memory_needed(program.compile_train_steps(1, state_shapes(recipe), program.loader.input_shapes(0)))


@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(tmp_path, monkeypatch, wrapper):
    def config(batch):
        return tiny_config(parallel__wrapper=wrapper, parallel__devices=2, train__batch_size=batch, train__steps=1)

    limit = needed(config(100))
    monkeypatch.setattr(memory, "memory_of", lambda device: limit)
    with pytest.raises(UserError, match="train.batch_size: a step with 1,000 images needs .* which has") as refused:
        train(config(1000), tmp_path / "large", QUIET)
    assert (tmp_path / "large" / "metrics.jsonl").read_text() == ""
    largest = int(re.search(r"--config.train.batch_size=(\d+)$", str(refused.value))[1])
    assert largest >= 90 and needed(config(largest)) <= limit < needed(config(largest + 20))


def test_a_model_that_does_not_fit_is_refused_whatever_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda device: 10_000)
    with pytest.raises(UserError, match="a smaller net or image fits; or more devices"):
        train(tiny_config(train__steps=1), tmp_path, QUIET)


def test_a_batch_of_evaluations_that_does_not_fit_is_refused_by_its_key(tmp_path, monkeypatch):
    config = tiny_config(eval__batch_size=900, train__batch_size=2, train__steps=1)
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 * needed(config))
    with pytest.raises(UserError, match="eval.batch_size: a batch of 900 needs .*; try a smaller one"):
        train(config, tmp_path, QUIET)
