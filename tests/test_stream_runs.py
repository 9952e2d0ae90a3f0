"""Whole runs of the stream loader: a folder of photographs, damaged images, several devices."""

import json
import shutil

import numpy as np
import pytest
import simplejpeg

import resnet_jax
from resnet_jax import UserError, evaluate, loop
from resnet_jax.build import Run
from resnet_jax.errors import InterruptedRun
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """20 and 6 JPEGs in 2 classes, cut from photographs."""
    from sklearn.datasets import load_sample_images

    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for index in range(count):
            name = ("china", "flower")[index % 2]
            top, left = rng.integers((427 - 200, 640 - 260))
            cut = load_sample_images().images[index % 2][top : top + 200, left : left + 260]
            path = root / split / name / f"{index:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(cut)))
    return root


def photo_config(folder, **overrides):
    settings = {
        "data__name": "folder",
        "data__data_dir": str(folder),
        "data__loader": "stream",
        "data__image_size": 16,
        "data__validation_size": 4,
        "augment__view": "random_resized",
        "augment__flip": True,
        "augment__crop": 0,
        "train__batch_size": 8,
        "train__steps": 6,
        "eval__every_epochs": 1.5,
        "log__every_steps": 2,
    }
    return tiny_config(**{**settings, **overrides})


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.train(photo_config(folder), workdir)


def training_losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


def test_a_run_on_a_folder_reports_what_a_script_finds(finished):
    workdir, result = finished
    assert result["completed"] and result["data"] == "folder"
    assert json.loads((workdir / "config.json").read_text())["model"]["num_classes"] == 2
    model, variables = resnet_jax.load_checkpoint(workdir, "latest")
    images, labels = resnet_jax.load_data(workdir, "test")
    logits = model.apply(variables, images, train=False)
    assert int((logits.argmax(axis=-1) == labels).sum()) / 6 == result["last"]["test"]["accuracy"]
    scores = evaluate.evaluate(str(workdir), "test", "latest")
    assert scores["count"] == 6 and set(scores["per_class"]) == {"china", "flower"}
    assert scores["loss"] == result["last"]["test"]["loss"]


def test_every_log_line_says_how_long_the_device_waited(finished):
    lines = map(json.loads, (finished[0] / "metrics.jsonl").read_text().splitlines())
    shares = [line["input_wait"] for line in lines if line["split"] == "train"]
    assert len(shares) >= 3 and all(0 <= share <= 1 for share in shares)


def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not(folder, finished, tmp_path):
    for stop in (1, 5):
        with pytest.raises(InterruptedRun):
            loop.train(photo_config(folder), tmp_path / str(stop), stop_requested=lambda step, stop=stop: step == stop)
        result = loop.train(photo_config(folder), tmp_path / str(stop))
        assert result["last"] == finished[1]["last"]
        assert training_losses(tmp_path / str(stop)) == training_losses(finished[0])


@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_four_devices_train_on_the_batch_of_one(folder, wrapper):
    losses = []
    for devices in (1, 4):
        run = Run(photo_config(folder, parallel__devices=devices, parallel__wrapper=wrapper, norm__scope="global"))
        _, sums = run.train_steps(1)(run.initial_state(), run.feed(3))
        losses.append(float(sums["loss"][0]))
        counted = run.evaluate(run.initial_state().variables, "test")
        assert counted["count"] == 6 and counted["class_count"].tolist() == [3, 3]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_checkpoints_are_read_where_the_data_are_not(finished, folder, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["data_dir"] = str(tmp_path / "nowhere")
    (workdir / "config.json").write_text(json.dumps(config))
    model, _ = resnet_jax.load_checkpoint(workdir)
    assert model.num_classes == 2


@pytest.mark.parametrize("devices", [1, 4])
def test_more_damaged_images_than_allowed_stop_the_run_and_are_named(folder, tmp_path, devices):
    copy = shutil.copytree(folder, tmp_path / "photos")
    for name in ("000.jpg", "002.jpg"):
        (copy / "train" / "china" / name).write_bytes(b"damaged")
    settings = {"data__validation_size": 0, "parallel__devices": devices, "train__steps": 12}
    with pytest.warns(UserWarning) as warned:  # five epochs with two damaged images of 20 are a tenth all along
        loop.train(photo_config(copy, **settings, data__max_damaged=0.1), tmp_path / "enough")
        with pytest.raises(UserError, match="data.max_damaged: expected at most 9.00% of 20 images .* found 2"):
            loop.train(photo_config(copy, **settings, data__max_damaged=0.09), tmp_path / "stopped")
    text = " ".join(str(warning.message) for warning in warned)
    assert "000.jpg cannot be decoded" in text and "002.jpg cannot be decoded" in text
    assert not (tmp_path / "stopped" / "result.json").exists()


def test_a_file_that_is_gone_is_a_damaged_image(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "photos")
    run = Run(photo_config(copy, data__max_damaged=0.2))
    (copy / "val" / "china" / "002.jpg").unlink()
    with pytest.warns(UserWarning, match="002.jpg cannot be decoded"):
        assert run.evaluate(run.initial_state().variables, "test")["count"] == 6


def test_a_damaged_image_counts_as_an_error_in_evaluation(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "photos")
    run = Run(photo_config(copy, data__max_damaged=0.2))
    variables = run.initial_state().variables
    before = run.evaluate(variables, "test")
    logits_right = before["class_correct"]
    (copy / "val" / "china" / "002.jpg").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="002.jpg cannot be decoded"):
        after = Run(photo_config(copy, data__max_damaged=0.2)).evaluate(variables, "test")
    assert after["count"] == 6 and after["class_count"].tolist() == [3, 3]
    lost = before["correct"] - after["correct"]
    assert lost in (0, 1) and logits_right[0] - after["class_correct"][0] == lost
    with pytest.raises(UserError, match="data.max_damaged"), pytest.warns(UserWarning):
        Run(photo_config(copy)).evaluate(variables, "test")


def test_the_stream_and_the_device_loader_train_alike(tmp_path):
    settings = {"augment__flip": True, "augment__mixup": 0.2, "train__steps": 4}
    runs = [Run(tiny_config(data__loader=loader, **settings)) for loader in ("device", "stream")]
    for step in (0, 30):  # in the second epoch, too
        one, other = (run.train_steps(1)(run.initial_state(), run.feed(step))[1] for run in runs)
        np.testing.assert_array_equal(one["loss"], other["loss"])
    one, other = (run.evaluate(run.initial_state().variables, "test") for run in runs)
    np.testing.assert_array_equal(one["loss"], other["loss"])


def test_a_run_finds_its_data_from_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    loop.train(photo_config(folder.name, train__steps=1), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert len(resnet_jax.load_data(tmp_path / "run", "train")[1]) == 16


def test_images_grow_on_schedule(folder):
    run = Run(photo_config(folder, augment__sizes=((0.0, 8), (0.5, 12)), train__steps=4, eval__image_size=24))
    assert [run.feed(step).batch["image"].shape[1] for step in range(4)] == [8, 8, 12, 12]
    assert next(iter(run.eval_loader("test").feeds())).batch["image"].shape[1] == 24


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__image_size": None}, "data.image_size: expected a size"),
        ({"data__data_dir": None}, "data.data_dir: data.name=folder needs the path"),
        ({"data__data_dir": "/nowhere"}, "expected a folder of images by class, found no /nowhere/train"),
        ({"data__loader": "device"}, "data.loader: data.name=folder needs stream"),
        ({"data__name": "synthetic:9"}, "data.name: expected synthetic:EXAMPLES:CLASSES"),
        ({"data__name": "flder"}, "data.name: expected one of its names, found 'flder'.*did you mean 'folder'"),
        ({"data__validation_size": 20}, "data.validation_size: expected fewer than the 20 training examples"),
        ({"model__num_classes": 3}, "model.num_classes: expected 2, the classes of folder, found 3"),
        ({"augment__repeats": 3}, "augment.repeats: expected a divisor of the 8 images"),
        ({"augment__area": (0.5, 0.1)}, "augment.area"),
        ({"augment__jitter": (0.1, 0.1, 0.1, 0.9)}, "augment.jitter"),
        ({"augment__sizes": ((0.5,),)}, "augment.sizes"),
        ({"augment__sizes": ((0.5, 32), (0.0, 24))}, "augment.sizes"),
        ({"augment__area": ("a", "b")}, "augment.area"),
        ({"train__steps_per_dispatch": 2}, "train.steps_per_dispatch: expected 1 with data.loader=stream"),
        ({"train__bce_threshold": 0.2}, "train.bce_threshold"),
        ({"data__normalization": "pixel_mean"}, "data.normalization"),
    ],
)
def test_a_stream_that_cannot_run_is_refused(folder, overrides, message):
    with pytest.raises(UserError, match=message):
        Run(photo_config(folder, **overrides))


def test_grey_images_are_not_given_a_policy_for_colours():
    with pytest.raises(UserError, match="augment.policy: expected images in colour, found digits"):
        Run(tiny_config(augment__policy="randaugment"))
