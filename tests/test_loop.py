import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import UserError, evaluate, loop
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.errors import DivergedError, InterruptedRun
from resnet_jax.logs import TrainingDisplay, progress_bars, read_metrics
from resnet_jax.step import make_train_step
from resnet_jax.workdir import claim_workdir
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
    result = loop.train(tiny_config(precision="bfloat16", train__steps=60), tmp_path)
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


def damage(workdir, *steps):
    for step in steps:
        for file in (workdir / "checkpoints" / str(step) / "model").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")


def copy_of(finished, tmp_path):
    """The finished run as it was before it was scored."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    (workdir / "result.json").unlink()
    return workdir


@pytest.mark.parametrize("step", [3, 23, 50])
def test_a_run_stopped_by_ctrl_c_ends_as_the_uninterrupted_one(finished, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(InterruptedRun, match=f"stopped at step {step} of 60, which is saved"):
            loop.train(tiny_config(**SETTINGS), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["completed"] is False
    loop.train(tiny_config(**SETTINGS), tmp_path)
    assert_the_same_end(tmp_path, finished[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"train__steps_per_dispatch": 4},
        {"precision": "bfloat16", "train__microbatches": 2, "augment__cutmix": 1.0},
        {"parallel__devices": 4, "parallel__wrapper": "pmap", "train__ema_decay": 0.9},
    ],
    ids=["several steps in a program", "bfloat16, microbatches, cutmix", "four devices, local statistics"],
)
def test_resuming_is_exact_in_other_settings_too(tmp_path, monkeypatch, settings):
    config = tiny_config(train__steps=24, **settings)
    loop.train(config, tmp_path / "reference")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(InterruptedRun):
            loop.train(config, tmp_path / "resumed")
    loop.train(config, tmp_path / "resumed")
    assert_the_same_end(tmp_path / "resumed", tmp_path / "reference")


def test_a_damaged_best_checkpoint_is_replaced_by_the_next_best(finished, tmp_path, capsys):
    workdir = copy_of(finished, tmp_path)
    damage(workdir, finished[1]["best"]["step"])
    result = loop.train(tiny_config(**SETTINGS), workdir)
    assert "moved to checkpoints_damaged/" in capsys.readouterr().out
    assert result["best"]["step"] != finished[1]["best"]["step"]
    assert result["last"] == finished[1]["last"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    damage(workdir, *(path.name for path in (workdir / "checkpoints").iterdir()))
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        loop.train(tiny_config(**SETTINGS), workdir)
    assert len(read_metrics(workdir / "metrics.jsonl")) > 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[1, 2]", "config.json: expected a JSON object, found list"),
        ("config.json", "{", "config.json: cannot be read"),
        ("result.json", "garbage", "result.json: cannot be read"),
        ("result.json", "{}", "result.json: expected the result of a run"),
        ("metrics.jsonl", "garbage\n", "metrics.jsonl: line 1 is not a line of metrics: 'garbage'"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl: line 1"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused_by_name_and_kept(finished, tmp_path, name, text, message):
    workdir = copy_of(finished, tmp_path)
    (workdir / name).write_text(text)
    with pytest.raises(UserError, match=message):
        loop.train(tiny_config(**SETTINGS), workdir)
    assert (workdir / name).read_text() == text


def test_a_stored_config_without_a_key_is_refused_by_name(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    (workdir / "config.json").write_text("{}")
    with pytest.raises(UserError, match="precision: the config lacks this key"):
        resnet_jax.load_data(workdir)


def test_a_second_run_in_the_same_workdir_is_refused_while_the_first_is_at_work(tmp_path):
    with claim_workdir(tmp_path, tiny_config()), pytest.raises(UserError, match="another run is at work"):
        loop.train(tiny_config(), tmp_path)
    assert loop.train(tiny_config(train__steps=2), tmp_path / "free")["completed"]


def test_a_run_is_scored_on_a_machine_with_other_devices(tmp_path):
    config = tiny_config(parallel__devices=3, train__batch_size=63, norm__scope="group", norm__group_size=3)
    result = loop.train(config, tmp_path)
    scores = evaluate.evaluate(str(tmp_path), "test", "latest")
    assert scores["accuracy"] == result["last"]["test"]["accuracy"]


def start_process(workdir, cache=None, **settings):
    arguments = [f"{key}={value!r}" for key, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
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


@pytest.mark.slow
def test_ctrl_c_while_the_first_programs_compile_ends_cleanly_too(tmp_path):
    process = start_process(tmp_path / "run", cache=tmp_path / "cache", train__steps=100_000)
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("└"):  # the end of the start screen
            process.send_signal(signal.SIGINT)
            break
    output += process.communicate()[0]
    assert process.returncode == 130, output
    assert "stopping after the next step" in output
    assert "stopped at step 1 of 100000, which is saved" in output


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


@pytest.mark.parametrize("broken", ["loss", "grad_norm", "param_norm"])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, monkeypatch, broken):
    def break_step_23(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def broken_step(state, batch, key):
            new, sums = step(state, batch, key)
            return new, {**sums, broken: jax.numpy.where(state.step == 22, jax.numpy.nan, sums[broken])}

        return broken_step

    monkeypatch.setattr("resnet_jax.build.make_train_step", break_step_23)
    with pytest.raises(DivergedError, match=rf"{broken} of step 23 is nan; the last good checkpoint is of step 20"):
        loop.train(tiny_config(), tmp_path)
    with Checkpoints(tmp_path, 2, "accuracy", read_only=True) as checkpoints:
        assert max(checkpoints.steps()) == 20


def test_a_validation_loss_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    evaluate_split = loop.Run.evaluate

    def broken(self, variables, split):
        return {**evaluate_split(self, variables, split), "loss": np.float64(np.inf)}

    monkeypatch.setattr(loop.Run, "evaluate", broken)
    with pytest.raises(DivergedError, match="loss on the validation split after step 10 is not finite.*no checkpoint"):
        loop.train(tiny_config(), tmp_path)
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
