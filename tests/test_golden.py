"""Runs of every earlier format load, score as they did and can be resumed; see golden/README.md."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import evaluate, train
from resnet_jax.checkpoint import SavedSteps, read_step
from resnet_jax.config import default
from resnet_jax.config.stored import RENAMED, flatten, read_config
from resnet_jax.evaluation.predictions import read_predictions
from resnet_jax.training.logs import read_metrics
from tests import tiny  # noqa: F401  (registers the tiny net)

GOLDEN = pathlib.Path(__file__).parent / "golden" / "v0"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
V1, V2 = GOLDEN.parent / "v1", GOLDEN.parent / "v2"
SCORES = [(name, key) for name, found in EXPECTED.items() for key in found]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Copies, since indexes and locks are written beside what is read; the photographs lie where they say."""
    folder = pathlib.Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("golden") / "v0"))
    for name in ("photos", "photos_stopped"):
        config = json.loads((folder / name / "config.json").read_text())
        config["data"]["data_dir"] = str(folder / "photos_data")
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("name", "key"), SCORES, ids=map(" ".join, SCORES))
def test_a_run_scores_as_it_did(runs, name, key):
    split, step, *how = key.split() if key != "data" else ("test", "latest")
    where = {"data": str(runs / "photos_data" / "val")} if key == "data" else {}
    options = {"view": "ten_crop", "flip": True} if "ten_crop" in how else {"ema": "ema" in how}
    predictions = evaluate.predict(runs / name, split, step, **options, **where)
    found, expected = predictions.scores(), dict(EXPECTED[name][key])
    if "per_class" in expected:
        assert predictions.per_class(resnet_jax.load_card(runs / name).class_names) == expected.pop("per_class")
    # Format 0 added the losses of a batch in float32; they are added in float64 now.
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert [found[score] for score in ("accuracy", "top5", "count")] == [
        expected[score] for score in ("accuracy", "top5", "count")
    ]


@pytest.mark.parametrize("name", ["digits_ema", "pixel_mean", "photos"])
def test_per_example_predictions_are_those_of_then(runs, name):
    found, expected = evaluate.predict(runs / name, "test", "latest"), read_predictions(runs / f"{name}.csv")
    assert found.labels == expected.labels
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    np.testing.assert_array_equal(found.in_top5, expected.in_top5)
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)  # the file has six decimals


@pytest.mark.parametrize("name", ["digits_ema", "photos"])
def test_an_interrupted_run_ends_as_the_uninterrupted_one_did(runs, name, tmp_path):
    workdir = shutil.copytree(runs / f"{name}_stopped", tmp_path / "run")
    train(read_config(workdir), workdir, Console(quiet=True))
    # To the bit on the processor that wrote the fixtures; others round differently.
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (workdir, runs / name)]
    for resumed, whole in zip(*lines, strict=True):
        assert (resumed["split"], resumed["step"]) == (whole["split"], whole["step"])
        for score in ("loss", "accuracy", "learning_rate"):
            assert resumed[score] == pytest.approx(whole[score], rel=1e-5)
    names = ("model", "optimizer")
    arrays = [read_step(folder / "checkpoints" / "24", names)[0] for folder in (workdir, runs / name)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *arrays)


def test_a_run_whose_data_are_out_of_reach_loads_and_is_shown(capsys, tmp_path):
    workdir = shutil.copytree(GOLDEN / "photos", tmp_path / "run")  # its photographs lie in /data/photos, it says
    model, variables = resnet_jax.load_checkpoint(workdir, "latest")
    assert model.num_classes == variables["params"]["fc"]["bias"].size == 2
    result = train(read_config(workdir), workdir)
    assert result == json.loads((GOLDEN / "photos" / "result.json").read_text())
    assert "This run is complete" in capsys.readouterr().out


def test_every_key_of_then_loads_under_its_name_of_today(runs):
    stored = json.loads((runs / "digits_ema" / "config.json").read_text())
    values = flatten(read_config(runs / "digits_ema"))
    assert values.keys() == flatten(default.get_config()).keys()
    for key, value in flatten(stored).items():
        expected = "threads" if value == "auto" else None if key == "parallel.distributed" else value
        assert values[RENAMED.get(key, key)] == expected, key


def test_a_key_that_is_absent_takes_its_default(runs, tmp_path):
    workdir = shutil.copytree(runs / "digits_ema", tmp_path / "run")
    stored = json.loads((workdir / "config.json").read_text())
    model, variables = resnet_jax.load_checkpoint(workdir)
    del stored["precision"], stored["measure"], stored["norm"]["epsilon"], stored["data"]["max_damaged"]
    (workdir / "config.json").write_text(json.dumps(stored))
    defaults = flatten(default.get_config())
    for key in ("dtype", "diagnostics.layers", "norm.epsilon", "data.max_corrupt"):
        assert flatten(read_config(workdir))[key] == defaults[key]
    again, loaded = resnet_jax.load_checkpoint(workdir)
    assert repr(again) == repr(model)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_a_resumed_run_of_format_0_gets_a_card_that_is_used(runs, tmp_path, monkeypatch):
    workdir = shutil.copytree(runs / "pixel_mean", tmp_path / "run")
    (workdir / "result.json").unlink()
    train(read_config(workdir), workdir, Console(quiet=True))
    monkeypatch.setattr("resnet_jax.config.runs.load_splits", lambda *a, **k: pytest.fail("its data were opened"))
    preprocess = resnet_jax.preprocessing(workdir)
    assert np.shape(preprocess.mean_image) == (8, 8, 1)
    model, _ = resnet_jax.load_checkpoint(workdir)
    assert model.num_classes == 10


def test_a_step_of_format_0_away_from_its_run_is_refused(runs, tmp_path):
    folder = shutil.copytree(runs / "digits_ema" / "checkpoints" / "24", tmp_path / "24")
    with pytest.raises(resnet_jax.UserError, match="has no card of its own; give the folder of its run"):
        resnet_jax.load_checkpoint(folder)


def test_a_stored_study_takes_defaults_and_todays_values(runs, tmp_path):
    workdir = shutil.copytree(runs / "study", tmp_path / "study")
    stored = json.loads((workdir / "config.json").read_text())
    del stored["runs_at_once"]
    stored["cells"][0]["overrides"] = {"data.workers": "auto", "train.microbatches": 2}
    (workdir / "config.json").write_text(json.dumps(stored))
    study = read_config(workdir)
    assert study.replicas is None
    assert study.cells[0]["overrides"] == {"data.workers": "threads", "train.grad_accum_steps": 2}


@pytest.mark.parametrize("golden", [V1, V2], ids=["1", "2"])
def test_a_run_of_this_format_scores_as_it_did(golden):
    for key, expected in json.loads((golden / "expected.json").read_text())["digits_ema"].items():
        split, step, *how = key.split()
        found = evaluate.predict(golden / "digits_ema", split, step, ema="ema" in how).scores()
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("golden", [V1, V2], ids=["1", "2"])
def test_a_run_of_this_format_ends_as_the_uninterrupted_one_did(golden, tmp_path):
    workdir = shutil.copytree(golden / "digits_ema_stopped", tmp_path / "run")
    result = train(read_config(workdir), workdir, Console(quiet=True))
    expected = json.loads((golden / "digits_ema" / "result.json").read_text())
    for split in ("train", "validation", "test"):
        assert result["last"][split] == pytest.approx(expected["last"][split], rel=1e-5)


@pytest.mark.parametrize("text", ["", "{", '{"accuracy": 1.0, "loss": 0.0}'])
def test_metrics_beside_the_digests_of_format_1_are_not_asked_for(tmp_path, text):
    workdir = shutil.copytree(V1 / "digits_ema_stopped", tmp_path / "run")
    (workdir / "checkpoints" / "10" / "metrics" / "metrics").write_text(text)
    saved = SavedSteps(workdir)
    assert (saved.resolve("best"), saved.resolve("latest")) == (10, 13)
    assert train(read_config(workdir), workdir, Console(quiet=True))["completed"]


def test_garbled_metrics_of_format_0_lose_the_best_and_nothing_else(tmp_path):
    workdir = shutil.copytree(GOLDEN / "digits_ema_stopped", tmp_path / "run")
    for file in workdir.glob("checkpoints/*/metrics/metrics"):
        file.write_text("{")
    assert SavedSteps(workdir).resolve("best") == 13
    assert train(read_config(workdir), workdir, Console(quiet=True))["completed"]
