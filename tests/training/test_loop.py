import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import UserError, evaluate, progress, train
from resnet_jax.checkpoint import SavedSteps
from resnet_jax.config import build
from resnet_jax.errors import DivergedError
from resnet_jax.progress import progress_bars
from resnet_jax.training import console as console_module
from resnet_jax.training.console import TrainingDisplay
from resnet_jax.training.logs import read_metrics
from resnet_jax.training.program import Program
from resnet_jax.training.step import make_train_step
from resnet_jax.training.tensorboard import Events
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


def read_events(workdir):
    from tensorboardX.proto.event_pb2 import Event

    data = next(workdir.glob("events.*")).read_bytes()
    offset = 0
    while offset < len(data):  # length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(data[offset : offset + 8], "little")
        yield Event.FromString(data[offset + 12 : offset + 12 + length])
        offset += length + 16


def test_tensorboard_events_hold_the_metrics(finished):
    found = [
        (event.step, value.tag, value.simple_value)
        for event in read_events(finished[0])
        for value in event.summary.value
    ]
    expected = [
        (line["step"], f"{line['split']}/loss", np.float32(line["loss"]))
        for line in read_metrics(finished[0] / "metrics.jsonl")
    ]
    assert [entry for entry in found if entry[1].endswith("/loss") and "ema" not in entry[1]] == expected


def test_tensorboard_shows_curves_before_layers_and_the_config(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    train(tiny_config(train__steps=2, diagnostics__layers=True), tmp_path)
    values = {value.tag: value for event in read_events(tmp_path) for value in event.summary.value}
    scalars = sorted(tag for tag, value in values.items() if value.HasField("simple_value"))
    assert "within_layers/grad_norm/stage1_block1" in scalars
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in scalars))  # in TensorBoard's order
    assert groups == ["test", "train", "validation", "within_layers"]
    shown = values["config/text_summary"].tensor.string_val[0].decode()
    assert json.loads(shown) == json.loads((tmp_path / "config.json").read_text())
    content = values["_hparams_/session_start_info"].metadata.plugin_data.content
    hyperparameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (hyperparameters["optim.lr"].number_value, hyperparameters["model.name"].string_value) == (0.1, "tiny")


def test_events_of_a_resumed_run_make_those_of_later_steps_void(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    for folder, purge_step in (("new", None), ("resumed", 7)):
        (tmp_path / folder).mkdir()
        Events(tmp_path / folder, {"seed": 0}, purge_step).close()
    starts = [
        [event.step for event in read_events(tmp_path / folder) if event.session_log.status == SessionLog.START]
        for folder in ("new", "resumed")
    ]
    assert starts == [[], [7]]


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


def test_the_evaluate_command_prints_what_the_run_reported(finished, tmp_path, capsys):
    workdir, result = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
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
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, monkeypatch, fresh_programs, broken):
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

    def broken(self, variables, split, watch):
        rows = evaluate_split(self, variables, split, watch)
        return {**rows, "loss": np.full_like(rows["loss"], np.inf)}

    monkeypatch.setattr(Program, "evaluate", broken)
    with pytest.raises(DivergedError, match="loss on the validation split after step 10 is not finite.*no checkpoint"):
        train(tiny_config(), tmp_path)
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()


def screen(console, bars):
    """What the bars look like, without colours."""
    with console.capture() as capture:
        console.print(bars.get_renderable())
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()


@pytest.mark.parametrize("width", [80, 160])
def test_the_bar_has_the_terminals_width_and_the_epoch(width):
    console = Console(width=width, force_terminal=True, file=io.StringIO())
    bars = progress_bars(console)
    display = TrainingDisplay(console, bars, 0, 7000, 2000.0)
    assert [line.split(" ━")[0].strip() for line in screen(console, bars)] == [
        "epoch 0.0/2000.0", "compiling the training step"
    ]  # fmt: skip
    values = {"loss": 0.12345, "accuracy": 0.98761, "learning_rate": 0.09456, "images_per_second": 13364.2}
    display.advance(1)
    display.train(3500, 1000.0, {**values, "input_wait": 0.996})
    bar, line = screen(console, bars)
    assert re.fullmatch(r"epoch 1000.0/2000.0 ━+╺?━* 3500/7000 \d\d:\d\d *", bar.replace("╸", "━")), bar
    assert len(bar) == width and bar.count("━") > width - 45
    assert line == "loss 0.123 acc 98.8% lr 0.095 13,364 img/s wait 100%"


def test_every_phase_has_a_bar_and_leaves_none(tmp_path, monkeypatch):
    phases = []
    watch_phase = progress.watch

    def watching(bars, name, items, total):
        task_ids = list(bars.task_ids)
        for index, item in enumerate(watch_phase(bars, name, items, total)):
            assert len(bars.task_ids) == len(task_ids) + 1
            assert (bars.tasks[-1].completed, bars.tasks[-1].total) == (index, total if index else None)
            phases.append((name, index, total))
            yield item
        assert bars.task_ids == task_ids

    monkeypatch.setattr(console_module, "watch", watching)
    console = Console(force_terminal=True, file=io.StringIO())
    steps = {"train__steps": 4, "eval__batch_size": 150, "eval__every_epochs": 1.0}
    inside = {"diagnostics__lesions": True, "diagnostics__precise_statistics": True}
    train(tiny_config(**steps, **inside), tmp_path, console)
    scored = [("validation", 0, 2), ("validation", 1, 2), ("test", 0, 3), ("test", 1, 3), ("test", 2, 3)]
    assert phases[:7] == [*scored[:2], *scored]
    assert ("lesions", 1, 2) in phases and ("precise batch statistics", 19, 20) in phases


def test_the_time_is_that_of_the_whole_run(tmp_path, monkeypatch):
    """On a clock that runs 1,000 s ahead with every evaluation, and 100,000 s with the data."""
    ahead, clock = [0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])
    for owner, name, seconds in ((Program, "evaluate", 1_000), (build, "load_splits", 100_000)):
        original = getattr(owner, name)

        def slow(*arguments, original=original, seconds=seconds, **settings):
            ahead[0] += seconds
            return original(*arguments, **settings)

        monkeypatch.setattr(owner, name, slow)
    result = train(tiny_config(train__steps=4, eval__every_epochs=1.0), tmp_path)
    assert 103_000 < result["seconds"] < 104_000  # one evaluation, and two splits at the end


def test_the_screen_keeps_the_training_scores_of_an_epoch_beside_those_of_the_validation(tmp_path):
    console = Console(force_terminal=True, file=io.StringIO(), width=160)
    train(tiny_config(train__steps=20), tmp_path, console)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "train"]
    assert [line["step"] for line in lines] == [4, 8, 10, 12, 16, 20]
    parts = (4 / 10, 4 / 10, 2 / 10), (2 / 10, 4 / 10, 4 / 10)
    expected = [
        sum(part * line["loss"] for part, line in zip(*one, strict=True))
        for one in zip(parts, (lines[:3], lines[3:]), strict=True)
    ]
    found = re.findall(r"epoch .*? train: loss (\S+) acc \S+%  validation: loss", console.file.getvalue())
    assert [float(loss) for loss in found] == pytest.approx(expected, abs=1e-4)


def test_a_quick_look_scores_examples_that_are_evenly_spread(tmp_path):
    console = Console(file=io.StringIO(), width=160)
    settings = {"eval__max_examples": 50, "train__steps": 4, "eval__every_epochs": 1.0}
    result = train(tiny_config(**settings), tmp_path, console)
    model, variables = resnet_jax.load_checkpoint(tmp_path, step="latest")
    images, labels = resnet_jax.load_data(tmp_path, "test")
    some = np.arange(50) * 360 // 50
    right = model.apply(variables, images[some], train=False).argmax(axis=-1) == labels[some]
    assert result["last"]["test"]["accuracy"] == pytest.approx(float(right.mean()))
    shown = console.file.getvalue()
    assert "Results on digits (eval.max_examples=50: a quick look)" in shown
    assert "1,257 train, 50 validation, 50 test (eval.max_examples=50)" in shown
    assert evaluate.evaluate(tmp_path)["count"] == 360


def test_the_next_command_can_be_pasted_from_a_narrow_terminal(tmp_path):
    workdir = tmp_path / ("a run with a long name" * 4)
    console = Console(force_terminal=True, file=io.StringIO(), width=80, color_system=None)
    train(tiny_config(train__steps=2, data__validation_size=180), workdir, console)
    screen = console.file.getvalue()
    relative = shlex.quote(min(os.path.relpath(workdir), str(workdir), key=len))
    assert f"\n  python -m resnet_jax.evaluate {relative}\n" in screen
    assert "│ last and best │" in screen.replace("\x1b[?25l", "")  # the only evaluation


def test_a_log_without_a_terminal_has_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "perf_counter", lambda: now[0])
    console = Console(file=io.StringIO())
    display = TrainingDisplay(console, progress_bars(console), 0, 1000, 2.0)
    for step in range(1, 7):
        now[0] += 100 if step == 1 else 30  # the first compiles
        display.advance(step)
    assert console.file.getvalue().splitlines() == ["step 3/1000  left 8:18:30", "step 5/1000  left 8:17:30"]


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
