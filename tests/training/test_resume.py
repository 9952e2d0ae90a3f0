import io
import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest
from rich.console import Console

from resnet_jax import UserError, train
from resnet_jax.errors import InterruptedRun
from resnet_jax.training.logs import read_metrics
from resnet_jax.workdir import lock_workdir, resume_command
from tests.runs import SETTINGS, assert_the_same_end, logged, start_process, stop_after
from tests.tiny import tiny_config


def corrupt(workdir, *steps):
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


@pytest.mark.parametrize("step", [3, 23, 50, 60])  # an evaluation follows the last two, and is left for later
def test_a_run_stopped_by_ctrl_c_ends_as_the_uninterrupted_one(finished, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(InterruptedRun, match=f"stopped at step {step} of 60, which is saved"):
            train(tiny_config(**SETTINGS), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["completed"] is False
    train(tiny_config(**SETTINGS), tmp_path)
    assert_the_same_end(tmp_path, finished[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"train__steps_per_call": 4},
        {"dtype": "bfloat16", "train__grad_accum_steps": 2, "augment__cutmix": 1.0},
        {"parallel__devices": 4, "parallel__wrapper": "pmap", "train__ema_decay": 0.9},
    ],
    ids=["several steps in a program", "bfloat16, microbatches, cutmix", "four devices, local statistics"],
)
def test_resuming_is_exact_in_other_settings_too(tmp_path, monkeypatch, settings):
    config = tiny_config(train__steps=24, **settings)
    train(config, tmp_path / "reference")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(InterruptedRun):
            train(config, tmp_path / "resumed")
    train(config, tmp_path / "resumed")
    assert_the_same_end(tmp_path / "resumed", tmp_path / "reference")


def test_a_corrupt_best_checkpoint_is_replaced_by_the_next_best(finished, tmp_path, capsys):
    workdir = copy_of(finished, tmp_path)
    corrupt(workdir, finished[1]["best"]["step"])
    result = train(tiny_config(**SETTINGS), workdir)
    assert "moved to checkpoints_corrupt/" in capsys.readouterr().out
    assert result["best"]["step"] != finished[1]["best"]["step"]
    assert result["last"] == finished[1]["last"]


def test_a_run_whose_checkpoints_are_all_corrupt_does_not_start_over(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    corrupt(workdir, *(path.name for path in (workdir / "checkpoints").iterdir()))
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        train(tiny_config(**SETTINGS), workdir)
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
        train(tiny_config(**SETTINGS), workdir)
    assert (workdir / name).read_text() == text


def test_a_second_run_in_the_same_workdir_is_refused_while_the_first_is_at_work(tmp_path):
    with lock_workdir(tmp_path), pytest.raises(UserError, match="another run is at work"):
        train(tiny_config(), tmp_path)
    assert train(tiny_config(train__steps=2), tmp_path / "free")["completed"]


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
    assert "resuming from step" in output
    assert_the_same_end(tmp_path, finished[0])


class InterruptedWrites(io.RawIOBase):
    """A file in whose first write Ctrl-C comes."""

    interrupted = False

    def writable(self):
        return True

    def write(self, data):
        if not self.interrupted:
            self.interrupted = True
            os.kill(os.getpid(), signal.SIGINT)
        return len(data)


def test_ctrl_c_while_a_line_is_printed_ends_the_run_cleanly(tmp_path):
    console = Console(file=io.TextIOWrapper(io.BufferedWriter(InterruptedWrites())))
    with pytest.raises(InterruptedRun, match="stopped at step 1 of 30, which is saved"):
        train(tiny_config(), tmp_path, console)


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
    assert process.returncode == 75, output
    assert "stopping after the next step" in output
    assert "stopped at step 1 of 100000, which is saved" in output or "stopped before a step was made" in output


def test_a_finished_run_is_shown_and_not_trained_again(finished, capsys):
    workdir, result = finished
    before = logged(workdir)
    assert train(tiny_config(**SETTINGS), workdir) == result
    assert "This run is complete" in capsys.readouterr().out
    assert logged(workdir) == before


def test_a_workdir_of_another_config_is_refused_with_the_difference(finished):
    with pytest.raises(UserError, match="optim.lr: 0.3 in the workdir, 0.2 given"):
        train(tiny_config(**{**SETTINGS, "optim__lr": 0.2}), finished[0])


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder that can be written"):
        train(tiny_config(), tmp_path / "file" / "run")


def test_several_steps_in_one_program_log_and_save_at_the_same_steps(finished, tmp_path):
    result = train(tiny_config(**SETTINGS, train__steps_per_call=4), tmp_path)
    assert [line[:2] for line in logged(tmp_path)][:-2] == [line[:2] for line in logged(finished[0])][:-2]
    losses = [[line[2] for line in logged(workdir) if line[0] == "train"] for workdir in (tmp_path, finished[0])]
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-3)
    assert result["completed"]


@pytest.mark.parametrize("optimizer", ["adamw", "lars", "lamb", "muon"])
def test_every_optimizer_trains_and_resumes(tmp_path, monkeypatch, optimizer):
    settings = {"optim__name": optimizer, "optim__lr": 1.0 if optimizer == "lars" else 0.01, "train__steps": 30}
    reference = tmp_path / "reference"
    losses = [line[2] for line in logged_after(train, tiny_config(**settings), reference) if line[0] == "train"]
    assert losses[-1] < losses[0]
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(InterruptedRun):
            train(tiny_config(**settings), tmp_path / "resumed")
    train(tiny_config(**settings), tmp_path / "resumed")
    assert_the_same_end(tmp_path / "resumed", reference)


def logged_after(train, config, workdir):
    train(config, workdir)
    return logged(workdir)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["train.py", "--lr=0.1 x"], "python train.py '--lr=0.1 x' '--workdir=/runs/a b'"),
        (["/x/train.py", "--workdir", "/runs/a b"], "python /x/train.py --workdir '/runs/a b'"),
        (["/y/ablate.py", "--cell=1"], "python -m resnet_jax.ablate --cell=1"),
        (["notebook"], "the same command with '--workdir=/runs/a b'"),
    ],
)
def test_the_command_that_continues_a_run_can_be_pasted(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert resume_command(pathlib.Path("/runs/a b")) == command
