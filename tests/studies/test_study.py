import json
import pathlib

import pytest

from resnet_jax import UserError
from resnet_jax.config import default
from resnet_jax.config.checks import check_config
from resnet_jax.config.flags import parse_command
from resnet_jax.studies.study import cell, check_study, collect, grid, make_study, run_config, run_folder
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
STUDIES = sorted((ROOT / "configs" / "ablations").glob("*.py"))


def study(cells=None, **settings):
    return make_study("A study", tiny_config(), [cell("one", {})] if cells is None else cells, **settings)


def read(path, *arguments):
    return parse_command(["x", f"--config={path}", *arguments], str(path), "", lambda values: None).config


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_and_says_how_to_run_it(path):
    config = read(path)
    check_study(config)
    text = path.read_text()
    assert f"python -m resnet_jax.ablate --config=configs/ablations/{path.name} --workdir=runs/" in text
    assert "Hardware:" in text


def test_the_promised_studies_are_there():
    names = "digits fashion_mnist he2015_figure6 he2015_table2 he2015_table3 he2016 shortcuts batchnorm transfer"
    assert {path.stem for path in STUDIES} == set(names.split())


def test_the_default_study_is_plain_and_residual_at_four_depths_with_three_seeds():
    config = read(ROOT / "configs" / "ablations" / "digits.py")
    names = {f"{kind}{depth}" for kind in ("plain", "resnet") for depth in (20, 32, 44, 56)}
    assert {each["overrides"]["model.name"] for each in config.cells} == names
    assert config.seeds == (0, 1, 2)


def test_a_grid_holds_every_combination_once():
    cells = grid({"model.name": ("plain20", "resnet20"), "optim.lr": (0.1, 0.2), "augment.flip": (True, False)})
    assert len(cells) == len({each["name"] for each in cells}) == 8
    assert cells[1] == {
        "name": "plain20, optim.lr=0.1, augment.flip=False",
        "overrides": {"model.name": "plain20", "optim.lr": 0.1, "augment.flip": False},
        "series": "",
    }


def test_a_run_is_the_experiment_with_the_overrides_of_its_cell_and_a_seed():
    given = study([cell("x", {"optim.lr": 0.3, "model.shortcut": "B", "train.epochs": 2.0})], seeds=(7,))
    config = run_config(given, given.cells[0], 7)
    expected = tiny_config(optim__lr=0.3, model__shortcut="B", train__epochs=2.0, train__steps=None, seed=7)
    assert config.to_json() == expected.to_json()
    assert given.experiment.optim.lr == tiny_config().optim.lr  # which another cell shall find as it was


@pytest.mark.parametrize(
    ("cells", "settings", "message"),
    [
        ([], {}, "cells: expected at least one cell, found an empty grid"),
        (grid({"optim.lr": ()}), {}, "found an empty grid"),
        ([cell("a", {}), cell("a", {"optim.lr": 1.0})], {}, "cells: expected different names, found 'a'"),
        ([cell("a", {"seed": 1})], {}, "cell 'a': seed: every cell is run with the seeds of the study"),
        ([cell(5, {})], {}, "cells: expected names of 1 to 100 letters, found 5"),
        ([cell("a" * 300, {})], {}, "cells: expected names of 1 to 100 letters"),
        ([{"name": "a"}], {}, "cells: expected them from study.cell or study.grid, found {'name': 'a'}"),
        ([3], {}, "cells: expected them from study.cell or study.grid, found 3"),
        ([cell("a, b", {}), cell("a-b", {})], {}, "cells: expected different names, found 'a, b' .* and 'a-b'"),
        (grid({"optim.lrr": (1,)}), {}, r"cell 'optim.lrr=1': optim.lrr: there is no such key; did you mean 'lr'\?"),
        (grid({"optm.lr": (1,)}), {}, "optm.lr: there is no such key; did you mean 'optim'"),
        (grid({"optim.lr.x": (1,)}), {}, "optim.lr.x: there is no such key"),
        (grid({"optim": (1,)}), {}, "optim: "),
        (grid({"optim.lr": ("fast",)}), {}, "cell 'optim.lr=fast': optim.lr: "),
        (grid({"optim.lr": (0.1, -1.0)}), {}, "cell 'optim.lr=-1.0': optim.lr: expected a finite number"),
        (grid({"model.name": ("resnet21",)}), {}, "model.name: .*did you mean .resnet"),
        (None, {"seeds": ()}, "seeds: expected different numbers, at least one"),
        (None, {"seeds": (1, 1)}, "seeds: expected different numbers"),
    ],
)
def test_a_study_that_cannot_run_is_refused(cells, settings, message):
    with pytest.raises(UserError, match=message):
        check_study(study(cells, **settings))


def test_keys_of_the_experiment_can_be_given_on_the_command_line():
    path = ROOT / "configs" / "ablations" / "digits.py"
    config = read(path, "--config.experiment.optim.lr=0.05", "--config.seeds=(4,5)", "--config.replicas=2")
    assert (config.experiment.optim.lr, config.seeds, config.replicas) == (0.05, (4, 5), 2)
    with pytest.raises(UserError, match="config.experiment.optim.lrr: there is no such key; did you mean 'lr'"):
        read(path, "--config.experiment.optim.lrr=0.05")


def test_collecting_finds_finished_half_run_corrupt_failed_and_missing_runs(tmp_path):
    given = study([cell("a b", {}), cell("c", {})], seeds=(0, 1, 2))
    assert [run.folder.relative_to(tmp_path).as_posix() for run in collect(given, tmp_path)] == [
        f"cells/{name}/seed{seed}" for name in ("a-b", "c") for seed in (0, 1, 2)
    ]
    finished = dict.fromkeys(("last", "best", "seconds", "parameters", "multiply_adds", "depth"), 1)
    files = {
        ("a b", 0): {"result.json": json.dumps({"completed": True, **finished}), "error.txt": "of an earlier time"},
        ("a b", 1): {"result.json": '{"completed": false}', "metrics.jsonl": '{"step": 1, "split": "train"}\n{"st'},
        ("a b", 2): {"result.json": '{"compl'},
        ("c", 0): {"result.json": json.dumps({"completed": True, "last": 1, "best": 1})},
        ("c", 1): {"error.txt": "it broke\ndetails"},
    }
    for (name, seed), texts in files.items():
        folder = run_folder(tmp_path, cell(name, {}), seed)
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text)
    runs = collect(given, tmp_path)
    assert [bool(run.result) for run in runs] == [True, False, False, False, False, False]
    assert [len(run.lines) for run in runs] == [0, 1, 0, 0, 0, 0]
    problems = [run.problem for run in runs]
    assert problems[0] == problems[1] == problems[5] == ""
    assert "result.json: cannot be read" in problems[2]
    assert "depth, multiply_adds, parameters, seconds missing" in problems[3]
    assert problems[4] == "failed: it broke"


def test_default_values_of_a_study_do_not_change_the_default_experiment():
    check_config(default.get_config())
    assert not any(default.get_config().diagnostics.values())
