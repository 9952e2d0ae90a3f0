"""Repositories of the Hugging Face Hub, from its cache on the disk; the Hub itself was not asked."""

import json

import jax
import numpy as np
import pytest

from resnet_jax import UserError, load_pretrained, preprocessing
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.weights.native import write_weights
from resnet_jax.weights.pretrained import read_pretrained
from tests.runs import start_of
from tests.tiny import make_recipe, tiny_config

constants = pytest.importorskip("huggingface_hub.constants")

CONFIG = {
    "architecture": "tiny",
    "num_classes": 10,
    "pretrained_cfg": {
        "input_size": [3, 176, 176],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
    },
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Writes a repository into a cache that is the only one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def write(config):
        card = make_recipe(tiny_config()).card({})
        shapes = card.variable_shapes()
        rng = np.random.default_rng(0)
        variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
        folder = tmp_path / "models--timm--tiny.test"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        (snapshot / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        write_weights(snapshot / "model.safetensors", card, variables, "torch")
        return variables

    return write


def test_a_repository_gives_its_weights_and_its_preprocessing(repository):
    expected = repository(CONFIG)
    model, variables = load_pretrained("tiny", "hf:timm/tiny.test")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    found = preprocessing(model)
    assert (found.size, found.crop_fraction, found.interpolation) == (176, 0.95, "bicubic")
    np.testing.assert_allclose([found.mean, found.std], [[0.4], [0.25]])  # the means over colours, as tiny sees grey


def test_a_run_may_begin_with_the_weights_of_a_repository(repository):
    expected = repository(CONFIG)
    start = start_of(tiny_config(init_from="hf:timm/tiny.test"))
    jax.tree.map(np.testing.assert_array_equal, start.variables, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "architecture": "resnet50"}, "expected tiny, found resnet50"),
        ({"architecture": "tiny"}, "expected a config.json as timm writes it"),
        ("[1]", "expected a config.json as timm writes it"),
        ("{", "expected a config.json as timm writes it"),
    ],
)
def test_another_architecture_and_a_config_that_is_none_are_refused(config, message, repository):
    repository(config)
    with pytest.raises(UserError, match=message):
        load_pretrained("tiny", "hf:timm/tiny.test")


def test_a_repository_that_cannot_be_had_is_one_line(repository):
    with pytest.raises(UserError, match="hf:timm/nowhere: expected a repository with config.json") as error:
        load_pretrained("tiny", "hf:timm/nowhere")
    assert "\n" not in str(error.value)


def test_a_card_is_plain_json(repository):
    repository(CONFIG)
    card = read_pretrained("tiny", "hf:timm/tiny.test").card
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card
