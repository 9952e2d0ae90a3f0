"""Reports, from study folders that are written here by hand."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from configs import cifar10_he2015, default
from resnet_jax import findings, plots, report
from resnet_jax.studies.published import published_error
from resnet_jax.studies.study import cell, make_study, run_folder

# Training and test error of the last weights, percent, of seeds 0, 1, 2.
ERRORS = {
    "plain20": ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
    "plain56": ([80.0, 82.0, 84.0], [81.0, 82.0, 86.0]),
    "resnet20": ([1.0, 2.0, 3.0], [3.0, 3.5, 4.0]),
    "resnet56": ([2.0, 2.5, 4.5], [3.5, 3.0, 4.5]),
}


def make_cells(names=ERRORS):
    return [cell(name, {"model.name": name}, "plain" if "plain" in name else "residual") for name in names]


def write_run(workdir, one_cell, seed, train_error, test_error, depth, **measured):
    """A finished run: 3 points a curve that end at these errors, and 2 looks at 1 + 2 layers in 2 blocks."""
    folder = run_folder(workdir, one_cell, seed)
    folder.mkdir(parents=True)
    lines = [layers_line(0, seed)]
    for step in (10, 20, 30):
        for split, error in (("train", train_error), ("validation", test_error), ("test", test_error)):
            accuracy = 1 - (error + 30 - step) / 200 if step < 30 else 1 - error / 100
            scores = {"loss": 2 - accuracy, "accuracy": accuracy, "top5": 1.0, "learning_rate": 0.1}
            lines.append({"step": step, "epoch": step / 10, "split": split, **scores})
    lines.append(layers_line(30, seed))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = {line["split"]: {"accuracy": line["accuracy"]} for line in lines[-4:-1]}
    result = {
        "completed": True,
        "depth": depth,
        "parameters": 1000 * depth,
        "multiply_adds": 2_000_000 * depth,
        "seconds": 60.0 + 10 * seed,
        "last": {"step": 30, **last},
        "best": {"step": 20, **last, "test": {"accuracy": last["test"]["accuracy"] - 0.01}},
        **measured,
    }
    (folder / "result.json").write_text(json.dumps(result))


def layers_line(step, seed):
    norms = ("bn1", "stage1_block1/bn1", "stage1_block2/bn1")
    return {
        "step": step,
        "epoch": step / 10,
        "split": "layers",
        "response_std": dict(zip(norms, (0.5 + seed, 3.0, 1.0), strict=True)),
        "grad_norm": {"conv1": 9.0, "stage1_block1": 0.1 + step, "stage1_block2": 0.2 + step, "fc": 9.0},
        "branch_to_skip": {"stage1_block1": 0.5, "stage1_block2": 0.25},
        "norm_scale": dict(zip(norms, (1.0, 0.9, 0.8), strict=True)),
    }


MEASURED = {
    "lesions": {
        "accuracy": 0.9,
        "removed": {"stage1_block1": 0.5, "stage1_block2": 0.8},
        "swapped": {"stage1_block1, stage1_block2": 0.7},
    },
    "batch_statistics": {"running": {"accuracy": 0.9}, "precise": {"accuracy": 0.92}},
}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a study whose runs are all finished, with a report, and what was drawn."""
    workdir = tmp_path_factory.mktemp("study")
    study = make_study("Depth & <degradation>", default.get_config(), make_cells())
    for each in study.cells:
        for seed in study.seeds:
            train, test = ERRORS[each["name"]]
            write_run(workdir, each, seed, train[seed], test[seed], int(each["name"][-2:]), **MEASURED)
    environment = {"command": ["/somewhere/ablate.py", "--workdir=runs/a b"], "jax": "0.10.2", "git_revision": "abc+"}
    for folder in workdir.glob("cells/*/*"):
        (folder / "environment.json").write_text(json.dumps(environment))
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_error_curves", "plot_final_errors", "plot_layers"):
            patch.setattr(plots, name, spy(getattr(plots, name), drawn))
        report.write_report(study, workdir)
    return study, workdir, drawn


def spy(function, drawn):
    def draw(*arguments):
        drawn[arguments[-1].name] = arguments[1:-1]
        function(*arguments)

    return draw


def table_row(text, name):
    """A row of the table of results as {column: cell}."""
    table = text.split("## Results\n\n")[1].split("\n\n")[0].split("\n")
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in (table[0], *table[2:])]
    return next(dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[0] == name)


def p_of_three(differences):
    """Two-sided p of a t-test with 2 degrees of freedom, whose distribution has a closed form."""
    t = np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(3))
    return 1 - abs(t) / math.sqrt(2 + t**2)


def test_a_difference_is_stated_with_its_direction_interval_and_p():
    # Differences 10, 8, 9: mean 9, standard deviation 1; the t quantile 0.975 at 2 degrees is .95 / sqrt(2 .975 .025).
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert f"{p_of_three([10, 8, 9]):.2g}" == "0.0041"
    rest = (
        f"(95% confidence interval {9 - half:.2f} to {9 + half:.2f}; {{}} in 3 of 3 seeds; paired t-test over 3 seeds"
    )
    higher = findings.compare_errors("training", "plain56", "plain20", [11, 10, 12], [1, 2, 3])
    expected = f"plain56's training error is higher than plain20's by 9.00 points {rest.format('higher')}, p = 0.0041)."
    assert higher == expected
    lower = findings.compare_errors("test", "plain20", "plain56", [1, 2, 3], [11, 10, 12])
    expected = f"plain20's test error is lower than plain56's by 9.00 points {rest.format('lower')}, p = 0.0041)."
    assert lower == expected


def test_without_significance_no_difference_is_claimed_and_no_equality():
    sentence = findings.compare_errors("test", "a", "b", [3.0, 1.0, 2.5], [1.0, 2.0, 1.5])
    assert sentence.startswith("The data do not show a difference between the test errors of a and b")
    assert "a's minus b's: 0.67 points" in sentence
    assert "higher in 2 of 3 seeds" in sentence
    assert f"p = {p_of_three([2, -1, 1]):.2g})" in sentence
    assert "same" not in sentence


def test_where_no_test_is_possible_the_sentence_says_so():
    one = findings.compare_errors("test", "a", "b", [5.0], [7.5])
    assert (
        one
        == "a's test error is lower than b's by 2.50 points in the one seed that both have finished; one seed "
        + ("allows no test.")
    )
    rounded = findings.compare_errors("test", "a", "b", [10.3, 11.3, 0.8], [5.3, 6.3, -4.2])  # 5, but for rounding
    assert "higher than b's by 5.00 points in each of 3 seeds; differences that do not vary allow no test" in rounded
    assert "p " not in rounded
    assert "a's test error equals b's in each of 2 seeds" in findings.compare_errors("test", "a", "b", [1, 2], [1, 2])
    assert "no seed in common" in findings.compare_errors("test", "a", "b", [], [])


def test_the_table_holds_means_and_standard_deviations(complete):
    study, workdir, _ = complete
    row = table_row((workdir / "report.md").read_text(), "plain56")
    assert row == {
        "cell": "plain56",
        "depth": "56",
        "seeds": "3 of 3",
        "parameters": "56,000",
        "multiply-adds": "112,000,000",
        "training error, %": "82.00 ± 2.00",
        "test error (last), %": f"83.00 ± {math.sqrt(7):.2f}",  # (4 + 1 + 9) / 2
        "test error (best), %": f"84.00 ± {math.sqrt(7):.2f}",
        "time per run": "0:01:10",
    }


def test_what_the_data_show_compares_depths_and_series_over_the_same_seeds(complete):
    text = (complete[1] / "report.md").read_text()
    findings = text.split("## What the data show\n\n")[1].split("\n\n##")[0]
    lines = findings.split("\n")
    assert "plain56's training error is higher than plain20's by 80.00 points" in lines[0]  # 79, 80, 81
    assert "in 3 of 3 seeds" in lines[0]
    assert "plain56's test error is higher than plain20's by 78.00 points" in lines[1]  # 77, 77, 80
    assert "between the training errors of resnet56 and resnet20 (resnet56's minus resnet20's: 1.00 points" in lines[2]
    assert f"p = {p_of_three([1, 0.5, 1.5]):.2g})" in lines[2]
    assert "between the test errors of resnet56 and resnet20" in lines[3]
    assert "resnet56's training error is lower than plain56's by 79.00 points" in lines[4]
    assert "resnet56's test error is lower than plain56's by 79.33 points" in lines[5]
    assert findings.count("not corrected for the number of comparisons, 6") == 1


def test_figures_show_what_was_measured(complete):
    drawn = complete[2]
    train, evaluated, split = drawn["error_curves.png"]
    assert split == "test"
    assert train["plain56"].steps.tolist() == [10, 20, 30]
    np.testing.assert_allclose(train["plain56"].errors[1], [51.0, 46.0, 82.0])
    np.testing.assert_allclose(evaluated["plain56"].errors[:, -1], [81.0, 82.0, 86.0])
    (errors,) = drawn["final_errors.png"]
    np.testing.assert_allclose(errors["Test error"]["plain56"], [81.0, 82.0, 86.0])
    in_order, by_magnitude = (panel.values["plain20"] for panel in drawn["layer_responses.png"][0])
    np.testing.assert_allclose(in_order, [[0.5, 3, 1], [1.5, 3, 1], [2.5, 3, 1]])
    np.testing.assert_allclose(by_magnitude, [[3, 1.5, 1]])
    first, last = (panel.values["plain20"] for panel in drawn["gradient_norms.png"][0])
    np.testing.assert_allclose((first[0], last[0]), [[0.1, 0.2], [30.1, 30.2]])
    removed, swapped = (panel.values["resnet20"][0] for panel in drawn["lesions.png"][0])
    np.testing.assert_allclose(removed, [90, 50, 80])
    np.testing.assert_allclose(swapped, [90, 70])


def test_cells_are_told_apart_in_grey_and_a_degenerate_net_stays_in_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, target: figures.append(figure))
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


class Page(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_shows_every_figure(complete):
    _, workdir, _ = complete
    text = (workdir / "report.html").read_text()
    page = Page(text)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(list((workdir / "figures").glob("*.png"))) == 6
    for attributes in pictures:
        assert attributes["src"].startswith("data:image/png;base64,")
        assert "plain" in attributes["alt"]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    outside = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert not [value for value in outside if not value.startswith("data:")]
    assert "url(" not in text and "@import" not in text
    assert "<h1>Depth &amp; &lt;degradation&gt;</h1>" in text
    assert sum(tag == "table" for tag, _ in page.tags) == 2


def test_the_report_names_every_picture_and_how_it_was_made_and_is_rebuilt_to_the_byte(complete):
    study, workdir, _ = complete
    before = (workdir / "report.md").read_text()
    named = set(re.findall(r"\]\((figures/.*?)\)", before))
    assert named == {f"figures/{path.name}" for path in (workdir / "figures").iterdir()}
    assert "python -m resnet_jax.ablate '--workdir=runs/a b'" in before
    assert "jax: 0.10.2\ngit_revision: abc+" in before
    assert '"model.name": "plain56"' in before
    assert "| resnet20 | 3 | 10.00 ± 0.00 | 8.00 ± 0.00 | -2.00 ± 0.00 |" in before
    report.write_report(study, workdir)
    assert (workdir / "report.md").read_text() == before


def test_a_finished_run_that_has_lost_its_curves_is_shown_as_missing(tmp_path):
    study = make_study("Parts", default.get_config(), make_cells())
    for seed in (0, 1, 2):
        write_run(tmp_path, study.cells[0], seed, 1.0, 4.0, 20)
    (run_folder(tmp_path, study.cells[0], 1) / "metrics.jsonl").unlink()
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| plain20 | 20 | 2 of 3; finished, but its metrics.jsonl is missing or cannot be read |" in text
    assert "- plain20, seed 1: finished, but its metrics.jsonl is missing" in text


def test_the_commands_of_all_sessions_are_at_the_foot(tmp_path):
    study = make_study("Parts", default.get_config(), make_cells())
    for seed in (0, 1, 2):
        write_run(tmp_path, study.cells[0], seed, 1.0, 4.0, 20)
        environment = {"command": ["ablate.py", f"--cell={seed // 2}"], "git_revision": f"abc{seed // 2}"}
        (run_folder(tmp_path, study.cells[0], seed) / "environment.json").write_text(json.dumps(environment))
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "```\npython -m resnet_jax.ablate --cell=0\npython -m resnet_jax.ablate --cell=1\n```" in text
    assert "```\ngit_revision: abc0\n\ngit_revision: abc1\n```" in text


def test_missing_half_done_and_failed_runs_are_shown(tmp_path):
    study = make_study("Parts", default.get_config(), make_cells())
    plain20, plain56, resnet20, resnet56 = study.cells
    write_run(tmp_path, plain20, 0, 1.0, 4.0, 20)
    write_run(tmp_path, plain20, 2, 3.0, 6.0, 20)
    half = run_folder(tmp_path, plain20, 1)  # killed within a line, stopped by Ctrl-C before
    half.mkdir(parents=True)
    (half / "metrics.jsonl").write_text(json.dumps({"step": 7, "split": "train", "accuracy": 0.5}) + '\n{"step": 8')
    (half / "result.json").write_text(json.dumps({"completed": False, "step": 7}))
    write_run(tmp_path, resnet56, 1, 2.5, 3.0, 56)
    failed = run_folder(tmp_path, plain56, 0)
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("the loss of step 3 is nan | <b>\n\nTraceback ...\n")
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    row = table_row(text, "plain20")
    assert row["seeds"] == "2 of 3"
    assert row["training error, %"] == f"2.00 ± {math.sqrt(2):.2f}"
    assert table_row(text, "resnet20")["seeds"] == "missing"
    assert table_row(text, "resnet56")["training error, %"] == "2.50"
    assert r"| missing; failed: the loss of step 3 is nan \| \<b\> |" in text
    missing = text.split("## Missing runs\n\n")[1].split("\n\n## ")[0]
    assert missing.startswith("9 of 12 runs are not finished")
    assert "- plain20, seed 1: not finished, last logged at step 7\n" in missing
    assert "- plain56, seed 0: failed: the loss of step 3 is nan" in missing
    assert missing.endswith("- resnet56, seed 2: not begun")
    assert "resnet56 and plain20 have finished no seed in common" in text
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_a_study_with_nothing_finished_has_a_report_without_pictures(tmp_path):
    study = make_study("Nothing", default.get_config(), make_cells())
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Nothing can be compared yet" in text
    assert "12 of 12 runs are not finished" in text
    assert "figures/" not in text


def test_without_two_depths_every_cell_is_compared_with_the_first_on_the_test_split(tmp_path):
    cells = [cell(f"lr={lr}", {"optim.lr": lr}) for lr in (0.1, 0.2, 0.3)]
    study = make_study("Rates", default.get_config(), cells, seeds=(0, 1))
    for each, error in zip(study.cells, (10.0, 11.0, 9.0), strict=True):
        for seed in study.seeds:
            write_run(tmp_path, each, seed, 0.0, error + seed, 20)
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- lr=0.2's test error is higher than lr=0.1's by 1.00 points in each of 2 seeds" in text
    assert "- lr=0.3's test error is lower than lr=0.1's by 1.00 points in each of 2 seeds" in text
    assert "training error is" not in text.split("##")[1]
    assert "final_errors.png" not in text


def test_the_published_value_stands_beside_ours_with_what_differs(tmp_path):
    cells = [cell("paper", {}), cell("short", {"train.steps": 780, "augment.mixup": 0.2}), cell("plain", {})]
    cells[2]["overrides"]["model.name"] = "plain56"
    study = make_study("Protocols", cifar10_he2015.get_config("resnet56"), cells)
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert table_row(text, "paper")["published test error, %"] == "6.97 (He 2015 Table 6; same protocol)"
    assert table_row(text, "short")["published test error, %"] == "6.97 (He 2015 Table 6; another protocol, note 1)"
    assert table_row(text, "plain")["published test error, %"] == ""
    note = "from He 2015 Table 6: train.steps: 780 here, 64000 there; augment.mixup: 0.2 here, 0.0 there."
    assert f"Note 1: what differs {note}" in text


@pytest.mark.parametrize(
    ("name", "percent"), [("resnet20", 8.75), ("resnet32", 7.51), ("resnet44", 7.17), ("resnet56", 6.97)]
)
def test_the_papers_recipe_has_the_papers_protocol(name, percent):
    assert published_error(cifar10_he2015.get_config(name)) == (percent, "He 2015 Table 6", ())


def test_a_published_value_is_found_for_the_same_net_and_data_alone():
    assert published_error(default.get_config()) is None  # digits
    config = cifar10_he2015.get_config("resnet56")
    config.model.shortcut = "B"
    assert published_error(config) is None
    config.model.shortcut = "A"
    config.train.steps, config.train.epochs = None, 10.0
    assert published_error(config).differences == ("train.epochs: 10 here, 64000 steps there",)
    best_of_five = published_error(cifar10_he2015.get_config("resnet110"))
    assert best_of_five.value_percent == 6.43
    assert len(best_of_five.differences) == 1 and "best of 5 runs there" in best_of_five.differences[0]


@pytest.mark.parametrize(
    ("name", "shortcut", "percent", "crops"),
    [
        ("plain34", None, 28.54, 10),
        ("resnet18", "A", 27.88, 10),
        ("resnet34", "A", 25.03, 10),
        ("resnet34", None, 24.52, 10),
        ("resnet34", "C", 24.19, 10),
        ("resnet50_v1", None, 24.7, 1),
    ],
)
def test_imagenets_values_say_how_many_crops_they_had(name, shortcut, percent, crops):
    config = default.get_config()
    config.data.name, config.model.name, config.model.shortcut = "imagenet2012", name, shortcut
    published = published_error(config)
    assert published.value_percent == percent
    assert f"{crops}-crop" in published.source
    assert ("10-crop there, 1-crop here" in published.differences) == (crops == 10)


def test_the_command_overlays_runs_under_their_shortest_names(complete, tmp_path, monkeypatch, capsys):
    cells = complete[1] / "cells"
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
def test_bad_input_of_the_command_is_a_message_and_status_2(complete, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main([argument.format(study=complete[1]) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_picture_of_a_run_takes_a_test_curve_or_single_points_and_ignores_layers(tmp_path):
    scores = {"loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1}
    lines = [
        {"step": step, "epoch": step, "split": split, **scores} for step in (1, 2, 3) for split in ("train", "test")
    ]
    plots.plot_run([layers_line(0, 0), *lines], tmp_path / "curve.png", "A run")
    plots.plot_run([layers_line(0, 0), *lines[:2]], tmp_path / "points.png", "A run")
    for name in ("curve.png", "points.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
