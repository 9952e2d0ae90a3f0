import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import UserError, evaluate, loop
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.logs import read_metrics
from resnet_jax.step import make_train_step
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent
# The rate rises until it spoils what was learnt, so that the best weights are not the last.
RATE = {"optim__schedule": "linear", "optim__lr": 0.3, "optim__end_lr": 3.0, "optim__clip_norm": 1.0}
SETTINGS = {"train__ema_decay": 0.9, "augment__crop": 1, "train__steps": 60, **RATE}
EVERY_STEPS = ("loss", "accuracy", "top5", "learning_rate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: (workdir, result)."""
    workdir = tmp_path_factory.mktemp("finished")
    result = loop.train(tiny_config(**SETTINGS), workdir)
    assert result["best"]["test"]["accuracy"] > result["last"]["test"]["accuracy"]
    return workdir, result


def logged(workdir, names=EVERY_STEPS):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [[line["split"], line["step"], *(line.get(name) for name in names)] for line in lines]


def last_state(workdir):
    """Every array of the last checkpoint."""
    with Checkpoints(workdir, 2, "accuracy", read_only=True) as checkpoints:
        items, _ = checkpoints._read(checkpoints.resolve("latest"), ("model", "optimizer"))
    return items


def assert_the_same_end(workdir, reference):
    assert logged(workdir) == logged(reference)
    jax.tree.map(np.testing.assert_array_equal, last_state(workdir), last_state(reference))


def stop_after(monkeypatch, step):
    """Send Ctrl-C when the loop has handed `step` steps to the device."""
    take = loop.Run.train_steps

    def counting(self, count):
        compiled = take(self, count)

        def call(state, feed):
            result = compiled(state, feed)
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return result

        return call

    calls = []
    monkeypatch.setattr(loop.Run, "train_steps", counting)


def test_a_run_leaves_everything_that_was_promised(finished):
    workdir, result = finished
    names = {path.name.split(".out.")[0] for path in workdir.iterdir()}
    promised = {"config.json", "environment.json", "metrics.jsonl", "result.json", "curves.png", "checkpoints"}
    assert names == promised | {"events"}
    lines = read_metrics(workdir / "metrics.jsonl")
    assert {line["split"] for line in lines} == {"train", "validation", "test"}
    for line in lines:
        keys = {"step", "epoch", "split", "loss", "accuracy", "top5"}
        keys |= {"learning_rate", "images_per_second", "input_wait"} if line["split"] == "train" else set()
        assert keys <= line.keys()
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


@pytest.mark.parametrize("step", [3, 23, 50])
def test_a_run_stopped_by_ctrl_c_ends_as_the_uninterrupted_one(finished, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(InterruptedRun, match=f"stopped at step {step} of 60, which is saved"):
            loop.train(tiny_config(**SETTINGS), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["completed"] is False
    loop.train(tiny_config(**SETTINGS), tmp_path)
    assert_the_same_end(tmp_path, finished[0])


def start_process(workdir, **settings):
    arguments = [f"{key}={value!r}" for key, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny", str(workdir), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_the_uninterrupted_one(finished, tmp_path):
    process = start_process(tmp_path, **SETTINGS)
    for line in process.stdout:
        if line.startswith("step 40/60"):
            process.kill()
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "spl')  # a line cut off
    output, _ = (process := start_process(tmp_path, **SETTINGS)).communicate()
    assert process.returncode == 0, output
    assert "going on from step" in output
    assert_the_same_end(tmp_path, finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_a_message_and_a_checkpoint(tmp_path, number):
    process = start_process(tmp_path, train__steps=100_000)
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("step "):
            process.send_signal(number)
            break
    output += process.communicate()[0]
    assert process.returncode == 130
    assert "Traceback" not in output
    step = int(output.split("stopped at step ")[1].split()[0])
    with Checkpoints(tmp_path, 2, "accuracy", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == step


def test_a_finished_run_is_shown_and_not_trained_again(finished, capsys):
    workdir, result = finished
    before = logged(workdir)
    assert loop.train(tiny_config(**SETTINGS), workdir) == result
    assert "This run is complete" in capsys.readouterr().out
    assert logged(workdir) == before


def test_a_workdir_of_another_config_is_refused_with_the_difference(finished):
    with pytest.raises(UserError, match="optim.lr: 0.3 in the workdir, 0.2 given"):
        loop.train(tiny_config(**{**SETTINGS, "optim__lr": 0.2}), finished[0])


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder that can be written"):
        loop.train(tiny_config(), tmp_path / "file" / "run")


def test_several_steps_in_one_program_log_and_save_at_the_same_steps(finished, tmp_path):
    result = loop.train(tiny_config(**SETTINGS, train__steps_per_dispatch=4), tmp_path)
    assert [line[:2] for line in logged(tmp_path)][:-2] == [line[:2] for line in logged(finished[0])][:-2]
    train = [[line[2] for line in logged(workdir) if line[0] == "train"] for workdir in (tmp_path, finished[0])]
    np.testing.assert_allclose(train[0][:3], train[1][:3], rtol=1e-3)
    assert result["completed"]


@pytest.mark.parametrize("broken", ["loss", "grad_norm"])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, monkeypatch, broken):
    def break_step_23(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def broken_step(state, batch):
            new, sums = step(state, batch)
            return new, {**sums, broken: jax.numpy.where(state.step == 22, jax.numpy.nan, sums[broken])}

        return broken_step

    monkeypatch.setattr("resnet_jax.build.make_train_step", break_step_23)
    with pytest.raises(DivergedError, match=rf"{broken} of step 23 is nan; the last good checkpoint is of step 20"):
        loop.train(tiny_config(), tmp_path)
    with Checkpoints(tmp_path, 2, "accuracy", read_only=True) as checkpoints:
        assert max(checkpoints.steps()) == 20


def test_a_rate_that_is_far_too_high_stops_the_run(tmp_path):
    with pytest.raises(DivergedError, match="Try a lower optim.lr"):
        loop.train(tiny_config(optim__lr=1e30, optim__schedule="constant"), tmp_path)


def test_without_a_validation_split_the_best_is_the_last(tmp_path):
    result = loop.train(tiny_config(data__validation_size=0), tmp_path)
    assert result["best"] == result["last"]
    assert "validation" not in result["last"]


@pytest.mark.parametrize("optimizer", ["adamw", "lars", "lamb", "muon"])
def test_every_optimizer_trains_and_resumes(tmp_path, monkeypatch, optimizer):
    settings = {"optim__name": optimizer, "optim__lr": 1.0 if optimizer == "lars" else 0.01, "train__steps": 30}
    reference = tmp_path / "reference"
    losses = [line[2] for line in logged_after(loop.train, tiny_config(**settings), reference) if line[0] == "train"]
    assert losses[-1] < losses[0]
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(InterruptedRun):
            loop.train(tiny_config(**settings), tmp_path / "resumed")
    loop.train(tiny_config(**settings), tmp_path / "resumed")
    assert_the_same_end(tmp_path / "resumed", reference)


def logged_after(train, config, workdir):
    train(config, workdir)
    return logged(workdir)


@pytest.mark.slow
def test_training_imports_neither_tensorflow_nor_torch(tmp_path):
    code = (
        "import sys; from tests.tiny import tiny_config; from resnet_jax import loop;"
        f"loop.train(tiny_config(train__steps=2), {str(tmp_path)!r});"
        "print('imported:', {'tensorflow', 'torch', 'keras'} & sys.modules.keys())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "imported: set()" in output.stdout, output.stderr


def test_pixel_mean_normalisation_reaches_evaluation_and_scripts(tmp_path):
    result = loop.train(tiny_config(data__normalization="pixel_mean"), tmp_path)
    images, labels = resnet_jax.load_data(tmp_path, "train")
    np.testing.assert_allclose(images.mean(0), np.zeros((8, 8, 1)), atol=1e-5)
    model, variables = resnet_jax.load_checkpoint(tmp_path, step="latest")
    images, labels = resnet_jax.load_data(tmp_path, "test")
    logits = model.apply(variables, images, train=False)
    assert int((logits.argmax(axis=-1) == labels).sum()) / len(labels) == result["last"]["test"]["accuracy"]
