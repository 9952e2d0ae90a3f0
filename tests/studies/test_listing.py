"""The list of runs in a folder."""

import json
import pathlib
import shutil

import pytest

from resnet_jax import report
from tests.studies.folders import screen_rows

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


@pytest.fixture
def runs(tmp_path):
    """Two finished runs, one of them in a study, one that was stopped, one that was killed, one that is broken."""
    shutil.copytree(GOLDEN / "v1" / "digits_ema", tmp_path / "[red]ema")
    shutil.copytree(GOLDEN / "v1" / "digits_ema_stopped", tmp_path / "stopped")
    shutil.copytree(GOLDEN / "v0" / "photos_stopped", tmp_path / "killed")
    (tmp_path / "killed" / "result.json").unlink()
    shutil.copytree(GOLDEN / "v0" / "study", tmp_path / "study")
    shutil.copytree(GOLDEN / "v0" / "pixel_mean", tmp_path / "broken")
    (tmp_path / "broken" / "result.json").write_text("{")
    shutil.copytree(tmp_path / "killed", tmp_path / "cut")
    (tmp_path / "cut" / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step"\n')
    return tmp_path


def test_a_folder_of_runs_is_listed_with_model_data_scores_and_time(runs, capsys):
    report.main([str(runs)])
    found = {name: cells for name, *cells in screen_rows(capsys.readouterr().out)}
    result = json.loads((runs / "[red]ema" / "result.json").read_text())
    scores = [f"{result[weights]['test']['accuracy']:.2%}" for weights in ("last", "best")]
    assert found["[red]ema"] == ["tiny", "digits", "24 of 24", *scores, f"0:00:0{round(result['seconds'])}"]
    assert found["stopped"][:5] == ["tiny", "digits", "13 of 24", "", ""]
    folder = pathlib.Path(json.loads((runs / "killed" / "config.json").read_text())["data"]["data_dir"]).name
    assert found["killed"][:3] == ["tiny", f"folder {folder}", "12, not finished"]  # last logged
    assert found["study/cells/tiny/seed0"][:3] == ["tiny", "digits", "8 of 8"]
    assert "broken/result.json: cannot be" in found["broken"][0]
    assert "line 2 is not a line of metrics" in found["cut"][0]
    assert len([name for name in found if name]) == 7  # a long message has several lines


def test_a_folder_without_runs_is_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "found none; train one: python train.py" in capsys.readouterr().err
