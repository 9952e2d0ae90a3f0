import importlib
import inspect
import json
import pathlib

import numpy as np
import pytest

from resnet_jax import get_config
from resnet_jax.config.build import make_recipe
from resnet_jax.config.flags import parse_training
from resnet_jax.config.train import train as train_run
from resnet_jax.data.splits import KNOWN_DATASETS
from resnet_jax.training.logs import read_metrics
from tests import tiny  # noqa: F401  puts the net into the registry

ROOT = pathlib.Path(__file__).parent.parent.parent
PUBLISHED = json.loads((ROOT / "resnet_jax" / "studies" / "published.json").read_text())
IMAGENET = (
    "imagenet_resnet50 imagenet_he2015 imagenet_torchvision_v2 imagenet_a1 imagenet_a2 imagenet_a3 imagenet_fast "
    "imagenet_large_batch"
).split()
STUDIES = ["ablations/he2015_table2", "ablations/he2015_table3"]


def recipe(name):
    """The config of an experiment, or that which a study varies; `name` may have an argument after a colon."""
    config = get_config(name)
    return config.experiment if name in STUDIES else config


def docstring(name):
    return inspect.getdoc(importlib.import_module(f"configs.{name}"))


def on_synthetic_data(config, data, batch_size=None):
    """The recipe on synthetic images, with the tiny net, on one device."""
    config.dtype = "float32"
    config.model.name, config.model.shortcut = "tiny", None
    config.data.name = data
    config.train.batch_size = batch_size or config.train.batch_size
    config.parallel.devices, config.parallel.distributed = 1, False
    return config


# --- they train ---


def shrunk(config):
    """Two steps on images of 32 pixels."""
    config = on_synthetic_data(config, "synthetic:48:12", batch_size=12)
    config.data.validation_size = min(config.data.validation_size, 8)
    config.data.image_size = 32
    config.augment.short_sides = (36, 60)
    config.augment.sizes = tuple((start, size // 5) for start, size in config.augment.sizes)
    config.train.epochs, config.train.steps = None, 2
    config.optim.warmup_epochs = 0.25 if config.optim.warmup_epochs else 0.0
    config.optim.milestones = (0.5,)
    config.optim.peak_fraction = 0.5
    config.eval.batch_size = 8
    config.eval.image_size = 32
    config.log.every_steps = 1
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", [*IMAGENET, "imagenette", "folder", STUDIES[0]])
def test_every_recipe_trains(tmp_path, name):
    config = shrunk(recipe(name))
    result = train_run(config, tmp_path)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2]
    assert np.isfinite([line["loss"] for line in lines]).all()
    assert result["completed"]
    assert np.isfinite(result["last"]["test"]["loss"])


def test_every_recipe_of_data_on_disk_is_trained_above():
    on_disk = set()
    for path in (ROOT / "configs").glob("*.py"):
        config, *_ = parse_training(["train.py", f"--config={path}", "--workdir=x"], "")
        if config.data.loader == "stream":
            assert config.data.name in KNOWN_DATASETS
            on_disk.add(path.stem)
    assert on_disk == {*IMAGENET, "imagenette", "folder", "finetune"}  # the last in test_transfer.py


# --- what they say of others' results ---


def table(group, source):
    return next(values for name, values in PUBLISHED[group].items() if name.startswith(source))


def test_published_results_are_those_of_published_json():
    top1, error = "imagenet_val_top1_percent", "imagenet_val_top1_error_percent"
    he2015 = {
        **table(error, "He 2015 Table 2"),
        **{net: value for net, value in table(error, "He 2015 Table 3").items() if net.startswith("resnet")},
    }
    quoted = {
        "imagenet_resnet50": table(top1, "Flax ImageNet example README").values(),
        "imagenet_he2015": [*he2015.values(), *table(error, "He 2015 released models").values()],
        "imagenet_torchvision_v2": table(top1, "torchvision IMAGENET1K_V2").values(),
    }
    strikes_back = table(top1, "timm results-imagenet.csv, ResNet strikes back")
    for name, key in (("imagenet_a1", "a1_600ep"), ("imagenet_a2", "a2_300ep"), ("imagenet_a3", "a3_100ep")):
        quoted[name] = [strikes_back[key], round(strikes_back[key], 1)]
    for name, values in quoted.items():
        words = docstring(name).replace(",", " ").replace(";", " ").split()
        words = {word.removesuffix(".") for word in words}
        for value in values:
            assert {f"{value:.{digits}f}" for digits in (1, 2, 3) if round(value, digits) == value} & words, (
                name,
                value,
            )


@pytest.mark.parametrize("name", IMAGENET)
def test_results_of_others_are_said_to_be_theirs(name):
    text = " ".join(docstring(name).split())
    assert "published by others" in text or "published by the authors" in text
    assert "not reproduced by us" in text
    assert "python -m resnet_jax.data.prepare imagenet2012" in text
    assert f"python train.py --config=configs/{name}.py" in text


# --- hand-computed truths about them ---


def run_on_imagenet(name):
    """The recipe on as many synthetic images as ImageNet has, where steps can be counted."""
    config = on_synthetic_data(recipe(name), "synthetic:1281167:1000")
    config.model.stem = "imagenet"
    return make_recipe(config)


@pytest.mark.parametrize(
    ("name", "num_steps", "rates"),
    [
        # 1281167 / 1024 = 1251.14 steps an epoch, 90 of them; 0.1 * 1024 / 256
        ("imagenet_resnet50", 112_603, {0: 0, 6256: 0.4, 112_603: 0}),
        (
            "imagenet_he2015:resnet34",
            600_000,
            {0: 0.1, 149_999: 0.1, 150_000: 0.01, 300_000: 0.001, 449_999: 0.001, 450_000: 0.0001},
        ),
        ("imagenet_torchvision_v2", 750_684, {0: 0.005, 6256: 0.5, 750_684: 0}),
        # 1281167 / 2064 = 620.72; 1281167 / 2048 = 625.57
        ("imagenet_a1", 372_433, {0: 0, 3104: 0.005, 372_433: 0}),
        ("imagenet_a2", 186_217, {0: 0, 3104: 0.005, 186_217: 0}),
        ("imagenet_a3", 62_557, {0: 0, 3128: 0.008, 62_557: 0}),
        # 1281167 / 4096 = 312.79; the peak after two epochs
        ("imagenet_fast", 5005, {0: 1.7e-4, 626: 1.7, 5005: 0}),
        ("imagenet_fast:88", 27_526, {0: 1.7e-4, 626: 1.7, 27_526: 0}),
        # 14 epochs of 39.10 steps; halfway down from there a quarter is left
        ("imagenet_large_batch", 3558, {0: 0, 548: 32, 548 + 1505: 8, 3558: 0}),
    ],
)
def test_the_rates_of_a_recipe_are_those_of_its_source(name, num_steps, rates):
    run = run_on_imagenet(name)
    assert run.num_steps == num_steps
    assert [run.learning_rate(step) for step in rates] == pytest.approx(list(rates.values()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("name", "start", "end"), [("imagenet_fast", 11, 13), ("imagenet_fast:88", 65, 76)])
def test_the_images_of_the_fast_recipe_grow_as_in_its_source(name, start, end):
    config = recipe(name)
    for epoch in range(int(config.train.epochs)):
        theirs = 32 * round(np.interp(epoch, [start, end], [160, 192]) / 32)
        middle = (epoch + 0.5) / config.train.epochs
        assert [size for begin, size in config.augment.sizes if begin <= middle][-1] == theirs


@pytest.mark.parametrize("name", ["imagenet_torchvision_v2", "imagenet_a1", "imagenet_a2", "imagenet_a3"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_batches_of_repeated_and_mixed_images_go_on_up_to_eight_devices(name, devices):
    config = recipe(name)
    assert config.train.batch_size % (2 * devices) == 0
    assert config.train.batch_size % config.augment.repeats == 0
    assert abs(config.train.batch_size - (1024 if "torchvision" in name else 2048)) <= 16


def test_the_average_of_torchvisions_weights_forgets_as_fast_here():
    theirs = 1 - (1 - 0.99998) * 8 * 128 * 32 / 600  # every 32 steps
    assert recipe("imagenet_torchvision_v2").train.ema_decay ** 32 == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "net", "shortcut"),
    [
        ("imagenet_he2015", "resnet50_v1", None),
        ("imagenet_he2015:resnet152_v1", "resnet152_v1", None),
        ("imagenet_he2015:resnet18", "resnet18", "A"),
        ("imagenet_he2015:resnet34", "resnet34", "A"),
        ("imagenet_he2015:plain34", "plain34", None),
    ],
)
def test_the_papers_imagenet_nets_have_the_papers_shortcuts(name, net, shortcut):
    config = recipe(name)
    assert (config.model.name, config.model.shortcut) == (net, shortcut)


def test_the_studies_follow_the_papers_imagenet_recipe():
    for study, net in zip(STUDIES, ("resnet18", "resnet34"), strict=True):
        assert recipe(study).to_json() == recipe(f"imagenet_he2015:{net}").to_json()


@pytest.mark.parametrize(
    ("name", "resized", "cropped"),
    [
        ("imagenet_resnet50", 256, 224),
        ("imagenet_he2015", 256, 224),
        ("imagenet_torchvision_v2", 232, 224),
        ("imagenet_a1", 236, 224),
        ("imagenet_a3", 236, 224),
        ("imagenet_fast", 293, 256),
        ("imagenet_large_batch", 256, 224),
    ],
)
def test_images_are_evaluated_at_the_size_of_the_source(name, resized, cropped):
    config = recipe(name)
    size = config.eval.image_size or config.data.image_size
    assert (round(size / config.eval.crop_fraction), size) == (resized, cropped)


def test_weight_decay_spares_what_the_source_spares():
    import jax

    from resnet_jax.models import create_model
    from resnet_jax.training.optim import path_mask

    model = create_model("resnet50", num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)["params"]

    def decayed(name):
        return sum(jax.tree.leaves(path_mask(recipe(name).optim.weight_decay_params, "")(params)))

    # 53 convolutions and a dense kernel; with them the dense bias; with them scale and bias of 4 norms of shortcuts
    names = "imagenet_resnet50 imagenet_a1 imagenet_large_batch imagenet_torchvision_v2 imagenet_fast imagenet_he2015"
    assert [decayed(name) for name in names.split()] == [54, 54, 54, 55, 63, 161]
