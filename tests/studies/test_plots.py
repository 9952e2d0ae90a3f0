"""Pictures of studies and runs, and the command that overlays them."""

import itertools
import pathlib

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from resnet_jax import report
from resnet_jax.studies import plots
from resnet_jax.training.logs import read_metrics
from resnet_jax.training.plots import plot_run
from tests.studies.folders import layers_line, make_cells, write_run

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def test_cells_are_told_apart_in_grey_and_a_degenerate_net_stays_in_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, target: figures.append(figure))
    depths = (20, 32, 56)
    cells = [plots.Cell(f"{series}{depth}", series, depth) for series in ("plain", "residual") for depth in depths]
    steps = np.arange(1, 5)
    curves = {each.name: plots.Curve(steps, np.full((2, 4), 90.0 if each.name == "plain56" else 0.5)) for each in cells}
    plots.plot_error_curves(cells, curves, curves, "test", tmp_path)
    looks = []
    for axes in figures[0].axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
        train, test = lines[::2], lines[1::2]
        assert all(thin.get_linewidth() < bold.get_linewidth() for thin, bold in zip(train, test, strict=True))
        looks.append([(line.get_color()[:3], line.get_marker()) for line in test])
        assert axes.get_ylim()[0] < 0.5 and axes.get_ylim()[1] > 90
    assert looks[0] == looks[1]
    assert np.all(np.diff([np.dot((0.2126, 0.7152, 0.0722), color) for color, _ in looks[0]]) > 0.1)
    assert len({marker for _, marker in looks[0]}) == 3


@pytest.fixture
def figures(monkeypatch):
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, target: drawn.append(figure))
    return drawn


@pytest.mark.parametrize("many", [8, 3])
def test_up_to_eight_curves_have_colours_that_can_be_told_apart(many, tmp_path, figures):
    cells = [plots.Cell(f"lr={index}", "", 20) for index in range(many)]
    curves = {each.name: plots.Curve(np.arange(1, 5), np.full((2, 4), 10.0)) for each in cells}
    plots.plot_error_curves(cells, curves, curves, "test", tmp_path)
    lines = [line for line in figures[0].axes[0].lines if len(line.get_xdata()) == 4][1::2]
    colors = [rgb2lab(to_rgb(line.get_color())) for line in lines]
    assert len(colors) == many == len({line.get_marker() for line in lines})
    # 2.3 can just be seen (Mahy et al. 1994); thin lines need much more.
    assert min(deltaE_ciede2000(one, other) for one, other in itertools.combinations(colors, 2)) > 12


@pytest.mark.parametrize(
    ("errors", "scale"),
    [
        ((60.0, 66.0, 70.0), "linear"),
        ((3.0, 4.0, 5.0), "linear"),
        ((16.0, 60.0, 90.0), "linear"),
        ((0.0, 0.0, 0.75), "linear"),
        ((0.5, 4.0, 90.0), "symlog"),
    ],
)
def test_an_axis_shows_all_errors_and_little_else(errors, scale, tmp_path, figures):
    by_cell = {f"cell {place}": np.array([x, x]) for place, x in enumerate(errors)} | {"all": np.array(errors)}
    lines = {"": {name: index for index, name in enumerate(by_cell)}}
    bar = np.mean(errors) + np.std(errors, ddof=1)
    plots.plot_final_errors(lines, "rate", {"Test error": by_cell}, tmp_path)
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == scale and low <= min(errors) and high >= max(*errors, bar)
    if scale == "linear":
        assert max(errors) - min(errors) > 0.2 * (high - low)


def test_numbers_have_their_places_on_an_axis_and_words_stand_side_by_side(tmp_path, figures):
    errors = {"Test error": {name: np.array([1.0, 2.0]) for name in "abc"}}
    plots.plot_final_errors({"": {"a": 0.01, "b": 0.1, "c": 1.0}}, "optim.lr", errors, tmp_path)
    plots.plot_final_errors({"": {"a": "none", "b": "$A^$", "c": "B"}}, "model.shortcut", errors, tmp_path)
    numbers, words = (figure.axes[0] for figure in figures)
    assert numbers.get_xscale() == "log" and numbers.get_xticks().tolist() == [0.01, 0.1, 1.0]
    assert [label.get_text() for label in words.get_xticklabels()] == ["none", "$A^$", "B"]
    assert words.get_xticks().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "ticks", "scale"),
    [
        ((0.3, 0.31, 0.32, 0.33, 1.0), ["0.3", "1"], "linear"),  # names would lie on each other
        ((0.0, 1e-5, 1e-4, 1e-3), ["0", "1e-05", "0.0001", "0.001"], "linear"),  # side by side, as a logarithm has no 0
        ((0.01, 0.1, 1.0), ["0.01", "0.1", "1"], "log"),
        ((20, 56, 110), ["20", "56", "110"], "log"),
    ],
)
def test_names_on_an_axis_can_be_read(values, ticks, scale, tmp_path, figures):
    errors = {"Test error": {str(x): np.array([1.0, 2.0]) for x in values}}
    plots.plot_final_errors({"": {str(x): x for x in values}}, "key", errors, tmp_path)
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks and axes.get_xscale() == scale


def test_legends_show_names_that_begin_with_an_underscore(tmp_path, figures):
    cells = [plots.Cell(name, "", 20) for name in ("_one", "two")]
    curves = {each.name: plots.Curve(np.arange(1, 4), np.full((2, 3), 10.0)) for each in cells}
    plots.plot_error_curves(cells, curves, curves, "test", tmp_path)
    line = {"epoch": 1.0, "split": "train", "loss": 1.0, "accuracy": 0.5}
    plots.plot_overlay({"_one": [line], "two": [line]}, tmp_path)
    shown = [figures[0].axes[0].get_legend(), figures[1].legends[0]]
    assert all("_one" in " ".join(text.get_text() for text in legend.get_texts()) for legend in shown)


@pytest.mark.parametrize("run", ["v0/digits_ema", "v0/photos", "v0/pixel_mean", "v1/digits_ema_stopped"])
def test_the_picture_of_any_run_can_be_drawn(run, tmp_path):
    lines = read_metrics(GOLDEN / run / "metrics.jsonl")
    plot_run(lines, tmp_path / "run.png", run)
    plot_run([line for line in lines if line["split"] == "train"], tmp_path / "train.png", run)
    plot_run([{**line, "loss": 0.0} for line in lines], tmp_path / "zero.png", run)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study with two finished runs."""
    workdir = tmp_path_factory.mktemp("study")
    for each in make_cells(("plain20", "resnet20")):
        write_run(workdir, each, 0, 1.0, 4.0, 20)
    return workdir


def test_the_command_overlays_runs_under_their_shortest_names(study, tmp_path, monkeypatch, capsys):
    cells = study / "cells"
    overlaid = {}
    plot_overlay = plots.plot_overlay
    monkeypatch.setattr(plots, "plot_overlay", lambda runs, to: (overlaid.update(runs), plot_overlay(runs, to)))
    target = tmp_path / "both.png"
    report.main([str(cells / "plain20" / "seed0"), str(cells / "resnet20" / "seed0"), "--output", str(target)])
    assert target.read_bytes().startswith(b"\x89PNG")
    assert list(overlaid) == ["plain20/seed0", "resnet20/seed0"]
    assert str(target) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{study}"], "that of a study"),
        (["{study}/nowhere"], "found no metrics.jsonl in"),
        (["{study}/cells/plain20/seed0", "--output={study}/no/such.png"], "--output: expected a picture"),
        (["{study}/cells/plain20/seed0", "--output={study}/x.mp3"], "--output: expected a picture"),
    ],
)
def test_bad_input_of_the_command_is_a_message_and_status_2(study, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main([argument.format(study=study) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_picture_of_a_run_takes_a_test_curve_or_single_points_and_ignores_layers(tmp_path):
    scores = {"loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1}
    lines = [
        {"step": step, "epoch": step, "split": split, **scores} for step in (1, 2, 3) for split in ("train", "test")
    ]
    plot_run([layers_line(0, 0), *lines], tmp_path / "curve.png", "A run")
    plot_run([layers_line(0, 0), *lines[:2]], tmp_path / "points.png", "A run")
    for name in ("curve.png", "points.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
