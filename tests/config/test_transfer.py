"""Runs that begin with the weights of others: what fits, what stays, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import resnet_jax
from resnet_jax import UserError
from resnet_jax.commands import make_console
from resnet_jax.config.build import make_recipe, resolve
from resnet_jax.config.runs import load_model
from resnet_jax.config.train import train
from resnet_jax.data.info import DATASETS
from resnet_jax.weights.native import write_weights
from tests.data.test_folders import write_classes
from tests.runs import assert_the_same_end, last_state, start_of, stop_after
from tests.tiny import build, tiny_config

QUIET = make_console(quiet=True)
HEAD_ALONE = {"head": "new", "freeze": "^(?!fc/)", "data__normalization": "weights"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A short run on the digits."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    train(tiny_config(train__steps=8), workdir, QUIET)
    return workdir


def model_arrays(workdir):
    return last_state(workdir)["model"]


def without_head(arrays):
    return {name: x for name, x in arrays.items() if "fc." not in name and not name.startswith("ema.")}


@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars", "muon"])
def test_frozen_weights_and_their_statistics_stay_to_the_bit_and_have_no_optimizer_state(
    wrapper, optimizer, source, tmp_path
):
    settings = {"optim__name": optimizer, "optim__lr": 0.01, "parallel__wrapper": wrapper, "parallel__devices": 4}
    config = tiny_config(init_from=str(source), train__steps=5, optim__clip_norm=1.0, **HEAD_ALONE, **settings)
    train(config, tmp_path / "run", QUIET)
    before, after = model_arrays(source), last_state(tmp_path / "run")
    assert without_head(after["model"]).keys() == without_head(before).keys()
    for name, array in without_head(before).items():
        assert after["model"][name].tobytes() == array.tobytes(), name
    assert not np.array_equal(after["model"]["params.fc.kernel"], before["params.fc.kernel"])
    moments = [name for name in after["optimizer"] if "conv" in name or "bn" in name]
    assert not moments and any("fc.kernel" in name for name in after["optimizer"])


def test_a_weight_of_minus_zero_keeps_its_sign():
    """Uncompiled: XLA leaves out an addition of zero."""
    recipe = make_recipe(tiny_config(freeze="^conv1/", init_from="/elsewhere"))
    params = jax.tree.map(lambda x: jnp.full(x.shape, -0.0), recipe.variable_shapes["params"])
    updates, _ = recipe.optimizer.update(jax.tree.map(jnp.ones_like, params), recipe.optimizer.init(params), params)
    assert np.signbit(optax.apply_updates(params, updates)["conv1"]["kernel"]).all()


def test_no_gradient_is_computed_for_frozen_layers(source):
    def flops(**settings):
        _, program, state = build(tiny_config(init_from=str(source), **settings))
        return program.train_steps(1).lower(state, program.inputs(0)).compile().cost_analysis()["flops"]

    assert flops(head="new", freeze="^(?!fc/)") < 0.5 * flops()  # backward is twice the forward pass


def test_statistics_of_norms_that_are_not_frozen_move(source, tmp_path):
    config = tiny_config(init_from=str(source), train__steps=3, freeze="^(conv1|bn1)/")
    train(config, tmp_path / "run", QUIET)
    before, after = model_arrays(source), model_arrays(tmp_path / "run")
    stands = {name for name in before if name.startswith("batch_stats") and np.array_equal(before[name], after[name])}
    assert stands == {"batch_stats.bn1.mean", "batch_stats.bn1.var"}


def test_factors_multiply_the_step_of_the_weights_that_they_name(source):
    def moved(**settings):
        _, program, state = build(tiny_config(optim__momentum=0.0, optim__schedule="constant", **settings))
        before = jax.device_get(state.params)
        state, _ = program.train_steps(1)(state, program.inputs(0))
        return jax.tree.map(np.subtract, jax.device_get(state.params), before)

    plain, scaled = moved(), moved(optim__lr_factors=(("^fc/kernel", 10.0), ("^fc|^bn1", 0.5)))
    factors = {"fc/kernel": 10.0, "fc/bias": 0.5, "bn1/scale": 0.5, "bn1/bias": 0.5}
    for (name, one), other in zip(
        traverse_util.flatten_dict(plain, sep="/").items(), jax.tree.leaves(scaled), strict=True
    ):
        np.testing.assert_allclose(other, factors.get(name, 1.0) * one, rtol=1e-3, atol=2e-6, err_msg=name)


def test_a_stopped_run_ends_as_if_it_had_not_been_even_where_its_first_weights_are_gone(source, tmp_path, monkeypatch):
    first = tmp_path / "first"
    shutil.copytree(source, first)
    config = tiny_config(init_from=str(first), train__steps=12, train__ema_decay=0.9, **HEAD_ALONE)
    train(config, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(UserError):
            train(config, tmp_path / "run", QUIET)
    shutil.rmtree(first)
    train(config, tmp_path / "run", QUIET)
    assert_the_same_end(tmp_path / "run", tmp_path / "whole")


def test_exported_files_and_those_of_another_library_are_the_same_start(source, tmp_path):
    card, _, variables = load_model(source)
    write_weights(tmp_path / "ours.safetensors", card, variables)
    write_weights(tmp_path / "torch.safetensors", card, variables, "torch")
    starts = [start_of(tiny_config(init_from=str(tmp_path / f"{kind}.safetensors"))) for kind in ("ours", "torch")]
    for start in starts:
        jax.tree.map(np.testing.assert_array_equal, start.variables, variables)


def test_weights_of_another_library_are_read_with_the_attributes_of_the_run(tmp_path):
    card = make_recipe(tiny_config(model__shortcut="B")).card({})
    variables = card.create_model().init(jax.random.key(0), jnp.zeros((1, *card.input_shape)), train=False)
    write_weights(tmp_path / "torch.safetensors", card, variables, "torch")
    start = start_of(tiny_config(model__shortcut="B", init_from=str(tmp_path / "torch.safetensors")))
    jax.tree.map(np.testing.assert_array_equal, start.variables, dict(variables))


def test_a_run_may_begin_with_weights_at_a_url(source):
    start = start_of(tiny_config(init_from=f"file://{source}"))
    jax.tree.map(np.testing.assert_array_equal, start.variables, load_model(source)[2])


def test_grey_images_through_summed_channels_are_the_same_colourless_images(tmp_path):
    model = resnet_jax.create_model("tiny", num_classes=10)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    colour = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    card = make_recipe(tiny_config()).card({})
    rgb = {**card.preprocessing, "channel_order": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3}
    write_weights(tmp_path / "rgb.safetensors", replaced(card, rgb, 3), colour)
    config = tiny_config(init_from=str(tmp_path / "rgb.safetensors"), data__normalization="weights")
    start = start_of(config)
    assert "its three input channels summed for grey images" in start.words
    expected = model.apply(colour, jnp.repeat(images, 3, axis=-1), train=False)
    np.testing.assert_allclose(model.apply(start.variables, images, train=False), expected, rtol=1e-4, atol=1e-5)
    info = make_recipe(resolve(config)).info
    assert (info.mean, info.std) == ((0.5,), (0.25,))


def replaced(card, preprocessing, channels):
    return dataclasses.replace(card, preprocessing=preprocessing, input_shape=(*card.input_shape[:2], channels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__shortcut": "B"}, "computes what tiny does here, found tiny with other shortcut; set model"),
        ({"model__name": "plain20"}, "computes what plain20 does here, found tiny with other stage_sizes"),
        ({"model__shortcut": "none"}, "found tiny with other shortcut"),
        ({"norm__epsilon": 0.1}, "found tiny with other norm"),
        ({"init_from": "/nowhere.pth"}, "init_from: expected weights to begin with, found no /nowhere.pth"),
        ({"head": "new", "freeze": "^cnov1"}, "freeze: '.cnov1' occurs in no parameter's path, like bn1/.* or stage2"),
        ({"freeze": "("}, "freeze: expected a regular expression"),
        ({"optim__lr_factors": (("^fc", -1.0),)}, "optim.lr_factors: expected pairs of a regular"),
        ({"head": "old"}, "head: expected one of its names, found 'old'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings, message, source, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny_config(**{"init_from": str(source), **settings}), tmp_path / "run", QUIET)


def test_a_pattern_that_fits_nothing_is_refused_before_the_workdir_is_made(tmp_path):
    with pytest.raises(UserError, match="optim.lr_factors: '.cf/' occurs in no parameter's path"):
        train(tiny_config(optim__lr_factors=(("^cf/", 10.0),)), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"head": "new"}, {"freeze": "^fc"}, {"data__normalization": "weights"}])
def test_what_needs_weights_to_begin_with_says_so(settings):
    with pytest.raises(UserError, match="expected it with init_from alone, found no weights to begin with"):
        resolve(tiny_config(**settings))


def test_a_card_in_the_current_directory_is_not_that_of_the_run(source, tmp_path, monkeypatch):
    card = json.loads((source / "card.json").read_text())
    card["preprocessing"]["mean"] = [0.9]
    (tmp_path / "card.json").write_text(json.dumps(card))
    monkeypatch.chdir(tmp_path)
    config = resolve(tiny_config(init_from=str(source), data__normalization="weights"))
    assert make_recipe(config).info.mean == DATASETS["digits"].mean
    assert make_recipe(config, tmp_path).info.mean == (0.9,)


def test_another_set_of_classes_needs_a_new_head(source, tmp_path):
    write_classes(tmp_path / "photos" / "train", 6)
    write_classes(tmp_path / "photos" / "test", 2)
    config = photos(tmp_path / "photos", init_from=str(source))
    with pytest.raises(UserError, match="expected weights of the 2 classes of the data .cat, .*add --config.head"):
        train(config, tmp_path / "run", QUIET)
    config.head = "new"
    assert train(config, tmp_path / "run", QUIET)["completed"]
    assert model_arrays(tmp_path / "run")["params.fc.kernel"].shape[1] == 2


def photos(root, recipe="finetune:all", **settings):
    config = resnet_jax.get_config(recipe)
    config.model.name = "tiny"
    config.data.data_dir = str(root)
    config.data.image_size, config.train.batch_size, config.parallel.devices = 16, 4, 1
    config.train.epochs, config.optim.warmup_epochs = 1.0, 0.0
    config.data.validation_size = 0
    config.update(settings)
    return config


def test_the_two_commands_of_the_finetuning_recipe(source, tmp_path, monkeypatch):
    """First the head on frozen layers, then everything from there."""
    write_classes(tmp_path / "data" / "train", 8)
    write_classes(tmp_path / "data" / "test", 2)
    train(photos(tmp_path / "data", "finetune", init_from=str(source)), tmp_path / "runs" / "head", QUIET)
    monkeypatch.chdir(tmp_path)
    second = photos(tmp_path / "data")
    assert second.init_from == "runs/head"
    train(second, tmp_path / "runs" / "all", QUIET)
    given, began, ended = (
        model_arrays(path) for path in (source, tmp_path / "runs" / "head", tmp_path / "runs" / "all")
    )
    changed = [name for name in given if not np.array_equal(given[name], began[name])]
    assert changed == ["params.conv1.kernel", "params.fc.bias", "params.fc.kernel"]  # grey became colour; the head
    assert all(not np.array_equal(began[name], ended[name]) for name in began if name.endswith("kernel"))
    cards = [json.loads((tmp_path / "runs" / name / "card.json").read_text()) for name in ("head", "all")]
    assert cards[0]["preprocessing"]["mean"] == cards[1]["preprocessing"]["mean"] == [DATASETS["digits"].mean[0]] * 3
