"""Several processes at work on the folder of one study, as jobs of an array are."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from resnet_jax import ablate
from resnet_jax.studies.run import run_study
from resnet_jax.studies.study import collect, grid, make_study
from resnet_jax.workdir import lock_workdir
from tests.runs import ROOT
from tests.tiny import tiny_config

STUDY = """
from resnet_jax.studies import grid, make_study
from tests.tiny import tiny_config

def get_config():
    cells = grid({"optim.lr": (0.1, 0.2)})
    return make_study("Jobs", tiny_config(train__steps=4), cells, seeds=(0, 1))
"""


def start_job(folder, *arguments):
    command = [
        sys.executable,
        "-m",
        "resnet_jax.ablate",
        f"--config={folder / 'jobs.py'}",
        f"--workdir={folder / 'study'}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], env=environment, **pipes)


@pytest.mark.slow
def test_jobs_that_start_at_once_lose_no_line(tmp_path):
    (tmp_path / "jobs.py").write_text(STUDY)
    jobs = [start_job(tmp_path, f"--cell={index}") for index in range(2)]
    outputs = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(outputs)
    lines = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    expected = [(f"optim.lr={lr}", seed) for lr in (0.1, 0.2) for seed in (0, 1)]
    assert [(line["name"], line["seed"]) for line in lines] == expected
    ablate.main(["ablate", "--report", f"--workdir={tmp_path / 'study'}"])
    assert "None: all 4 runs are finished." in (tmp_path / "study" / "report.md").read_text()


@pytest.mark.parametrize("replicas", [None, 2])
def test_a_run_that_another_process_is_at_work_on_is_left_to_it(tmp_path, replicas):
    study = make_study("Jobs", tiny_config(train__steps=4), grid({"optim.lr": (0.1, 0.2)}), seeds=(0,))
    study.replicas = replicas
    console = Console(record=True, file=io.StringIO())
    with lock_workdir(collect(study, tmp_path)[0].folder):
        assert run_study(study, tmp_path, console) == []
    assert "optim.lr=0.1, seed 0: left to another process, which is at work on it" in console.export_text()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["optim.lr=0.2"]
    assert not list(tmp_path.rglob("error.txt"))
    assert run_study(study, tmp_path, console) == []
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
