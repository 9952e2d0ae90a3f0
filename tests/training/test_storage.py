"""What disks and people do to a run at work; and numbers that are not finite."""

import functools
import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import UserError, train
from resnet_jax.checkpoint import SavedSteps
from resnet_jax.config import build
from resnet_jax.environment import unseen_accelerator
from resnet_jax.errors import DivergedError
from resnet_jax.training.logs import MetricsLog, read_metrics
from resnet_jax.workdir import StorageError
from tests.runs import ROOT, at_step, logged
from tests.tiny import tiny_config

QUIET = Console(quiet=True)


def wait_for(path):
    """Return when something that is written in the background is there."""
    while not path.exists():
        os.sched_yield()


@pytest.mark.parametrize("where", ["batch_stats", "ema", "opt_state"])
def test_a_number_that_is_not_finite_outside_the_loss_stops_the_run_before_it_is_saved(
    tmp_path, monkeypatch, fresh_programs, where
):
    make = build.make_train_step

    def breaking(*arguments, **settings):
        step = make(*arguments, **settings)

        def broken(state, inputs):
            state, sums = step(state, inputs)
            part = getattr(state, where)
            leaves, structure = jax.tree.flatten(part)
            place = max(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))
            leaves[place] = jnp.where(state.step == 13, jnp.nan, leaves[place])
            return state.replace(**{where: jax.tree.unflatten(structure, leaves)}), sums

        return broken

    monkeypatch.setattr(build, "make_train_step", breaking)
    config = tiny_config(train__ema_decay=0.9, checkpoint__keep=9)
    with pytest.raises(
        DivergedError, match=r"is not finite after step 20|after step 20 is not finite|is nan|of step 1\d is"
    ) as stopped:
        train(config, tmp_path, QUIET)
    assert "last good checkpoint is of step 10" in str(stopped.value)
    assert SavedSteps(tmp_path).steps() == [10]


def test_a_full_disk_ends_a_run_with_one_line_and_the_run_can_go_on(small_disk, monkeypatch):
    workdir = small_disk(2_000_000) / "run"

    def fill():
        wait_for(workdir / "checkpoints" / "10")
        (workdir / "filling").write_bytes(bytes(shutil.disk_usage(workdir).free))

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left on device") as stopped:
        at_step(patch, {15: fill})
        train(tiny_config(), workdir, QUIET)
    assert "\n" not in str(stopped.value) and "Make room, then continue: the same command with" in str(stopped.value)
    assert SavedSteps(workdir).steps() == [10]
    (workdir / "filling").unlink()
    assert train(tiny_config(), workdir, QUIET)["completed"]


def test_a_run_goes_on_over_a_full_disk_if_it_is_told_to_and_keeps_what_it_had(small_disk, monkeypatch):
    workdir = small_disk(2_000_000) / "run"
    config = tiny_config(checkpoint__on_error="continue")

    def fill():
        wait_for(workdir / "checkpoints" / "10")
        (workdir / "filling").write_bytes(bytes(shutil.disk_usage(workdir).free))

    def empty():
        assert SavedSteps(workdir).steps() == [10]
        (workdir / "filling").unlink()

    with monkeypatch.context() as patch:
        at_step(patch, {15: fill, 28: empty})
        train(config, workdir, console := Console(file=io.StringIO()))
    assert "not saved, and training continues: " in console.file.getvalue()
    assert SavedSteps(workdir).steps() == [10, 30]
    train(tiny_config(), workdir.parent / "whole", QUIET)
    assert logged(workdir) == logged(workdir.parent / "whole")


def test_lines_that_a_full_disk_did_not_take_are_written_when_it_does(small_disk):
    workdir = small_disk(100_000)
    filling = workdir / "filling"
    with MetricsLog(workdir, lambda step: mock.Mock(), 0, tolerant=True) as log:
        filling.write_bytes(bytes(shutil.disk_usage(workdir).free))
        with pytest.warns(UserWarning, match="No space left on device; its lines are written later"):
            for step in range(200):
                log.write("layers", step, 0.0, {"x": 0.1 * step})
        assert len(read_metrics(workdir / "metrics.jsonl")) < 200
        filling.unlink()
        log.write("layers", 200, 0.0, {"x": 0.0})
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == list(range(201))
    with MetricsLog(workdir, lambda step: mock.Mock(), 200) as log, pytest.raises(OSError, match="No space left"):
        filling.write_bytes(bytes(shutil.disk_usage(workdir).free))
        for step in range(201, 400):
            log.write("layers", step, 0.0, {"x": 0.1 * step})


def test_events_that_cannot_be_written_end_and_the_run_does_not(tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def full():
        monkeypatch.setattr(RecordWriter, "flush", lambda self: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))

    at_step(monkeypatch, {6: full})
    with pytest.warns(UserWarning, match="TensorBoard events end here: No space left on device; metrics.jsonl has all"):
        assert train(tiny_config(), tmp_path, QUIET)["completed"]


@pytest.mark.parametrize("change", ["moved", "removed"])
def test_a_workdir_that_is_gone_is_one_line(tmp_path, monkeypatch, change):
    workdir = tmp_path / "run"

    def act():
        wait_for(workdir / "checkpoints" / "10")
        workdir.rename(tmp_path / "elsewhere")
        if change == "removed":
            shutil.rmtree(tmp_path / "elsewhere")

    at_step(monkeypatch, {15: act})
    with pytest.raises(StorageError, match="the folder .*run was moved or removed during the run") as stopped:
        train(tiny_config(), workdir, QUIET)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("name", ["metrics.jsonl", "card.json", "config.json", "checkpoints"])
def test_something_else_where_a_run_writes_is_one_line(tmp_path, name):
    if name == "checkpoints":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as refused:
        train(tiny_config(), tmp_path, QUIET)
    assert str(tmp_path / name) in str(refused.value) and "\n" not in str(refused.value)


def test_what_does_not_fit_into_memory_says_what_to_try(tmp_path, monkeypatch):
    at_step(monkeypatch, {2: lambda: jnp.zeros(10**14).block_until_ready()})
    with pytest.raises(UserError, match=r"device memory: .*ut of memory.* Try a smaller train.batch_size"):
        train(tiny_config(), tmp_path, QUIET)


def run_script(code, folder, **environment):
    (folder / "script.py").write_text(code)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_without_a_home_there_is_no_cache_and_training_goes_on(tmp_path):
    code = "import pathlib\ndef no_home(): raise RuntimeError('Could not determine home directory.')\n"
    code += "pathlib.Path.home = no_home\nfrom tests.tiny import tiny_config\nfrom resnet_jax import train\n"
    code += "print(train(tiny_config(train__steps=2), 'run')['completed'])"
    done = run_script(code, tmp_path, XDG_CACHE_HOME="")
    assert done.returncode == 0 and "True" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    code = "from tests.tiny import tiny_config\nfrom resnet_jax import train\n"
    code += "settings = dict(data__name='synthetic:40:2', data__loader='stream', data__image_size=16)\n"
    code += "config = tiny_config(data__validation_size=0, data__workers='processes', train__steps=2, **settings)\n"
    code += "config.train.batch_size = 8\ntrain(config, 'run')\n"
    done = run_script(code, tmp_path)
    assert done.returncode != 0
    assert 'put the call under if __name__ == "__main__"' in done.stderr
    assert "another run is at work" not in done.stderr


def test_an_accelerator_that_jax_does_not_see_is_pointed_out(tmp_path):
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "")
        assert unseen_accelerator(tmp_path) is None
        (tmp_path / "nvidia0").touch()
        assert "an NVIDIA GPU is here that JAX does not see" in unseen_accelerator(tmp_path)
        jax.config.update("jax_platforms", "cpu")
        assert unseen_accelerator(tmp_path) is None
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        ("evaluate", "--slpit=test", "--slpit=test: there is no such flag; did you mean '--split'"),
        ("summary", "--tabel", "did you mean '--table'"),
        ("doctor", "--topolgy=v5e:2x2", "did you mean 'topology'"),
        ("report", "--ouput=x", "did you mean '--output'"),
        ("data.prepare", "--dwnloads=x", "did you mean '--downloads'"),
        ("data.check", "--x", "there is no such flag"),
    ],
)
def test_an_unknown_flag_of_any_command_gets_the_nearest_one(module, argument, message, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"resnet_jax.{module}").main(["x", argument])
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_the_package_lists_its_commands_and_each_is_there(tmp_path):
    listing = subprocess.run([sys.executable, "-m", "resnet_jax"], cwd=ROOT, capture_output=True, text=True).stdout
    modules = [line.split()[2] for line in listing.splitlines() if line.startswith("python -m")]
    assert len(modules) == 11
    for name in modules:
        spec = importlib.util.find_spec(name)
        assert not spec.submodule_search_locations or importlib.util.find_spec(f"{name}.__main__"), name


def test_a_run_continues_with_other_settings_that_do_not_touch_the_result(tmp_path):
    with pytest.raises(UserError, match="stopped at step 10"):
        train(tiny_config(), tmp_path / "run", QUIET, stop_requested=lambda step: step == 10)
    train(tiny_config(), tmp_path / "whole", QUIET)
    changed = tiny_config(eval__batch_size=100, log__every_steps=5, checkpoint__keep=3, data__num_workers=1)
    result = train(changed, tmp_path / "run", QUIET)
    whole = train(tiny_config(), tmp_path / "whole", QUIET)
    assert result["last"]["test"] == pytest.approx(whole["last"]["test"], rel=1e-5)
    recorded = resnet_jax.workdir.read_environment(tmp_path / "run")["changes"]
    assert {(change["key"], change["from"], change["to"]) for change in recorded} == {
        ("eval.batch_size", 1000, 100),
        ("log.every_steps", 4, 5),
        ("checkpoint.keep", 2, 3),
        ("data.num_workers", None, 1),
    }
    with pytest.raises(UserError, match="another config(?s:.*)optim.momentum: 0.9 in the workdir, 0.5 given"):
        train(tiny_config(optim__momentum=0.5), tmp_path / "run", QUIET)


def test_a_run_is_made_longer_where_its_rates_stay_and_ends_as_if_it_had_been_so_long(tmp_path):
    step = {"optim__schedule": "step", "optim__lr": 0.05}
    short = tiny_config(**step, train__steps=20, optim__milestones=(0.5,))
    longer = tiny_config(**step, train__steps=40, optim__milestones=(0.25,))
    train(short, tmp_path / "run", QUIET)
    result = train(longer, tmp_path / "run", QUIET)
    whole = train(longer, tmp_path / "whole", QUIET)
    assert result["last"]["test"] == whole["last"]["test"]
    assert (tmp_path / "run" / "result-20.json").exists()
    with pytest.raises(UserError, match="has come to step 40 of 40, and with 80 the learning rates"):
        train(tiny_config(**step, train__steps=80, optim__milestones=(0.5,)), tmp_path / "run", QUIET)
    train(tiny_config(train__steps=10), tmp_path / "cosine", QUIET)
    with pytest.raises(UserError, match="take a schedule that stays") as refused:
        train(tiny_config(train__steps=20), tmp_path / "cosine", QUIET)
    offered = re.search(r"another --workdir, and --config.init_from=(\S+)", str(refused.value))[1]
    assert offered == str(tmp_path / "cosine" / "checkpoints" / "10")


def test_a_run_can_begin_with_the_weights_of_another(finished, tmp_path):
    source = finished[0]
    still = {"train__steps": 2, "optim__lr": 0.0, "optim__weight_decay": 0.0, "norm__momentum": 0.0}
    train(tiny_config(init_from=str(source), train__ema_decay=0.9, **still), tmp_path / "run", QUIET)
    expected = resnet_jax.load_checkpoint(source, step="best")[1]["params"]
    found, ema = (resnet_jax.load_checkpoint(tmp_path / "run", "latest", ema=ema)[1]["params"] for ema in (False, True))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ema, expected)
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["accuracy"] > 0.2  # what the other run had learnt
    with pytest.raises(UserError, match="what tiny does here, found tiny with other shortcut"):
        train(tiny_config(init_from=str(source), model__shortcut="B"), tmp_path / "other", QUIET)
    with pytest.raises(UserError, match="/nowhere"):
        train(tiny_config(init_from="/nowhere"), tmp_path / "nothing", QUIET)
