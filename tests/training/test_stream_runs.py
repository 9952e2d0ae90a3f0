"""Whole runs of the stream loader: a folder of photographs, corrupt images, several devices."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax import UserError, evaluate, train
from resnet_jax.config.build import make_recipe
from resnet_jax.data.splits import open_sources
from resnet_jax.errors import InterruptedRun
from tests.tiny import build, tiny_config


def photo_config(folder, **overrides):
    settings = {
        "data__name": "folder",
        "data__data_dir": str(folder),
        "data__loader": "stream",
        "data__image_size": 16,
        "data__validation_size": 4,
        "augment__view": "random_resized",
        "augment__flip": True,
        "augment__pad_crop": 0,
        "train__batch_size": 8,
        "train__steps": 6,
        "eval__every_epochs": 1.5,
        "log__every_steps": 2,
    }
    return tiny_config(**{**settings, **overrides})


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(photo_config(folder), workdir)


def training_losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


def test_a_run_on_a_folder_reports_what_a_script_finds(finished):
    workdir, result = finished
    assert result["completed"] and result["data"] == "folder"
    assert json.loads((workdir / "card.json").read_text())["class_names"] == ["china", "flower"]
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


@pytest.mark.slow
def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not(folder, finished, tmp_path):
    for stop in (1, 5):
        with pytest.raises(InterruptedRun):
            train(photo_config(folder), tmp_path / str(stop), stop_requested=lambda step, stop=stop: step == stop)
        result = train(photo_config(folder), tmp_path / str(stop))
        assert result["last"] == finished[1]["last"]
        assert training_losses(tmp_path / str(stop)) == training_losses(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["shard_map", "pmap"])
def test_four_devices_train_on_the_batch_of_one(folder, wrapper):
    losses = []
    for devices in (1, 4):
        settings = {"parallel__devices": devices, "parallel__wrapper": wrapper, "norm__scope": "global"}
        _, program, state = build(photo_config(folder, **settings))
        rows = program.evaluate(state.variables, "test")
        assert len(rows["loss"]) == 6 and np.isfinite(rows["loss"]).all()
        _, sums = program.train_steps(1)(state, program.inputs(3))
        losses.append(float(sums["loss"][0]))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_checkpoints_are_read_where_the_data_are_not(finished, folder, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "config.json").unlink()
    for file in (workdir / "card.json", *workdir.glob("checkpoints/*/manifest.json")):
        assert str(folder) in file.read_text()
    shutil.move(folder, tmp_path / "away")
    open_sources.cache_clear()
    try:
        model, _ = resnet_jax.load_checkpoint(workdir)
        preprocess = resnet_jax.preprocessing(workdir)
        with pytest.raises(UserError, match="expected a folder of images by class"):
            evaluate.evaluate(workdir)
        scores = evaluate.predict(workdir, step="latest", data=str(tmp_path / "away" / "val")).scores()
    finally:
        shutil.move(tmp_path / "away", folder)
    assert (model.num_classes, preprocess.class_names) == (2, ("china", "flower"))
    expected = {**scores, **finished[1]["last"]["test"]}
    assert scores == expected


@pytest.mark.parametrize("devices", [1, 4])
def test_more_corrupt_images_than_allowed_stop_the_run_and_are_named(folder, tmp_path, devices):
    copy = shutil.copytree(folder, tmp_path / "photos")
    for name in ("000.jpg", "002.jpg"):
        (copy / "train" / "china" / name).write_bytes(b"corrupt")
    settings = {"data__validation_size": 0, "parallel__devices": devices, "train__steps": 12}
    with pytest.warns(UserWarning) as warned:  # five epochs with two corrupt images of 20 are a tenth all along
        train(photo_config(copy, **settings, data__max_corrupt=0.1), tmp_path / "enough")
        with pytest.raises(UserError, match="data.max_corrupt: expected at most 9.00% of 20 images .* found 2"):
            train(photo_config(copy, **settings, data__max_corrupt=0.09), tmp_path / "stopped")
    text = " ".join(str(warning.message) for warning in warned)
    assert "000.jpg cannot be decoded" in text and "002.jpg cannot be decoded" in text
    assert not (tmp_path / "stopped" / "result.json").exists()


def test_a_file_that_is_gone_is_a_corrupt_image(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "photos")
    _, program, state = build(photo_config(copy))
    (copy / "val" / "china" / "002.jpg").unlink()
    with pytest.warns(UserWarning, match="002.jpg cannot be decoded"):
        rows = program.evaluate(state.variables, "test")
    assert rows["corrupt"].tolist() == [False, True, False, False, False, False]


def test_a_corrupt_image_counts_as_an_error_in_evaluation(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "photos")
    _, program, state = build(photo_config(copy))
    before = program.evaluate(state.variables, "test")
    (copy / "val" / "china" / "002.jpg").write_bytes(b"corrupt")
    with pytest.warns(UserWarning, match="002.jpg cannot be decoded"):
        after = program.evaluate(state.variables, "test")
    assert (after["prediction"][1], after["correct"][1]) == (-1, False)
    assert after["loss"][1] == pytest.approx(np.log(2))
    others = np.arange(6) != 1
    np.testing.assert_array_equal(before["loss"][others], after["loss"][others])
    with pytest.raises(UserError, match="data.max_corrupt"), pytest.warns(UserWarning):
        train(photo_config(copy), tmp_path / "run")


@pytest.mark.slow
def test_the_stream_and_the_device_loader_train_alike(tmp_path):
    settings = {"augment__flip": True, "augment__mixup": 0.2, "train__steps": 4}
    runs = [build(tiny_config(data__loader=loader, **settings)) for loader in ("device", "stream")]
    one, other = (program.evaluate(state.variables, "test") for _, program, state in runs)
    np.testing.assert_array_equal(one["loss"], other["loss"])
    for step in (0, 30):  # in the second epoch, too
        states = [jax.tree.map(jnp.copy, state.replace(step=jnp.int32(step))) for _, _, state in runs]
        one, other = (
            program.train_steps(1)(state, program.inputs(step))[1]
            for (_, program, _), state in zip(runs, states, strict=True)
        )
        np.testing.assert_array_equal(one["loss"], other["loss"])


def test_a_run_finds_its_data_from_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    train(photo_config(folder.name, train__steps=1), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert len(resnet_jax.load_data(tmp_path / "run", "train")[1]) == 16


def test_images_grow_on_schedule(folder):
    settings = {"augment__sizes": ((0.0, 8), (0.5, 12)), "train__steps": 4, "eval__image_size": 24}
    _, program, _ = build(photo_config(folder, **settings))
    assert [program.inputs(step).sharded["image"].shape[1] for step in range(4)] == [8, 8, 12, 12]
    assert next(program.loader.eval_inputs("test")).sharded["image"].shape[1] == 24


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__image_size": None}, "data.image_size: expected a size"),
        ({"data__data_dir": None}, "data.data_dir: data.name=folder needs the path"),
        ({"data__data_dir": "/nowhere"}, "expected a folder of images by class, found no folder /nowhere"),
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
        ({"train__steps_per_call": 2}, "train.steps_per_call: expected 1 with data.loader=stream"),
        ({"train__bce_threshold": 0.2}, "train.bce_threshold"),
        ({"data__normalization": "pixel_mean"}, "data.normalization"),
    ],
)
def test_a_stream_that_cannot_run_is_refused(folder, overrides, message):
    with pytest.raises(UserError, match=message):
        make_recipe(photo_config(folder, **overrides))


def test_grey_images_are_not_given_a_policy_for_colours():
    with pytest.raises(UserError, match="augment.policy: expected images in colour, found digits"):
        make_recipe(tiny_config(augment__policy="randaugment"))
