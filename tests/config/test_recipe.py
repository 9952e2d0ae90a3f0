"""The recipe: pure, and all that screens and studies need."""

import json

import jax
import pytest

import resnet_jax
from resnet_jax import UserError, get_config, train
from resnet_jax.config.build import make_recipe
from resnet_jax.config.recipe import Recipe
from resnet_jax.data import DATASETS
from tests.tiny import tiny_config


@pytest.fixture
def nothing_but_thinking(monkeypatch):
    """Neither devices, data nor files, and nothing compiled."""
    for name in ("jax.devices", "jax.device_count", "jax.jit", "jax.device_put", "builtins.open"):
        monkeypatch.setattr(name, lambda *a, name=name, **k: pytest.fail(f"{name} was called"))


def test_a_recipe_needs_a_config_and_metadata_alone(nothing_but_thinking):
    config = tiny_config(model__name="resnet20", train__ema_decay=0.5, data__normalization="pixel_mean")
    before = config.to_json()
    recipe = Recipe(config, DATASETS["digits"])
    assert (recipe.num_parameters, recipe.num_steps, recipe.num_examples) == (269_434, 30, 1257)
    assert recipe.layers[0].name == "conv1" and recipe.multiply_adds > 0
    assert recipe.describe(["cpu"] * 2, "", "runs/x")["devices"].startswith("2 x cpu, shard_map")
    assert repr(recipe.card({}, mean_image=[[[0.0]]]).create_model()) == repr(recipe.model)
    assert config.to_json() == before


def test_durations_are_those_of_the_config():
    recipe = make_recipe(tiny_config(train__steps=None, train__epochs=2.0, eval__every_epochs=0.5, log__every_steps=7))
    assert recipe.num_steps == 40  # 2 * 1257 / 64 = 39.3
    assert [step for step in range(recipe.num_steps + 1) if recipe.is_eval_step(step)] == [10, 20, 30, 40]
    assert [step for step in range(1, 25) if recipe.is_log_step(step)] == [7, 10, 14, 20, 21]
    assert recipe.epoch(20) == pytest.approx(20 * 64 / 1257)


def test_several_steps_make_a_call_only_where_nothing_is_due_inside():
    recipe = make_recipe(tiny_config(train__steps_per_call=4, log__every_steps=8, eval__every_epochs=0.5))
    counts, step = [], 0
    while step < recipe.num_steps:
        counts.append(recipe.steps_in_call(step))
        step += counts[-1]
    assert counts == [4, 4, 1, 1, 1, 1, 4, 4, 4, 4, 1, 1]  # evaluations after 10, 20 and 30; lines after 8, 16, 24


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_model_settings_are_plain_json_and_make_the_model(norm):
    recipe = make_recipe(tiny_config(norm__name=norm, norm__groups=2, dtype="bfloat16", model__downsample="blur"))
    settings = json.loads(json.dumps(recipe.model_settings))
    model = resnet_jax.create_model(**{**settings, "dtype": jax.numpy.dtype("bfloat16")})
    assert repr(model) == repr(recipe.model)


def test_a_config_is_found_by_name_or_path(tmp_path):
    assert get_config().to_json() == get_config("default").to_json()
    assert get_config("cifar10_he2015:resnet56").model.name == "resnet56"
    assert get_config("ablations/digits").title.startswith("Residual")
    (tmp_path / "mine.py").write_text(
        "import resnet_jax\ndef get_config():\n    return resnet_jax.get_config('cifar10')\n"
    )
    assert get_config(str(tmp_path / "mine.py")).data.name == "cifar10"
    with pytest.raises(UserError, match="did you mean 'cifar10_he2015'"):
        get_config("cifar10_he2016")
    with pytest.raises(UserError, match="expected no argument after fashion_mnist, found 'x'"):
        get_config("fashion_mnist:x")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="expected a function get_config in"):
        get_config(str(tmp_path / "empty.py"))


def test_only_the_config_of_an_experiment_is_trained(tmp_path):
    for config in ("default", get_config("ablations/digits")):
        with pytest.raises(UserError, match="train: expected the config of an experiment"):
            train(config, tmp_path / "run")


def test_training_changes_no_config(tmp_path):
    config = tiny_config(train__steps=2)
    before = config.to_json()
    result = train(config, tmp_path)
    assert config.to_json() == before
    assert result == json.loads((tmp_path / "result.json").read_text())


def test_a_finished_run_answers_without_data_or_devices(finished, monkeypatch):
    from tests.runs import SETTINGS

    for name in ("resnet_jax.config.train.make_recipe", "resnet_jax.config.train.Assembly"):
        monkeypatch.setattr(name, lambda *a: pytest.fail("more than the result was asked for"))
    assert train(tiny_config(**SETTINGS), finished[0]) == finished[1]
