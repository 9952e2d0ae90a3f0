import io
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import UserError, evaluate, train
from resnet_jax.checkpoint import SavedSteps
from resnet_jax.errors import DivergedError
from resnet_jax.training.console import TrainingDisplay, progress_bars
from resnet_jax.training.logs import read_metrics
from resnet_jax.training.program import Program
from resnet_jax.training.step import make_train_step
from tests.runs import ROOT
from tests.tiny import tiny_config


def test_a_run_leaves_everything_that_was_promised(finished):
    workdir, result = finished
    names = {path.name.split(".out.")[0] for path in workdir.iterdir() if path.name != ".lock"}
    promised = {
        "config.json",
        "card.json",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "curves.png",
        "checkpoints",
    }
    assert names == promised | {"events"}
    lines = read_metrics(workdir / "metrics.jsonl")
    assert {line["split"] for line in lines} == {"train", "validation", "test"}
    for line in lines:
        assert {"step", "epoch", "split", "loss", "accuracy", "top5"} <= line.keys()
        assert {"learning_rate", "images_per_second"} <= line.keys()
        assert ("input_wait" in line) == (line["split"] == "train")
    assert json.loads((workdir / "result.json").read_text()) == result
    assert (result["completed"], result["step"]) == (True, 60)
    _, variables = resnet_jax.load_checkpoint(workdir)
    assert result["parameters"] == sum(p.size for p in jax.tree.leaves(variables["params"]))
    for weights in ("last", "best"):
        assert result[weights].keys() == {"step", "train", "validation", "test"}
    assert result["best"]["test"]["accuracy"] > 0.2
    assert json.loads((workdir / "environment.json").read_text())["jax"] == jax.__version__
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_events_hold_the_metrics(finished):
    from tensorboardX.proto.event_pb2 import Event

    data = next(finished[0].glob("events.*")).read_bytes()
    found, offset = [], 0
    while offset < len(data):  # length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(data[offset : offset + 8], "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        offset += length + 16
    expected = [
        (line["step"], f"{line['split']}/loss", np.float32(line["loss"]))
        for line in read_metrics(finished[0] / "metrics.jsonl")
    ]
    assert [entry for entry in found if entry[1].endswith("/loss") and "ema" not in entry[1]] == expected


def test_the_best_is_chosen_on_the_validation_split_and_the_test_split_scored_once_at_the_end(finished):
    workdir, result = finished
    lines = read_metrics(workdir / "metrics.jsonl")
    validation = [(line["accuracy"], -line["loss"], line["step"]) for line in lines if line["split"] == "validation"]
    assert len(validation) > 3
    assert result["best"]["step"] == max(validation)[2]
    scored = [line["step"] for line in lines if line["split"] == "test"]
    assert scored == sorted({result["best"]["step"], result["last"]["step"]})


def test_a_jitted_script_reproduces_the_reported_accuracy_in_bfloat16(tmp_path):
    result = train(tiny_config(dtype="bfloat16", train__steps=60), tmp_path)
    model, variables = resnet_jax.load_checkpoint(tmp_path, step="latest")
    images, labels = resnet_jax.load_data(tmp_path, "test")
    logits = jax.jit(model.apply, static_argnames="train")(variables, images, train=False)
    assert int((logits.argmax(axis=-1) == labels).sum()) / len(labels) == result["last"]["test"]["accuracy"]


def test_a_script_reproduces_the_reported_accuracy_to_the_last_digit(finished):
    workdir, result = finished
    for step, weights in (("best", "best"), ("latest", "last"), (60, "last")):
        model, variables = resnet_jax.load_checkpoint(workdir, step=step)
        images, labels = resnet_jax.load_data(workdir, "test")
        logits = model.apply(variables, images, train=False)
        accuracy = int((logits.argmax(axis=-1) == labels).sum()) / len(labels)
        assert accuracy == result[weights]["test"]["accuracy"]
    model, variables = resnet_jax.load_checkpoint(workdir, step="latest", ema=True)
    logits = model.apply(variables, images, train=False)
    assert int((logits.argmax(axis=-1) == labels).sum()) / len(labels) == result["last"]["test"]["ema_accuracy"]


def test_the_evaluate_command_prints_what_the_run_reported(finished, capsys):
    workdir, result = finished
    evaluate.main([str(workdir), "--step", "latest", "--split", "validation"])
    screen = capsys.readouterr().out
    assert f"accuracy {result['last']['validation']['accuracy']:.4%}" in screen
    assert f"loss {result['last']['validation']['loss']:.6f}" in screen
    scores = evaluate.evaluate(str(workdir), "test", "best")
    assert scores["count"] == 360
    assert {name: scores[name] for name in ("loss", "accuracy", "top5")} == {
        name: result["best"]["test"][name] for name in ("loss", "accuracy", "top5")
    }
    with pytest.raises(UserError, match="--split: expected one of train, validation, test, found 'tset'"):
        evaluate.evaluate(str(workdir), "tset")


def test_a_run_is_scored_on_a_machine_with_other_devices(tmp_path):
    config = tiny_config(parallel__devices=3, train__batch_size=63, norm__scope="group", norm__group_size=3)
    result = train(config, tmp_path)
    scores = evaluate.evaluate(str(tmp_path), "test", "latest")
    assert scores["accuracy"] == result["last"]["test"]["accuracy"]


@pytest.mark.parametrize("broken", ["loss", "grad_norm", "param_norm"])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, monkeypatch, broken):
    def break_step_23(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def broken_step(state, inputs):
            new, sums = step(state, inputs)
            return new, {**sums, broken: jax.numpy.where(state.step == 22, jax.numpy.nan, sums[broken])}

        return broken_step

    monkeypatch.setattr("resnet_jax.config.build.make_train_step", break_step_23)
    with pytest.raises(DivergedError, match=rf"{broken} of step 23 is nan; the last good checkpoint is of step 20"):
        train(tiny_config(), tmp_path)
    assert max(SavedSteps(tmp_path).steps()) == 20


def test_a_validation_loss_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    evaluate_split = Program.evaluate

    def broken(self, variables, split):
        rows = evaluate_split(self, variables, split)
        return {**rows, "loss": np.full_like(rows["loss"], np.inf)}

    monkeypatch.setattr(Program, "evaluate", broken)
    with pytest.raises(DivergedError, match="loss on the validation split after step 10 is not finite.*no checkpoint"):
        train(tiny_config(), tmp_path)
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()


def test_the_progress_bar_fits_80_columns():
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    bars = progress_bars(console)
    display = TrainingDisplay(console, 0, 7000, bars)
    values = {"loss": 0.12345, "accuracy": 0.98761, "learning_rate": 0.09456, "images_per_second": 13364.2}
    values["input_wait"] = 0.996
    display.train(3500, 12.3, values)
    with console.capture() as capture:
        console.print(bars.get_renderable())
    lines = capture.get().splitlines()
    assert len(lines) == 1
    for text in ("━", "3500/7000", "loss 0.123", "acc 98.8%", "lr 0.095", "13,364 img/s", "wait 100%", "--:--"):
        assert text in re.sub(r"\x1b\[[0-9;]*m", "", lines[0])


def test_a_rate_that_is_far_too_high_stops_the_run(tmp_path):
    with pytest.raises(DivergedError, match="Try a lower optim.lr"):
        train(tiny_config(optim__lr=1e30, optim__schedule="constant"), tmp_path)


def test_without_a_validation_split_the_best_is_the_last(tmp_path):
    result = train(tiny_config(data__validation_size=0), tmp_path)
    assert result["best"] == result["last"]
    assert "validation" not in result["last"]


@pytest.mark.slow
def test_training_imports_neither_tensorflow_nor_torch(tmp_path):
    code = (
        "import sys; from tests.tiny import tiny_config; from resnet_jax import train;"
        f"train(tiny_config(train__steps=2), {str(tmp_path)!r});"
        "print('imported:', {'tensorflow', 'torch', 'keras'} & sys.modules.keys())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "imported: set()" in output.stdout, output.stderr


def test_pixel_mean_normalisation_reaches_evaluation_and_scripts(tmp_path):
    result = train(tiny_config(data__normalization="pixel_mean"), tmp_path)
    images, labels = resnet_jax.load_data(tmp_path, "train")
    np.testing.assert_allclose(images.mean(0), np.zeros((8, 8, 1)), atol=1e-5)
    model, variables = resnet_jax.load_checkpoint(tmp_path, step="latest")
    images, labels = resnet_jax.load_data(tmp_path, "test")
    logits = model.apply(variables, images, train=False)
    assert int((logits.argmax(axis=-1) == labels).sum()) / len(labels) == result["last"]["test"]["accuracy"]
