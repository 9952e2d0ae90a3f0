import json

import numpy as np
import pytest
from rich.console import Console

from resnet_jax import UserError, load_checkpoint, train
from resnet_jax.config.train import shared_program, train_together
from resnet_jax.errors import DivergedError
from resnet_jax.progress import progress_bars
from resnet_jax.training.hooks import Preempt
from resnet_jax.training.logs import read_metrics
from tests.tiny import tiny_config

QUIET = Console(quiet=True)
OWN = [{"seed": 0}, {"seed": 1}, {"seed": 1, "optim__lr": 0.05}]
SETTINGS = {
    "optim__warmup_steps": 10,  # without it rounding grows to 1e-3 in 20 steps, alone and together, on some processors
    "augment__pad_crop": 1,
    "augment__mixup": 0.2,
    "log__every_steps": 10,
    "diagnostics__layers": True,
    "diagnostics__precise_statistics": True,
}


def configs():
    return [tiny_config(**SETTINGS, **own) for own in OWN]


def together(configs, folder):
    folders = [folder / str(i) for i in range(len(configs))]
    return train_together(configs, folders, QUIET, progress_bars(QUIET), lambda step: False)


def curves(folder):
    """Everything in metrics.jsonl but the times, as {(split, step, name): value}."""
    values = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("step", "epoch", "split", "images_per_second", "input_wait"):
                parts = value if isinstance(value, dict) else {"": value}
                values |= {(line["split"], line["step"], name, part): number for part, number in parts.items()}
    return values


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for index, config in enumerate(configs()):
        train(config, folder / str(index), QUIET)
    return [curves(folder / str(index)) for index in range(len(OWN))]


def assert_same(folder, alone):
    for index, expected in enumerate(alone):
        found = curves(folder / str(index))
        assert list(found) == list(expected)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_seeds_and_rates_in_one_program_give_the_curves_of_each_alone(tmp_path, alone):
    results = together(configs(), tmp_path)
    assert_same(tmp_path, alone)
    assert not np.allclose(list(alone[0].values()), list(alone[1].values()), rtol=1e-2)
    for index, result in enumerate(results):
        assert result == json.loads((tmp_path / str(index) / "result.json").read_text())
        load_checkpoint(tmp_path / str(index))


class Killed(Exception):
    pass


def dies_after(step_of_death, monkeypatch, train):
    """Train until a run has logged and saved at this step, and no further."""

    def dies(self, step, state, hook=Preempt.__call__):  # the last of the hooks
        hook(self, step, state)
        if step >= step_of_death:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Preempt, "__call__", dies)
        train()


@pytest.fixture
def groups(monkeypatch):
    """The steps at which groups of runs start."""
    from resnet_jax.training import replicas as module

    found, train_group = [], module._train_group

    def spied(runs, program, stop_requested):
        found.append([run.step for run in runs])
        return train_group(runs, program, stop_requested)

    monkeypatch.setattr(module, "_train_group", spied)
    return found


@pytest.mark.slow
def test_runs_that_stopped_at_different_steps_end_as_each_alone(tmp_path, alone, monkeypatch, groups):
    dies_after(15, monkeypatch, lambda: train(configs()[0], tmp_path / "0", QUIET))
    together(configs(), tmp_path)
    assert groups[0] == [0, 0]
    assert len(groups[1]) == 1 and groups[1][0] > 0
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_runs_that_were_killed_together_continue_together(tmp_path, alone, monkeypatch, groups):
    dies_after(25, monkeypatch, lambda: together(configs(), tmp_path))
    together(configs(), tmp_path)
    assert groups == [[0, 0, 0], [20, 20], [30]]  # the first had saved once more
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_a_run_that_diverges_does_not_end_the_others(tmp_path, alone):
    good, bad = configs()[:2]
    bad.optim.lr = 1e30
    results = together([good, bad], tmp_path)
    assert isinstance(results[1], DivergedError)
    assert "the last good checkpoint" in str(results[1]) or "no checkpoint was saved" in str(results[1])
    assert_same(tmp_path, alone[:1])


def test_runs_of_different_programs_are_refused(tmp_path):
    different = [tiny_config(), tiny_config(augment__pad_crop=0)]
    assert len({shared_program(config) for config in different}) == 2
    with pytest.raises(UserError, match="differ in seed and optim.lr alone"):
        together(different, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4])
def test_a_run_that_diverges_where_lines_and_checkpoints_are_due_leaves_neither(tmp_path, every):
    """The rate of one run explodes in step 4, after which there is a line and an evaluation."""
    settings = {"optim__warmup_steps": 3, "optim__warmup_shape": "constant", "optim__warmup_from": 0.01}
    settings |= {"log__every_steps": every, "eval__every_epochs": 4 * 64 / 1257, "train__steps": 8}
    bad = tiny_config(seed=1, **settings)
    bad.optim.lr = 1e30
    results = together([tiny_config(seed=0, **settings), bad, tiny_config(seed=2, **settings)], tmp_path)
    assert results[0]["completed"] and results[2]["completed"]
    assert isinstance(results[1], DivergedError) and "of step 4 is" in str(results[1])
    lines = read_metrics(tmp_path / "1" / "metrics.jsonl")
    assert all(line["step"] < 4 for line in lines)
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_checkpoint(tmp_path / "1")
