"""A study that format 0 wrote, from `tests/golden`: what may have gone wrong, and how to mend it, is said there."""

import json
import pathlib
import shutil

import ml_collections
import pytest
from rich.console import Console

from resnet_jax import ablate
from resnet_jax.config.stored import differences, flatten
from resnet_jax.errors import UserError
from resnet_jax.studies import run as study_run
from resnet_jax.studies.run import run_study
from resnet_jax.studies.study import cell, make_study, read_study
from tests.studies.folders import table_rows
from tests.tiny import tiny_config

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "v0" / "study"


@pytest.fixture
def copied(tmp_path):
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "study"))


def todays(**overrides):
    """The study as today's code makes it."""
    experiment = tiny_config(train__steps=8, diagnostics__layers=True, diagnostics__lesions=True, checkpoint__keep=1)
    experiment.update_from_flattened_dict(overrides)
    plain = cell("tiny plain", {"model.shortcut": "none", "optim.lr": 0.05}, "plain")
    return make_study("Golden", experiment, [cell("tiny", {}, "residual"), plain], seeds=(0,))


def test_its_config_with_old_keys_is_that_of_the_same_study_today(copied):
    stored = json.loads((copied / "config.json").read_text())
    assert "precision" in stored["experiment"] and "runs_at_once" in stored
    found, expected = read_study(copied), todays()
    assert list(flatten(found)) == list(flatten(expected))  # in order: it stands in the report
    assert not list(differences(found.experiment, expected.experiment))
    for study in (found, expected):
        with study.unlocked():
            del study.experiment
    assert found.to_json() == expected.to_json()
    assert isinstance(found, ml_collections.ConfigDict) and found.is_locked


def test_its_report_is_written_and_its_results_stay_the_same_to_the_letter(copied, capsys):
    results = (copied / "results.jsonl").read_text()
    (copied / "results.jsonl").unlink()
    (copied / "report.md").unlink()
    ablate.main(["ablate", "--report", f"--workdir={copied}"])
    assert f"report: {copied / 'report.html'}" in "".join(capsys.readouterr().out.splitlines())
    assert (copied / "results.jsonl").read_text() == results
    report = (copied / "report.md").read_text()
    before = (GOLDEN / "report.md").read_text()
    old, new = table_rows(before), table_rows(report)
    assert [{column: row[column] for column in old[0]} for row in new] == old
    assert "None: all 2 runs are finished." in report
    drawn = {"error_curves", "error_by_cell", "layer_responses", "gradient_norms", "branches", "lesions"}
    assert {path.stem for path in (copied / "figures").glob("*.png")} == drawn
    assert (copied / "report.html").read_text().count("data:image/png;base64,") == len(drawn)


def test_no_run_of_it_is_trained_again(copied, monkeypatch):
    for name in ("train", "train_together"):
        monkeypatch.setattr(study_run, name, lambda *_: pytest.fail("a finished run was run again"))
    files = {path: path.read_bytes() for path in copied.rglob("cells/**/*") if path.is_file()}
    assert run_study(todays(), copied, Console(quiet=True)) == []
    assert {path: path.read_bytes() for path in copied.rglob("cells/**/*") if path.is_file()} == files
    assert (copied / "results.jsonl").read_text() == (GOLDEN / "results.jsonl").read_text()
    assert not list(differences(read_study(copied), todays()))


def test_another_study_is_refused_in_its_folder(copied):
    with pytest.raises(UserError, match=r"another experiment: 1 keys differ, like optim.lr: 0.1 .* 0.2 given"):
        run_study(todays(**{"optim.lr": 0.2}), copied, Console(quiet=True))
