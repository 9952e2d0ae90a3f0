"""The model card: loading, preprocessing and scoring by it alone."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import UserError, evaluate
from resnet_jax.checkpoint import ModelCard
from resnet_jax.checkpoint.manifest import read_manifest
from tests.runs import rewrite_manifest
from tests.tiny import make_recipe, tiny_config


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of a run with its card and weights alone: no config file."""
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    (workdir / "config.json").unlink()
    return workdir


def assert_equal(found, expected):
    assert repr(found[0]) == repr(expected[0])  # bound settings are equal in words only
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize("step", ["best", "latest", 60])
def test_a_copy_without_a_config_gives_the_model_and_weights_of_the_run(finished, copy, step):
    assert_equal(resnet_jax.load_checkpoint(copy, step), resnet_jax.load_checkpoint(finished[0], step))


def test_the_folder_of_a_step_describes_itself(finished, tmp_path):
    best = finished[1]["best"]["step"]
    folder = shutil.copytree(finished[0] / "checkpoints" / str(best), tmp_path / "somewhere")
    assert_equal(resnet_jax.load_checkpoint(folder), resnet_jax.load_checkpoint(finished[0], "best"))
    assert resnet_jax.preprocessing(folder).class_names == tuple("0123456789")
    scores = evaluate.evaluate(folder)
    assert scores["accuracy"] == finished[1]["best"]["test"]["accuracy"]


def test_a_copy_is_scored_without_the_training_data(copy, finished, tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for index in range(40):
        file = tmp_path / "images" / str(labels[index]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.round(images[index].reshape(8, 8) * (255 / 16)))).save(file)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: pytest.fail("the training data were opened"))
    predictions = evaluate.predict(copy, step="latest", data=str(tmp_path / "images"))
    model, variables = resnet_jax.load_checkpoint(copy, "latest")
    preprocess = resnet_jax.preprocessing(copy)
    logits = model.apply(variables, preprocess([tmp_path / "images" / name for name in predictions.names]), train=False)
    np.testing.assert_array_equal(predictions.predicted, logits.argmax(axis=-1))
    assert predictions.scores()["count"] == 40


def test_a_card_says_what_the_model_is_and_where_it_came_from(finished):
    card = resnet_jax.load_card(finished[0])
    again = ModelCard.from_json(json.loads(json.dumps(card.to_json())))
    assert again == card
    assert repr(card.create_model()) == repr(resnet_jax.load_checkpoint(finished[0])[0])
    assert card.class_names == tuple("0123456789")
    assert {"config", "environment"} <= card.source.keys()
    stored = read_manifest(finished[0] / "checkpoints" / "60").card
    assert (stored["source"]["step"], stored["model"]) == (60, card.model)
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [line for line in lines if line["split"] == "validation" and line["step"] == 60]
    assert stored["source"]["metrics"]["accuracy"] == validation["accuracy"]


def test_loading_asks_nothing_of_what_is_for_people(finished, tmp_path):
    folder = shutil.copytree(finished[0] / "checkpoints" / "60", tmp_path / "60")
    rewrite_card(folder, lambda card: card | {"source": {}})
    assert_equal(resnet_jax.load_checkpoint(folder), resnet_jax.load_checkpoint(finished[0], 60))
    assert evaluate.evaluate(folder)["accuracy"] == finished[1]["last"]["test"]["accuracy"]


def rewrite_card(step_folder, change):
    """Change the card of a step, and the digest of its manifest with it."""
    card = read_manifest(step_folder).card
    rewrite_manifest(step_folder, card=change(card))


def test_the_card_beside_the_weights_counts_not_the_copy_for_people(copy, finished):
    card = json.loads((copy / "card.json").read_text())
    card["preprocessing"]["std"] = [7.0]
    (copy / "card.json").write_text(json.dumps(card))
    assert resnet_jax.preprocessing(copy).std == resnet_jax.preprocessing(finished[0]).std
    assert evaluate.evaluate(copy, step="latest")["accuracy"] == finished[1]["last"]["test"]["accuracy"]


def test_a_changed_card_is_never_used(copy):
    (file,) = copy.glob("checkpoints/60/manifest.json")
    file.write_text(file.read_text().replace('"tiny"', '"resnet20"'))
    with pytest.raises(UserError, match="manifest.json does not match the digest"):
        resnet_jax.load_checkpoint(copy, 60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "card.json: cannot be read"),
        ('{"format": 1}', "card.json: expected a model card, found no model, input_shape"),
        ('{"format": 99}', "card.json: expected format 1 or lower, found 99; update resnet_jax"),
        ('{"format": "x"}', "card.json: expected format 1 or lower, found x"),
    ],
)
def test_a_file_that_is_no_card_is_refused(copy, text, message):
    (copy / "card.json").write_text(text)
    with pytest.raises(UserError, match=message):
        resnet_jax.preprocessing(copy)


_WRONG = {
    "input_shape": (3, "abc", None, [8, 8], [8, 8, 2], [8, 8, 1.5], ["8", "8", "1"], [0, 8, 1], [10**9, 10**9, 1]),
    "class_names": (None, "ab", [1], {}),
    "best_metric": (None, 3),
    "max_corrupt": (None, "1"),
    **dict.fromkeys(("model", "preprocessing", "data", "source"), (None, "x", [], 3)),
    "model.name": (None, 3, "tinny"),
    "model.num_classes": (None, "x", -1),
    "model.dtype": (None, "foo", "int32", []),
    "model.stage_sizes": (None, "ab", [], [-1], [1, "x"], [10**9], 3),
    "model.block": (None, "x"),
    "model.strides": (None, "x"),
    "model.norm": (3, {"name": []}, {"name": "batch", "x": 1}),
    "model.x": (1,),
    "preprocessing.size": ("zzz", None, 0, 10**9, 8.5),
    "preprocessing.resize": ("zzz", 0, 10**9),
    "preprocessing.crop_fraction": ("x", 0, 2),
    "preprocessing.interpolation": ("zzz", None, []),
    "preprocessing.channel_order": ("XYZ", None, []),
    "preprocessing.mean": (None, [], ["x"], [0.5, 0.5], "x", [10**400], [float("nan")]),
    "preprocessing.std": (None, [], ["x"], [0.5, 0.5]),
    "preprocessing.mean_image": ("x", [[1.0]], [[[1.0], [2.0]], [[3.0]]]),
    "preprocessing.x": (1,),
}


@pytest.mark.parametrize("field", _WRONG)
def test_a_field_of_a_wrong_kind_is_refused(field):
    for value in _WRONG[field]:
        card = make_recipe(tiny_config()).card({}).to_json()
        *path, last = field.split(".")
        (card[path[0]] if path else card)[last] = value
        with pytest.raises(UserError, match=r"^FILE: (expected a model card|\S+: )") as refused:
            ModelCard.from_json(card, "FILE")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 2000


def test_what_is_no_json_object_is_no_card(tmp_path):
    for value in ([], "x", None, 3):
        with pytest.raises(UserError, match="FILE: expected a model card, found a"):
            ModelCard.from_json(value, "FILE")
    (tmp_path / "card.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="card.json: cannot be read"):
        resnet_jax.preprocessing(tmp_path)


def test_a_card_without_a_dtype_is_refused():
    card = make_recipe(tiny_config()).card({}).to_json()
    del card["model"]["dtype"]
    with pytest.raises(UserError, match="FILE: dtype: expected a floating point dtype, found None"):
        ModelCard.from_json(card, "FILE")


def test_a_step_of_a_newer_version_is_refused(copy):
    rewrite_manifest(copy / "checkpoints" / "60", format=99)
    with pytest.raises(UserError, match="found 99; update resnet_jax"):
        resnet_jax.load_checkpoint(copy, 60)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="found neither card.json nor config.json"):
        resnet_jax.load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="expected the folder of a run, found no .*nowhere"):
        resnet_jax.preprocessing(tmp_path / "nowhere")
