"""python -m resnet_jax.checkpoint"""

import shutil

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import UserError
from resnet_jax.checkpoint import read_step, tools
from resnet_jax.checkpoint.__main__ import main
from tests.checkpoint.test_checkpoint import fill, items_of, open_checkpoints, scores


@pytest.fixture
def run(tmp_path):
    fill(tmp_path / "run", scores(0.9, 0.5, 0.6))
    return tmp_path / "run"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_the_listing_shows_scores_the_best_and_what_is_wrong(run, capsys):
    (run / "checkpoints" / "9").mkdir()
    main(["ls", str(run)])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert lines.keys() == {"1", "2", "3", "9"}
    assert "accuracy 0.9000" in lines["1"] and "best" in lines["1"] and "saved" in lines["2"]
    assert "it has no manifest.json" in lines["9"]


def test_verify_names_the_step_and_the_file_and_its_status_says_so(run, capsys):
    main(["verify", str(run)])
    assert capsys.readouterr().out.count("is whole") == 3
    broken = largest_file(run / "checkpoints" / "2")
    flip(broken)
    with pytest.raises(SystemExit) as end:
        main(["verify", str(run)])
    printed = capsys.readouterr()
    assert end.value.code == 2 and "corrupt: 2; a run that resumes leaves them out" in printed.err
    assert str(broken.relative_to(run / "checkpoints" / "2")) in printed.out.replace("\n", "")


def test_two_steps_differ_by_what_a_subtraction_says(run):
    left, right = (run / "checkpoints" / str(step) for step in (2, 3))
    found, equal = tools.differences(left, right)
    arrays = [read_step(folder, ("model", "optimizer"))[0] for folder in (left, right)]
    expected = {
        f"{item}.{name}": float(abs(array.astype(float) - arrays[1][item][name].astype(float)).max())
        for item, tree in arrays[0].items()
        for name, array in tree.items()
    }
    assert {each.name: each.largest for each in found} == {name: x for name, x in expected.items() if x}
    assert equal == sum(x == 0 for x in expected.values())
    assert tools.differences(left, left)[0] == []


def test_a_slim_copy_loads_the_same_and_has_no_optimizer(finished, tmp_path, capsys):
    main(["slim", str(finished[0]), "--to", str(tmp_path / "slim")])
    for loaded, slim in zip(
        resnet_jax.load_checkpoint(finished[0])[1].values(),
        resnet_jax.load_checkpoint(tmp_path / "slim")[1].values(),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, loaded, slim)
    assert tools.items_of(tmp_path / "slim") == ("model",)
    main(["diff", str(finished[0]), str(tmp_path / "slim")])
    printed = capsys.readouterr().out
    assert "optimizer.step" in printed and "nothing" in printed


def test_the_average_is_the_mean_of_each_array(run, tmp_path):
    main(["average", str(run), "--to", str(tmp_path / "mean")])
    found, manifest = read_step(tmp_path / "mean", ("model",))
    each = [read_step(run / "checkpoints" / str(step), ("model",))[0]["model"] for step in (1, 2, 3)]
    for name, array in found["model"].items():
        np.testing.assert_allclose(array, np.mean([arrays[name] for arrays in each], axis=0), rtol=1e-6, atol=1e-7)
        assert array.dtype == each[0][name].dtype
    assert manifest.step == 3


def test_steps_of_different_nets_or_a_single_one_have_no_average(run, tmp_path):
    with pytest.raises(UserError, match="expected two steps or more, found 1"):
        tools.average([run / "checkpoints" / "1"], tmp_path / "mean")
    with open_checkpoints(tmp_path / "wide") as checkpoints:
        checkpoints.save(1, items_of(1, width=8), metrics=None, notes={})
    with pytest.raises(UserError, match="expected steps of one net, found other arrays in .*wide"):
        tools.average([run / "checkpoints" / "1", tmp_path / "wide" / "checkpoints" / "1"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "/nowhere"], "expected a run, or the folder of one step of it, found neither"),
        (["slim", "RUN", "--to", "RUN"], "--to: expected the name of a new file"),
        (["diff", "RUN", "/nowhere"], "/nowhere: expected a run"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main([str(run) if argument == "RUN" else argument for argument in arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_a_run_without_checkpoints_is_said_to_have_none(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        tools.list_steps(tmp_path)


@pytest.mark.parametrize(("command", "paths"), [("slim", ["RUN"]), ("average", ["RUN", "RUN"])])
def test_what_cannot_be_written_is_one_line(finished, small_disk, capsys, command, paths):
    arguments = [str(finished[0]) if path == "RUN" else path for path in paths]
    disk = small_disk(1_000_000)
    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free - 1000))
    for out, reason in ((disk / "new", "No space left on device"), ("/proc/new", "cannot be written")):
        with pytest.raises(SystemExit):
            main([command, *arguments, "--to", str(out)])
        said = capsys.readouterr().err
        assert said.startswith(f"error: --to: {out} cannot be written: ") and reason in said and said.count("\n") == 1
    assert {path.name for path in disk.iterdir()} == {"filling"}
