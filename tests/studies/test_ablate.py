import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import resnet_jax
from resnet_jax import UserError, ablate, train
from resnet_jax.errors import InterruptedRun
from resnet_jax.studies import run as study_run
from resnet_jax.studies.grow import add_run
from resnet_jax.studies.run import print_cells, run_study
from resnet_jax.studies.study import cell, grid, make_study, read_study
from resnet_jax.training import loop
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
QUIET = Console(quiet=True)

FILE = """
from resnet_jax.studies.study import cell, make_study
from tests.tiny import tiny_config

def get_config():
    experiment = tiny_config(train__steps=120, eval__every_epochs=1.0, eval__test_curve=True, diagnostics__layers=True)
    cells = [cell("residual", {}, "residual"), cell("plain", {"model.shortcut": "none"}, "plain")]
    return make_study("Tiny nets", experiment, cells, seeds=(0, 1))
"""


def tiny_study(cells, seeds=(0,), **overrides):
    return make_study("Tiny nets", tiny_config(train__steps=5, **overrides), cells, seeds=seeds)


def lines(workdir):
    """results.jsonl without the times."""
    found = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.mark.slow
def test_a_study_has_one_result_for_each_cell_and_seed_and_runs_none_twice(tmp_path, monkeypatch):
    study = tiny_study(grid({"model.shortcut": ("none", "A")}), seeds=(3, 4))
    assert run_study(study, tmp_path, QUIET) == []
    found = lines(tmp_path)
    assert [(line["name"], line["seed"], line["overrides"]) for line in found] == [
        ("model.shortcut=none", 3, {"model.shortcut": "none"}),
        ("model.shortcut=none", 4, {"model.shortcut": "none"}),
        ("model.shortcut=A", 3, {"model.shortcut": "A"}),
        ("model.shortcut=A", 4, {"model.shortcut": "A"}),
    ]
    for line in found:
        folder = tmp_path / "cells" / line["name"] / f"seed{line['seed']}"
        result = json.loads((folder / "result.json").read_text())
        assert line["last"] == result["last"] and line["best"] == result["best"]
        assert line["last"].keys() == {"step", "train", "validation", "test"}
        assert json.loads((folder / "config.json").read_text())["seed"] == line["seed"]
    assert len({json.dumps(line["last"]) for line in found}) == 4
    monkeypatch.setattr(study_run, "train", lambda *_: pytest.fail("a finished run was run again"))
    (tmp_path / "results.jsonl").unlink()  # killed before it was written
    assert run_study(study, tmp_path, QUIET) == []
    assert lines(tmp_path) == found


@pytest.mark.slow
def test_a_corrupt_run_does_not_stop_the_rest_and_loses_nothing(tmp_path):
    study = tiny_study(grid({"model.shortcut": ("none", "A")}))
    run_study(study, tmp_path, QUIET)
    found = lines(tmp_path)
    corrupt = tmp_path / "cells" / "model.shortcut=none" / "seed0" / "result.json"
    text = corrupt.read_text()
    corrupt.write_text(text[:50])
    assert [run.cell["name"] for run in run_study(study, tmp_path, QUIET)] == ["model.shortcut=none"]
    assert lines(tmp_path) == found[1:]
    assert "cannot be read" in (corrupt.parent / "error.txt").read_text()
    corrupt.write_text(text)
    assert run_study(study, tmp_path, QUIET) == []
    assert lines(tmp_path) == found


@pytest.mark.slow
def test_ctrl_c_while_a_run_is_scored_ends_the_study_which_scores_it_when_it_continues(tmp_path, monkeypatch):
    study = tiny_study(grid({"model.shortcut": ("none", "A")}))
    finish = loop.final_result

    def interrupted(run, state):
        os.kill(os.getpid(), signal.SIGINT)
        return finish(run, state)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRun, match="to continue, give the same command"):
        patch.setattr(loop, "final_result", interrupted)
        run_study(study, tmp_path, QUIET)
    assert lines(tmp_path) == []
    assert run_study(study, tmp_path, QUIET) == []
    assert len(lines(tmp_path)) == 2


@pytest.mark.slow
def test_one_cell_can_be_run_alone(tmp_path):
    study = tiny_study(grid({"optim.lr": (0.1, 0.2)}))
    run_study(study, tmp_path, QUIET, only_cell=1)
    assert [line["name"] for line in lines(tmp_path)] == ["optim.lr=0.2"]
    for wrong in (-1, 2):
        with pytest.raises(UserError, match=f"--cell: expected 0 to 1, found {wrong}"):
            run_study(study, tmp_path, QUIET, only_cell=wrong)


@pytest.mark.slow
def test_a_failing_cell_does_not_stop_the_rest_and_is_tried_again(tmp_path, monkeypatch):
    study = tiny_study([cell("diverges", {"optim.lr": 1e30}), cell("breaks", {"optim.lr": 0.2}), cell("works", {})])
    train = study_run.train

    def breaking(config, folder, *rest):
        if "breaks" in str(folder):
            raise RuntimeError("out of memory\nin some layer")
        return train(config, folder, *rest)

    monkeypatch.setattr(study_run, "train", breaking)
    for _ in range(2):
        failed = run_study(study, tmp_path, QUIET)
        assert [run.cell["name"] for run in failed] == ["diverges", "breaks"]
        assert [line["name"] for line in lines(tmp_path)] == ["works"]
        texts = {run.cell["name"]: (run.folder / "error.txt").read_text() for run in failed}
        assert "is inf" in texts["diverges"] or "is nan" in texts["diverges"]
        assert texts["breaks"].startswith("RuntimeError: out of memory\n")
        assert "in breaking" in texts["breaks"]  # the traceback
    monkeypatch.setattr(study_run, "train", train)
    assert [run.cell["name"] for run in run_study(study, tmp_path, QUIET)] == ["diverges"]
    assert not (failed[1].folder / "error.txt").exists()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (grid({"optim.lrr": (1,)}), "optim.lrr"),
        ([], "empty grid"),
        ([cell("a", {}), cell("a", {})], "different names"),
        ([cell("a", {}), cell("b", {"parallel.devices": 9})], "cell 'b': parallel.devices: expected at most the 4"),
        ([cell("a", {}), cell("b", {"norm.name": "group"})], "cell 'b': norm.groups"),
        ([cell("a", {}), cell("b", {"optim.warmup_steps": 9})], "cell 'b': optim.warmup_epochs.*the run of 5 steps"),
        ([cell("a", {}), cell("b", {"data.name": "kmnist", "data.data_dir": "/nowhere"})], "kmnist is not prepared"),
    ],
)
def test_bad_studies_are_refused_before_anything_runs(tmp_path, cells, message):
    with pytest.raises(UserError, match=message):
        run_study(tiny_study(cells), tmp_path / "study", QUIET)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_workdir_of_another_study_or_of_a_run_is_refused(tmp_path):
    run_study(tiny_study([cell("a", {})]), tmp_path, QUIET)
    with pytest.raises(
        UserError, match="a study of another experiment: 1 keys differ, like optim.lr: 0.1 .* 0.2 given"
    ):
        run_study(tiny_study([cell("a", {})], optim__lr=0.2), tmp_path, QUIET)
    with pytest.raises(UserError, match="expected the folder of a study, found that of a run"):
        run_study(tiny_study([cell("a", {})]), tmp_path / "cells" / "a" / "seed0", QUIET)


@pytest.mark.slow
def test_a_study_grows_by_a_rate_a_seed_and_a_run_of_its_own(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    run_study(tiny_study(grid({"optim.lr": (0.1, 0.2)})), folder, QUIET)
    before = lines(folder)
    alone = tiny_study([cell("a", {})]).experiment.copy_and_resolve_references().lock()
    alone.optim.lr, alone.seed = 0.4, 1
    train(alone, tmp_path / "alone", QUIET)
    whole = add_run(read_study(folder), folder, tmp_path / "alone")
    assert [each["name"] for each in whole.cells] == ["optim.lr=0.1", "optim.lr=0.2", "optim.lr=0.4"]
    trained = []
    original = study_run.train
    monkeypatch.setattr(study_run, "train", lambda config, *a: trained.append(config) or original(config, *a))
    run_study(tiny_study(grid({"optim.lr": (0.2, 0.3)}), seeds=(0, 1)), folder, Console())
    assert f"{len(before) + 1} of 8 runs kept, {7 - len(before)} to do" in capsys.readouterr().out
    assert len(trained) == 7 - len(before)
    found = lines(folder)
    assert [line for line in found if line in before] == before
    assert {(line["name"], line["seed"]) for line in found} == {
        (f"optim.lr={rate}", seed) for rate in (0.1, 0.2, 0.3, 0.4) for seed in (0, 1)
    }
    with pytest.raises(UserError, match="has a run of 'optim.lr=0.4' with seed 1 already"):
        add_run(read_study(folder), folder, tmp_path / "alone")
    with pytest.raises(UserError, match=r"cell 'optim.lr=0.1': expected {'optim.lr': 0.1}, .* found {'optim.lr': 9.0}"):
        run_study(tiny_study([cell("optim.lr=0.1", {"optim.lr": 9.0})]), folder, QUIET)


@pytest.mark.slow
def test_several_seeds_at_once_give_the_results_of_each_alone(tmp_path, capsys):
    study = tiny_study([cell("a", {}), cell("b", {"optim.lr": 0.2})])
    run_study(study, tmp_path / "alone", QUIET)
    study.replicas = 2
    run_study(study, tmp_path / "together", Console())
    assert "2 runs at once: " in capsys.readouterr().out  # and how much faster that is
    for alone, together in zip(lines(tmp_path / "alone"), lines(tmp_path / "together"), strict=True):
        assert alone["last"]["test"] == pytest.approx(together["last"]["test"], rel=1e-3)


def command_line(folder, *arguments):
    (folder / "mine.py").write_text(FILE)
    return [f"--config={folder}/mine.py", f"--workdir={folder}/study", *arguments]


def in_this_process(folder, *arguments):
    ablate.main(["ablate", *command_line(folder, *arguments)])


def command(folder, *arguments):
    code = "import tests.tiny, resnet_jax.ablate as a; a.main()"  # the tiny net has to be registered first
    return [sys.executable, "-c", code, *command_line(folder, *arguments)]


# Compiled as users' programs are: see conftest.py.
XLA_FLAGS = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" in flag)
AS_USERS = {"cwd": ROOT, "env": {**os.environ, "XLA_FLAGS": XLA_FLAGS}}


def run_command(folder, *arguments):
    return subprocess.run(command(folder, *arguments), **AS_USERS, capture_output=True, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = run_command(folder)
    assert process.returncode == 0, process.stderr
    return folder / "study"


def curves(study):
    return {
        path.relative_to(study): [
            {key: value for key, value in json.loads(line).items() if key not in ("images_per_second", "input_wait")}
            for line in path.read_text().splitlines()
        ]
        for path in study.rglob("metrics.jsonl")
    }


def kill_at(folder, lines_written):
    """Run the study until its runs have logged so many lines."""

    def logged():
        return sum(len(path.read_text().splitlines()) for path in folder.glob("study/cells/*/seed*/metrics.jsonl"))

    process = subprocess.Popen(command(folder), **AS_USERS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while logged() < lines_written and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_study_that_was_killed_twice_ends_as_one_that_was_not(tmp_path, uninterrupted):
    for lines_written in (1, 30):  # early, and later
        kill_at(tmp_path, lines_written)
        in_this_process(tmp_path, "--report")
        assert "missing" in (tmp_path / "study" / "report.md").read_text()
    assert run_command(tmp_path).returncode == 0
    folders = (tmp_path / "study", uninterrupted)
    assert lines(tmp_path / "study") == lines(uninterrupted)
    assert curves(tmp_path / "study") == curves(uninterrupted)
    figures = [{path.name: path.read_bytes() for path in (folder / "figures").iterdir()} for folder in folders]
    assert figures[0] == figures[1]
    reports = [(folder / "report.md").read_text().replace(str(folder.parent), "") for folder in folders]
    without_times = [re.sub(r"\d+:\d\d:\d\d", "", report) for report in reports]
    assert without_times[0] == without_times[1]


@pytest.mark.slow
def test_the_command_lists_the_cells_and_runs_nothing(tmp_path, uninterrupted, capsys):
    in_this_process(uninterrupted.parent, "--list")
    shown = capsys.readouterr().out
    assert "residual" in shown and "2 of 2" in shown and "time left: 0:00:00" in shown
    in_this_process(tmp_path, "--list")
    shown = capsys.readouterr().out
    assert "0 of 2" in shown and "from 5 steps of tiny" in shown
    assert not (tmp_path / "study").exists()


def test_the_list_of_a_study_without_its_data_says_why_the_time_is_unknown(tmp_path, capsys):
    study = tiny_study([cell("a", {}), cell("b", {"optim.lr": 0.2})], data__name="kmnist", data__data_dir="/nowhere")
    print_cells(study, tmp_path / "study", Console())
    shown = capsys.readouterr().out
    assert "optim.lr=0.2" in shown and shown.count("0 of 1") == 2
    assert "time left: unknown, because: data.name: kmnist is not prepared in /nowhere; run: python -m" in shown
    table2 = resnet_jax.get_config("ablations/he2015_table2")
    table2.experiment.data.data_dir = "/nowhere"
    with pytest.raises(UserError, match="imagenet2012 is not prepared in /nowhere; run: python -m resnet_jax.data.pre"):
        print_cells(table2, tmp_path / "study", Console())
    assert not (tmp_path / "study").exists()


BAD_ARGUMENTS = [
    ("--config.experiment.optim.lrr=1", "did you mean 'lr'"),
    ("--cell=9", "--cell: expected 0 to 1, found 9"),
    ("--report", "found no config.json"),
    (f"--config={ROOT}/configs/default.py", "expected a study like configs/ablations/digits.py"),
    ("--config.cells=3", "cells: expected them from study.cell or study.grid"),
]


@pytest.mark.parametrize(("argument", "message"), BAD_ARGUMENTS)
def test_a_bad_command_line_is_one_message_and_status_2(tmp_path, capsys, argument, message):
    with pytest.raises(SystemExit) as raised:
        in_this_process(tmp_path, argument)
    assert raised.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown and "Traceback" not in shown
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_process_of_a_bad_command_line_ends_with_status_2(tmp_path):
    argument, message = BAD_ARGUMENTS[0]
    process = run_command(tmp_path, argument)
    assert process.returncode == 2
    assert message in process.stderr and "Traceback" not in process.stderr
