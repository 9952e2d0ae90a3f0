"""Reports, from study folders that are written here by hand."""

import html
import html.parser
import json
import math
import re

import numpy as np
import pytest

from resnet_jax.config import default
from resnet_jax.studies import plots, report
from resnet_jax.studies.study import cell, grid, make_study, run_folder
from tests.studies.folders import DIAGNOSED, ERRORS, make_cells, p_of_three, table_row, write_run


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a study whose runs are all finished, with a report, and what was drawn."""
    workdir = tmp_path_factory.mktemp("study")
    study = make_study("Depth & <degradation>", default.get_config(), make_cells())
    for each in study.cells:
        for seed in study.seeds:
            train, test = ERRORS[each["name"]]
            write_run(workdir, each, seed, train[seed], test[seed], int(each["name"][-2:]), **DIAGNOSED)
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
    assert findings.startswith(
        "In each series the deepest cell is compared with the shallowest; other series with plain"
    )
    lines = [line for line in findings.split("\n") if line.startswith("- ")]
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
    assert train["plain56"].epochs.tolist() == [1, 2, 3]
    np.testing.assert_allclose(train["plain56"].errors[1], [51.0, 46.0, 82.0])
    np.testing.assert_allclose(evaluated["plain56"].errors[:, -1], [81.0, 82.0, 86.0])
    xlabel, errors = drawn["final_errors.png"]
    assert xlabel == "depth, layers"
    np.testing.assert_allclose(errors["Test error"]["plain56"], [81.0, 82.0, 86.0])
    in_order, by_magnitude = (panel.values["plain20"] for panel in drawn["layer_responses.png"][0])
    np.testing.assert_allclose(in_order, [[0.5, 3, 1], [1.5, 3, 1], [2.5, 3, 1]])
    np.testing.assert_allclose(by_magnitude, [[3, 1.5, 1]])
    first, last = (panel.values["plain20"] for panel in drawn["gradient_norms.png"][0])
    np.testing.assert_allclose((first[0], last[0]), [[0.1, 0.2], [30.1, 30.2]])
    removed, swapped = (panel.values["resnet20"][0] for panel in drawn["lesions.png"][0])
    np.testing.assert_allclose(removed, [90, 50, 80])
    np.testing.assert_allclose(swapped, [90, 70])


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


def test_cells_that_differ_in_one_key_are_compared_and_the_baseline_is_named(tmp_path, monkeypatch):
    experiment = default.get_config()  # resnet20 at a rate of 0.1
    study = make_study("Rates", experiment, grid({"norm.groups": (16, 32), "optim.lr": (0.05, 0.1, 0.2)}), seeds=(0, 1))
    for index, each in enumerate(study.cells):
        for seed in study.seeds:
            write_run(tmp_path, each, seed, 0.0, 10.0 + index + seed, 20)
    drawn = {}
    monkeypatch.setattr(plots, "plot_final_errors", spy(plots.plot_final_errors, drawn))
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    shown = text.split("##")[1]
    assert (
        "A cell is compared with those that differ from it in one key; baseline: norm.groups=32, optim.lr=0.1." in shown
    )
    compared = re.findall(r"- (\S+, \S+)'s test error is (\S+) than (\S+, \S+)'s by (\S+) points in each of 2", shown)
    rate = "norm.groups={}, optim.lr={}".format
    assert compared == [
        *((rate(16, lr), "lower", rate(32, lr), "3.00") for lr in (0.05, 0.1, 0.2)),
        (rate(16, 0.05), "lower", rate(16, 0.1), "1.00"),
        (rate(16, 0.2), "higher", rate(16, 0.1), "1.00"),
        (rate(32, 0.05), "lower", rate(32, 0.1), "1.00"),
        (rate(32, 0.2), "higher", rate(32, 0.1), "1.00"),
    ]
    assert "training error is" not in shown
    row = table_row(text, "norm.groups=16, optim.lr=0.2")
    assert (row["norm.groups"], row["optim.lr"]) == ("16", "0.2")
    assert list(row)[:3] == ["cell", "norm.groups", "optim.lr"]
    assert drawn.keys() == {"error_by_norm.groups.png", "error_by_optim.lr.png"}
    xlabel, errors = drawn["error_by_optim.lr.png"]
    assert xlabel == "optim.lr" and errors["Test error"]["norm.groups=32, optim.lr=0.2"] == pytest.approx([15, 16])


def test_a_cell_that_differs_in_several_keys_is_compared_and_they_are_named(tmp_path):
    cells = [cell("base", {}), cell("half", {"norm.groups": 16}), cell("both", {"optim.lr": 0.01, "norm.name": "none"})]
    study = make_study("Norms", default.get_config(), cells, seeds=(0,))
    for each, error in zip(study.cells, (10.0, 11.0, 9.0), strict=True):
        write_run(tmp_path, each, 0, 0.0, error, 20)
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text().split("##")[1]
    assert "both and base differ in optim.lr and norm.name." in text
    assert "- half's test error is higher than base's by 1.00 points" in text
    assert "- both's test error is lower than base's by 1.00 points" in text
    assert (tmp_path / "figures" / "error_by_cell.png").exists()


@pytest.mark.parametrize(("seeds", "warned"), [(2, "all cells"), (3, None)])
def test_fewer_than_three_seeds_are_warned_of(seeds, warned, tmp_path):
    study = make_study("Seeds", default.get_config(), make_cells(("plain20", "resnet20")), seeds=range(seeds))
    for each in study.cells:
        for seed in study.seeds:
            write_run(tmp_path, each, seed, 1.0, 2.0 + seed, 20)
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    found = re.search(r"\*\*Fewer than three seeds\*\* have finished in (.*): a difference may be chance", text)
    assert (found and found[1]) == warned


def test_cells_beside_a_series_are_compared_by_their_keys_and_drawn(tmp_path):
    cells = [*make_cells(), cell("resnet20, lr=0.3", {"model.name": "resnet20", "optim.lr": 0.3})]
    study = make_study("More", default.get_config(), cells, seeds=(0, 1, 2))
    for each in study.cells:
        for seed in study.seeds:
            write_run(tmp_path, each, seed, 1.0, 2.0 + seed, int(each["name"].split(",")[0][-2:]))
    report.write_report(study, tmp_path)
    shown = (tmp_path / "report.md").read_text().split("##")[1]
    assert "In each series the deepest" in shown and "A cell is compared with those that differ" in shown
    assert "- resnet20, lr=0.3's test error equals resnet20's in each of 3 seeds" in shown
    assert shown.count("\n- ") == 7
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"final_errors.png", "error_by_cell.png"} <= drawn


def test_a_trial_is_called_one(tmp_path):
    study = make_study("Trial", default.get_config(), make_cells(("plain20", "resnet20")), seeds=(0,))
    for each in study.cells:
        write_run(tmp_path, each, 0, 1.0, 2.0, 20, max_examples=20)
    report.write_report(study, tmp_path)
    assert (
        "**A trial**: errors on the validation and the test split are those of at most 20 examples"
        in (tmp_path / "report.md").read_text()
    )


def test_the_page_fits_a_phone_and_wide_tables_scroll(complete):
    text = (complete[1] / "report.html").read_text()
    page = Page(text)
    viewport = [attributes["content"] for tag, attributes in page.tags if attributes.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]
    assert re.search(r"table \{[^}]*display: block; overflow-x: auto", text)


def test_names_and_versions_are_shown_as_text_and_do_nothing(tmp_path):
    names = ["<script>alert(1)</script>", "![x](figures/../../../../etc/hostname)", "$x^$ [red]", "__init__"]
    names += ["# big", "1. one", "- dash", "~~~x", "_under", b"caf\xe9".decode("utf-8", "surrogateescape")]
    study = make_study("Names <b>", default.get_config(), [cell(x, {"optim.lr": i + 1.0}) for i, x in enumerate(names)])
    for each in study.cells:
        for seed in study.seeds:
            train, test = ERRORS["plain20"]
            write_run(tmp_path, each, seed, train[seed], test[seed], 20)
    version = "1\n```\n<script>alert(2)</script>\n![y](figures/../config.json)\n````\n"
    for folder in tmp_path.glob("cells/*/*"):
        (folder / "environment.json").write_text(json.dumps({"command": ["x"], "jax": version}))
    report.write_report(study, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not {"script", "b", "strong", "ol"} & {tag for tag, _ in page.tags}
    counts = [sum(tag == wanted for tag, _ in page.tags) for wanted in ("h1", "ul", "pre")]
    assert counts == [1, 1, 3]  # the title, the findings, and what is at the foot
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    for name in (*names, "Names <b>", "<script>alert(2)</script>"):
        assert name.encode("utf-8", "replace").decode() in html.unescape(text)
