"""Runs whose nets have their equal blocks in a loop."""

import functools

import jax
import numpy as np
import pytest

from resnet_jax import load_checkpoint, train
from resnet_jax.config.runs import load_card
from resnet_jax.models import MODELS
from resnet_jax.models.scan import unstack_blocks
from resnet_jax.weights.native import read_native, write_weights
from tests.runs import start_of
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def deep_net(monkeypatch):
    monkeypatch.setitem(MODELS, "deep", functools.partial(MODELS["tiny"], stage_sizes=(3, 1)))


def deep_config(**overrides):
    return tiny_config(model__name="deep", train__steps=2, eval__every_epochs=1.0, **overrides)


def logits(model, variables):
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    return np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))


def test_a_scanned_run_is_loaded_written_and_trained_further_like_any_other(tmp_path):
    train(deep_config(model__scan_blocks=True, model__remat=True), tmp_path / "scanned")
    model, variables = load_checkpoint(tmp_path / "scanned")[:2]
    assert variables["params"]["stage1_blocks"]["conv1"]["kernel"].shape == (2, 3, 3, 4, 4)
    expected = logits(model, variables)
    np.testing.assert_allclose(logits(*unstack_blocks(model, variables)), expected, rtol=1e-4, atol=1e-5)

    file = tmp_path / "weights.safetensors"
    write_weights(file, load_card(tmp_path / "scanned"), variables)
    np.testing.assert_array_equal(logits(model, read_native(file)[1]), expected)

    for scan_blocks in (False, True):
        variables = start_of(deep_config(init_from=str(file), model__scan_blocks=scan_blocks)).variables
        start = model.clone(scan_blocks=scan_blocks)
        np.testing.assert_allclose(logits(start, variables), expected, rtol=1e-4, atol=1e-5)
