import json

import pytest

import resnet_jax
from resnet_jax.config import default
from resnet_jax.config.stored import flatten, upgrade
from resnet_jax.studies.published import published_error
from resnet_jax.studies.report import write_report
from resnet_jax.studies.study import cell, make_study
from tests.studies.folders import table_row


def he2015(name):
    return resnet_jax.get_config(f"cifar10_he2015:{name}")


def test_the_published_value_stands_beside_ours_with_what_differs(tmp_path):
    cells = [cell("paper", {}), cell("short", {"train.steps": 780, "augment.mixup": 0.2}), cell("plain", {})]
    cells[2]["overrides"]["model.name"] = "plain56"
    study = make_study("Protocols", he2015("resnet56"), cells)
    write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert table_row(text, "paper")["published test error, %"] == "6.97 (He 2015 Table 6; same protocol)"
    assert table_row(text, "short")["published test error, %"] == "6.97 (He 2015 Table 6; another protocol, note 1)"
    assert table_row(text, "plain")["published test error, %"] == ""
    note = "from He 2015 Table 6: train.steps: 780 here, 64000 there; augment.mixup: 0.2 here, 0.0 there."
    assert f"Note 1: what differs {note}" in text


@pytest.mark.parametrize(
    ("name", "percent"), [("resnet20", 8.75), ("resnet32", 7.51), ("resnet44", 7.17), ("resnet56", 6.97)]
)
def test_the_papers_recipe_has_the_papers_protocol(name, percent):
    assert published_error(he2015(name)) == (percent, "He 2015 Table 6", ())


def test_a_published_value_is_found_for_the_same_net_and_data_alone():
    assert published_error(default.get_config()) is None  # digits
    config = he2015("resnet56")
    config.model.shortcut = "B"
    assert published_error(config) is None
    config.model.shortcut = "A"
    config.train.steps, config.train.epochs = None, 10.0
    assert published_error(config).differences == ("train.epochs: 10 here, 64000 steps there",)
    best_of_five = published_error(he2015("resnet110"))
    assert best_of_five.value_percent == 6.43
    assert len(best_of_five.differences) == 1 and "best of 5 runs there" in best_of_five.differences[0]


@pytest.mark.parametrize(
    ("name", "shortcut", "percent", "crops"),
    [
        ("plain34", None, 28.54, 10),
        ("resnet18", "A", 27.88, 10),
        ("resnet34", "A", 25.03, 10),
        ("resnet34", None, 24.52, 10),
        ("resnet34", "C", 24.19, 10),
        ("resnet50_v1", None, 24.7, 1),
    ],
)
def test_imagenets_values_say_how_many_crops_they_had(name, shortcut, percent, crops):
    config = default.get_config()
    config.data.name, config.model.name, config.model.shortcut = "imagenet2012", name, shortcut
    published = published_error(config)
    assert published.value_percent == percent
    assert f"{crops}-crop" in published.source
    assert ("10-crop there, 1-crop here" in published.differences) == (crops == 10)


# Keys that no result depends on.
HARMLESS = set(
    "seed model.num_classes data.data_dir data.workers data.num_workers data.verify data.max_corrupt "
    "train.steps_per_call parallel.wrapper parallel.distributed parallel.check_every_steps parallel.heartbeat_seconds "
    "eval.batch_size eval.every_epochs eval.test_curve "
    "diagnostics.layers diagnostics.lesions diagnostics.precise_statistics checkpoint.keep checkpoint.best_metric "
    "checkpoint.every_minutes checkpoint.on_error train.watchdog_seconds log.every_steps".split()
)
# Valid values where they are no numbers; the first that differs from the recipe's is taken.
VALUES = {
    "init_from": ("/elsewhere",),
    "train.nonfinite": ("skip",),
    "checkpoint.on_error": ("continue",),
    "head": ("new",),
    "freeze": ("^conv1/",),
    "norm.epsilon": (1e-3,),
    "optim.lr_factors": ((("^fc/", 10.0),),),
    "dtype": ("bfloat16",),
    "model.num_classes": (10,),
    "model.shortcut": ("C",),
    "model.stem": ("small",),
    "model.downsample": ("blur",),
    "norm.name": ("group",),
    "norm.scope": ("global",),
    "data.name": ("cifar100",),
    "data.data_dir": ("/elsewhere",),
    "data.image_size": (48,),
    "data.normalization": ("channel", "pixel_mean"),
    "data.loader": ("device", "stream"),
    "data.workers": ("processes",),
    "data.num_workers": (3,),
    "eval.max_examples": (100,),
    "augment.view": ("random_resized",),
    "augment.area": ((0.5, 1.0),),
    "augment.short_sides": ((256, 257),),
    "augment.sizes": (((0.5, 192),),),
    "augment.policy": ("randaugment",),
    "augment.jitter": ((0.4, 0.0, 0.0, 0.0),),
    "train.loss": ("bce",),
    "train.bce_threshold": (0.2,),
    "train.class_weights": ("inverse",),
    "data.verify": ("full",),
    "optim.name": ("lars",),
    "optim.lr_scaling": ("linear",),
    "optim.weight_decay_mode": ("decoupled",),
    "optim.weight_decay_params": (".*/kernel",),
    "optim.schedule": ("cosine",),
    "optim.warmup_shape": ("linear", "constant"),
    "optim.milestones": ((0.4, 0.75),),
    "parallel.devices": (1,),
    "parallel.wrapper": ("pmap",),
    "parallel.distributed": (True,),
    "eval.image_size": (256,),
    "eval.interpolation": ("bicubic",),
    "checkpoint.best_metric": ("loss",),
}
RECIPES = ("cifar10_he2015:resnet56", "cifar10_he2015:resnet110", "imagenet_he2015", "imagenet_he2015:plain34")


def another(key, value):
    """Another value of a key than this one."""
    if key in VALUES:
        return next(other for other in VALUES[key] if other != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


def changed(recipe, key):
    """The recipe with another value of one key."""
    config = resnet_jax.get_config(recipe)
    if key == "train.epochs":
        config.train.steps, config.train.epochs = None, 10.0
        return config
    config.update_from_flattened_dict({key: another(key, flatten(config)[key])})
    return config


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_key_that_can_change_a_result_makes_it_another_protocol(recipe):
    paper = published_error(resnet_jax.get_config(recipe))
    keys = (
        flatten(resnet_jax.get_config(recipe)).keys() - HARMLESS - {"model.name"}
    )  # another net has another published error
    assert {"norm.scope", "eval.crop_fraction", "train.grad_accum_steps", "dtype"} <= keys
    unnoticed = []
    for key in keys:
        found = published_error(changed(recipe, key))
        if key in ("model.shortcut", "data.name"):  # another net, or other data
            unnoticed += [key] if found == paper else []
        elif len(found.differences) != len(paper.differences) + 1 or key not in found.differences[0]:
            unnoticed.append(key)
    assert not unnoticed


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_key_without_influence_on_a_result_makes_it_another_protocol(recipe):
    paper = published_error(resnet_jax.get_config(recipe))
    for key in HARMLESS:
        assert published_error(changed(recipe, key)) == paper, key


def test_a_run_of_an_earlier_version_has_the_papers_protocol_too():
    stored = json.loads(he2015("resnet56").to_json())
    stored["precision"] = stored.pop("dtype")
    stored["train"]["microbatches"] = stored["train"].pop("grad_accum_steps")
    assert published_error(upgrade(stored)).differences == ()


def test_the_row_says_another_protocol_where_only_the_evaluation_differs(tmp_path):
    cells = [cell("norms", {"norm.scope": "global"}), cell("crop", {"eval.crop_fraction": 1.0})]
    write_report(make_study("Protocols", he2015("resnet56"), cells), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "another protocol, note 1" in table_row(text, "norms")["published test error, %"]
    assert "Note 1: what differs from He 2015 Table 6: norm.scope: global here, local there." in text
    assert "Note 2: what differs from He 2015 Table 6: eval.crop_fraction: 1.0 here, 0.875 there." in text


def test_pre_activation_nets_are_warmed_up_as_in_their_paper():
    config = he2015("resnet110")
    config.model.name = "preact_resnet164"
    assert published_error(config) == (5.46, "He 2016", ("the median of 5 runs there, the mean over seeds here",))
    config.optim.warmup_steps = 0
    assert "optim.warmup_steps: 0 here, 400 there" in published_error(config).differences
