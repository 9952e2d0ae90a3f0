"""Predictions of each example: views, mirror images, files, and the comparison of two nets."""

import itertools
import math

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import UserError, evaluate, train
from resnet_jax.data import crops
from resnet_jax.evaluation.predictions import Predictions, compare, read_predictions
from resnet_jax.evaluation.runs import predict
from resnet_jax.evaluation.score import apply_by_shape
from tests.tiny import tiny_config
from tests.training.test_stream_runs import photo_config


@pytest.fixture(scope="module")
def photos_run(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(photo_config(folder, eval__crop_fraction=0.8), workdir)


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(tiny_config(seed=seed, train__steps=60), root / str(seed))
    return root


def test_predictions_score_as_the_run_was_scored(digits_runs, photos_run):
    for workdir in (digits_runs / "0", photos_run[0]):
        for split in ("test", "validation"):
            expected = evaluate.evaluate(str(workdir), split, "latest")
            predictions = predict(str(workdir), split, "latest")
            scores = predictions.scores()
            assert {name: scores[name] for name in ("accuracy", "top5", "count")} == {
                name: expected[name] for name in ("accuracy", "top5", "count")
            }
            assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("view", ["ten_crop", "multi_scale"])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_of_all_views_are_averaged(photos_run, folder, view, flip, monkeypatch):
    workdir, _ = photos_run
    monkeypatch.setattr(crops, "SCALES", (16, 24, 40, 48, 56))
    predictions = predict(str(workdir), "test", "latest", view=view, flip=flip)
    model, variables = resnet_jax.load_checkpoint(workdir, "latest")
    apply = jax.jit(model.apply, static_argnames="train")
    mean, std = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
    for index in (0, 5):
        image = np.asarray(Image.open(folder / "val" / predictions.names[index]))
        views = crops.EVALUATION_VIEWS[view](image, size=16, crop_fraction=0.8, interpolation="bilinear")
        if flip:
            views += [each[:, ::-1] for each in views]
        found = [
            jax.nn.softmax(apply(variables, ((each / np.float32(255) - mean) / std)[None], train=False))[0]
            for each in views
        ]
        assert len(found) == {"ten_crop": 10, "multi_scale": 5}[view] * (1 + flip)
        (label,) = predictions.labels[index]
        assert predictions.losses[index] == pytest.approx(-math.log(np.mean(found, axis=0)[label]), rel=1e-4)
        assert predictions.predicted[index] == np.mean(found, axis=0).argmax()


def test_views_of_many_shapes_are_worked_on_by_shape_and_come_together():
    def logits(images):
        assert len(images) == 4  # always: each shape is compiled once
        calls.append(images.shape)
        return np.stack([[image.mean(), image.shape[0]] for image in images])

    calls, rng = [], np.random.default_rng(0)
    examples = [
        (i, [rng.integers(0, 255, (size, 2, 3), np.uint8) for size in sizes])
        for i, sizes in enumerate([(1, 2), (1, 1), (3,), (2, 3, 1), (1,), (), (2, 2)])
    ]
    found = {}
    for index, total, row in apply_by_shape(iter(examples), logits, max_images=4):
        assert total == len(examples[index][1])
        found.setdefault(index, []).append(row.tolist())
    assert found.keys() == {0, 1, 2, 3, 4, 6}
    for i, views in examples:
        assert sorted(found.get(i, [])) == sorted([[view.mean(), len(view)] for view in views])
    assert len(calls) == 4  # five, four and two views of three shapes


def test_small_images_have_one_view(digits_runs):
    with pytest.raises(UserError, match="--view: this model takes images of 8 pixels whole"):
        predict(str(digits_runs / "0"), view="ten_crop")


def test_a_corrupt_image_is_a_wrong_answer_with_its_name(photos_run, folder, tmp_path):
    other = tmp_path / "other"
    for name, data in (("a", b"corrupt"), ("b", next((folder / "val" / "china").iterdir()).read_bytes())):
        (other / "china").mkdir(parents=True, exist_ok=True)
        (other / "china" / f"{name}.jpg").write_bytes(data)
    with pytest.raises(UserError, match="data.max_corrupt"), pytest.warns(UserWarning, match="a.jpg cannot be decoded"):
        predict(str(photos_run[0]), data=str(other))


def predictions_of(predicted, labels, losses=None):
    predicted = np.asarray(predicted)
    labels = [tuple(np.atleast_1d(label).tolist()) for label in labels]
    names = [f"image {i}" for i in range(len(labels))]
    right = np.array([guess in right for guess, right in zip(predicted, labels, strict=True)])
    losses = np.ones(len(labels)) if losses is None else losses
    return Predictions(names, labels, predicted, right, losses, [""] * len(labels), np.ones(len(labels)))


def test_several_right_labels_and_none():
    """ImageNet-ReaL: right is who names one of them; images without any do not count (Beyer et al. 2020)."""
    predictions = predictions_of([1, 2, 3, 4], [(0, 1), (1,), (), (4,)])
    assert predictions.scores()["accuracy"] == pytest.approx(2 / 3) and predictions.scores()["count"] == 3


def test_mcnemars_test_is_the_sum_over_all_splits_at_least_as_uneven():
    a = predictions_of([0] * 9 + [1] * 3 + [0] * 8, [0] * 20)
    b = predictions_of([0] * 2 + [1] * 7 + [0] * 3 + [0] * 8, [0] * 20)
    result = compare(a, b)
    assert (result.only_first, result.only_second) == (7, 3)
    outcomes = [sum(flips) for flips in itertools.product((0, 1), repeat=10)]
    expected = np.mean([abs(heads - 5) >= 2 for heads in outcomes])
    assert result.p_value == pytest.approx(expected)
    assert compare(a, a).p_value == 1.0


def test_nets_are_compared_on_the_same_examples_only():
    a, b = predictions_of([0, 1], [0, 1]), predictions_of([0, 1], [0, 2])
    with pytest.raises(UserError, match="expected predictions of the same examples"):
        compare(a, b)


def test_the_commands_write_read_and_compare(digits_runs, tmp_path, capsys):
    files = []
    for seed in (0, 1):
        files.append(str(tmp_path / f"{seed}.csv"))
        evaluate.main([str(digits_runs / str(seed)), "--step", "latest", "--predictions", files[-1]])
    capsys.readouterr()
    evaluate.main(["--compare", *files])
    from_files = capsys.readouterr().out
    evaluate.main(["--compare", "--step", "latest", str(digits_runs / "0"), str(digits_runs / "1")])
    from_runs = capsys.readouterr().out
    assert from_files.splitlines()[-1] == from_runs.splitlines()[-1]
    a, b = map(read_predictions, files)
    assert f"first alone {(a.correct & ~b.correct).sum()}, in the second alone {(b.correct & ~a.correct).sum()}" in (
        from_files
    )
    fresh = predict(str(digits_runs / "0"), step="latest")
    assert fresh.names == a.names and fresh.labels == a.labels
    np.testing.assert_array_equal(fresh.predicted, a.predicted)
    np.testing.assert_array_equal(fresh.in_top5, a.in_top5)
    np.testing.assert_allclose(fresh.losses, a.losses, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "one"], "--compare: expected two workdirs"),
        (["one", "two"], "expected one workdir, found 2"),
        ([], "expected one workdir, found 0"),
        (["--compare", "/nowhere.csv", "/nowhere.csv"], "expected a workdir or a file of predictions"),
        (["--compare", __file__, __file__], "expected predictions with the columns"),
        (["/nowhere", "--flip"], "expected the folder of a run"),
        (["--compare", "a", "b", "--predictions", "x"], "--predictions: expected one workdir"),
    ],
)
def test_commands_that_cannot_be_followed_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
