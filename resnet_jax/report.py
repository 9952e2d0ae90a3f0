"""Reports of studies, and pictures of runs: python -m resnet_jax.report RUN [RUN...] [--output runs.png]"""

import argparse
import base64
import datetime
import functools
import html
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import scipy.stats
from markdown_it import MarkdownIt

from resnet_jax import plots
from resnet_jax.errors import UserError, command_line
from resnet_jax.logs import read_metrics
from resnet_jax.published import published_error
from resnet_jax.study import StudyRun, collect, run_config
from resnet_jax.workdir import write_text

_STYLE = """
body { max-width: 62em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; color: #222; background: white }
img { max-width: 100% }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85em }
th, td { padding: 0.3em 0.6em; border-bottom: 1px solid #ccc; vertical-align: top }
pre { max-height: 30em; overflow: auto; padding: 1em; background: #f4f4f4; font-size: 0.85em }
"""
_DEFINITIONS = """\
Training error is the running error over the batches since the log line before, with augmentation and before each
update, as the paper draws it. Test error is that of the last weights, from one view of every image (1-crop), each image
once; "best" weights are those that were best on the validation split, and the test split chose nothing. ± is the
standard deviation over seeds (n - 1). Time is that of a whole run, evaluation included."""

_EQUAL = 1e-9  # percentage points: below the rounding of float64


def write_report(study: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Write `report.md`, `report.html` and `figures/` from what lies in the folder of a study, finished or not.

    Args:
      study: as from `study.make_study`.
      workdir: of the study.

    Raises:
      UserError: a file of a run is not what a run writes.
    """
    workdir = pathlib.Path(workdir)
    runs = collect(study, workdir)
    (workdir / "figures").mkdir(exist_ok=True)
    cells = {cell["name"]: [run for run in runs if run.cell["name"] == cell["name"]] for cell in study.cells}
    finished = {name: done for name, own in cells.items() if (done := [run for run in own if run.result])}
    sections = [
        f"# {_escape(study.title)}",
        "## What the data show\n\n" + _findings(finished),
        *(figure.section(workdir) for figure in _figures(finished)),
        _batch_statistics(finished),
        "## Results\n\n" + _table(study, cells),
        "## Missing runs\n\n" + _missing(runs),
        _foot(study, workdir),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    write_text(workdir / "report.md", text)
    write_text(workdir / "report.html", _to_html(text, study.title, workdir))


def compare_errors(kind: str, name: str, other: str, errors: Sequence[float], others: Sequence[float]) -> str:
    """A sentence on the difference of two cells, by a paired t-test over seeds.

    >>> compare_errors("training", "plain56", "plain20", [82.0, 79.0, 82.0], [1.0, 0.0, 2.0])
    "plain56's training error is higher than plain20's by 80.00 points (95% confidence interval 77.52 to 82.48; ..."

    Args:
      kind: "training" or "test".
      name, other: of the cells.
      errors, others: percent, (seeds,), of the same seeds in the same order.
    """
    differences = np.subtract(errors, others)
    n = len(differences)
    if n == 0:
        return f"{name} and {other} have finished no seed in common: their {kind} errors cannot be compared yet."
    mean = differences.mean()
    word = "higher" if mean > 0 else "lower"
    if np.ptp(differences) < _EQUAL:
        seeds = f"each of {n} seeds; differences that do not vary allow no test"
        if n == 1:
            seeds = "the one seed that both have finished; one seed allows no test"
        if abs(mean) < _EQUAL:
            return f"{name}'s {kind} error equals {other}'s in {seeds}."
        return f"{name}'s {kind} error is {word} than {other}'s by {abs(mean):.2f} points in {seeds}."
    test = scipy.stats.ttest_rel(errors, others)
    low, high = test.confidence_interval(0.95)
    p = f"p = {test.pvalue:.2g}" if test.pvalue >= 0.0001 else "p < 0.0001"
    evidence = f"{word} in {sum(differences * mean > 0)} of {n} seeds; paired t-test over {n} seeds, {p}"
    if test.pvalue >= 0.05:
        return (
            f"The data do not show a difference between the {kind} errors of {name} and {other} ({name}'s minus "
            f"{other}'s: {mean:.2f} points, 95% confidence interval {low:.2f} to {high:.2f}; {evidence})."
        )
    low, high = sorted((abs(low), abs(high)))  # of one sign, since p < 0.05
    return (
        f"{name}'s {kind} error is {word} than {other}'s by {abs(mean):.2f} points (95% confidence interval {low:.2f} "
        f"to {high:.2f}; {evidence})."
    )


def overlay(folders: Sequence[str | pathlib.Path], target: str | pathlib.Path) -> None:
    """Draw the error and loss of any runs into one picture.

    Args:
      folders: of the runs.
      target: the picture, of any format that matplotlib knows by its ending.

    Raises:
      UserError: a folder holds no run, or a study, or a run without metrics; the picture cannot be written.
    """
    paths = list(dict.fromkeys(pathlib.Path(folder).expanduser().resolve() for folder in folders))
    runs = dict(zip(_distinguishing_names(paths), map(_read_run, paths), strict=True))
    try:
        plots.plot_overlay(runs, target)
    except (OSError, ValueError) as error:
        raise UserError(f"--output: expected a picture that can be written, found {target}: {error}") from None


def _read_run(folder: pathlib.Path) -> list[dict]:
    metrics = folder / "metrics.jsonl"
    if not metrics.exists() and (folder / "cells").is_dir():
        raise UserError(
            f"RUN: expected the folder of a run, found that of a study, {folder}; try python -m resnet_jax.ablate "
            f"--report --workdir={folder}, or the folders of its runs, {folder}/cells/*/seed*"
        )
    if not metrics.exists():
        raise UserError(f"RUN: expected the folder of a run, found no metrics.jsonl in {folder}; look under runs/")
    lines = read_metrics(metrics)
    if not any(line["split"] == "train" for line in lines):
        raise UserError(f"RUN: expected a run that has logged something, found no line of training in {metrics}")
    return lines


def _distinguishing_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    count = 1
    while len({path.parts[-count:] for path in paths}) < len(paths):
        count += 1
    return ["/".join(path.parts[-count:]) for path in paths]


def _findings(finished: Mapping[str, list[StudyRun]]) -> str:
    comparisons = _comparisons(finished)
    if not comparisons:
        return "Nothing can be compared yet: it takes two cells with finished runs."
    sentences = []
    for kind, name, other in comparisons:
        errors, others = (_errors_by_seed(finished[cell], kind) for cell in (name, other))
        seeds = sorted(errors.keys() & others.keys())
        values = [errors[seed] for seed in seeds], [others[seed] for seed in seeds]
        sentences.append("- " + compare_errors(kind, _escape(name), _escape(other), *values))
    note = f"Points are percentage points. P values are not corrected for the number of comparisons, {len(sentences)}."
    return "\n".join(sentences) + "\n\n" + note


def _comparisons(finished: Mapping[str, list[StudyRun]]) -> list[tuple[str, str, str]]:
    """(kind of error, cell, other cell): the deepest of a series against its shallowest, and series at one depth."""
    by_depth = _series(finished)
    pairs = [(own[max(own)], own[min(own)]) for own in by_depth.values() if len(own) > 1]
    if not pairs:
        first, *rest = list(finished) or [None]
        return [("test", name, first) for name in rest]
    first, *rest = by_depth.values()
    for own in rest:
        if common := own.keys() & first.keys():
            pairs.append((own[max(common)], first[max(common)]))
    return [(kind, name, other) for name, other in pairs for kind in ("training", "test")]


def _series(finished: Mapping[str, list[StudyRun]]) -> dict[str, dict[int, str]]:
    """Names of cells by series and depth; of two with the same, the first."""
    by_depth = {}
    for name, (run, *_) in finished.items():
        if run.cell["series"]:
            by_depth.setdefault(run.cell["series"], {}).setdefault(run.result["depth"], name)
    return by_depth


def _errors_by_seed(runs: Sequence[StudyRun], kind: str) -> dict[int, float]:
    weights, split = {"training": ("last", "train"), "test": ("last", "test"), "best": ("best", "test")}[kind]
    return {run.seed: 100 * (1 - run.result[weights][split]["accuracy"]) for run in runs}


class _Figure(NamedTuple):
    """A section of the report that is a picture; `draw` takes the file."""

    heading: str
    file: str
    alt: str
    note: str
    draw: Callable[[pathlib.Path], None]

    def section(self, workdir: pathlib.Path) -> str:
        self.draw(workdir / "figures" / self.file)
        return f"## {self.heading}\n\n![{_escape(self.alt)}](figures/{self.file})\n\n{self.note}"


def _figures(finished: Mapping[str, list[StudyRun]]) -> list[_Figure]:
    """Those that the runs have data for."""
    cells = [plots.Cell(name, runs[0].cell["series"], runs[0].result["depth"]) for name, runs in finished.items()]
    figures = []
    if train := _curves(finished, "train"):
        split = plots.evaluated_split([run.lines for runs in finished.values() for run in runs]) or ""
        bold = f"bold: error on the {split} split; " if split else ""
        figures.append(
            _Figure(
                "Error while training",
                "error_curves.png",
                f"Training{' and ' * bool(split)}{split} error against steps of {', '.join(train)}",
                f"Thin: training error; {bold}mean over seeds. Shaded: from the least to the greatest of the seeds.",
                functools.partial(plots.plot_error_curves, cells, train, _curves(finished, split), split),
            )
        )
    if any(len(own) > 1 for own in _series(finished).values()):
        joined = [cell for cell in cells if cell.series]
        errors = {
            f"{kind.capitalize()} error": {
                cell.name: np.array(list(_errors_by_seed(finished[cell.name], kind).values())) for cell in joined
            }
            for kind in ("training", "test")
        }
        figures.append(
            _Figure(
                "Final error against depth",
                "final_errors.png",
                f"Training and test error of the last weights against depth of {', '.join(_series(finished))} nets",
                "Mean over seeds; bars: standard deviation over seeds; dots: seeds.",
                functools.partial(plots.plot_final_errors, joined, errors),
            )
        )
    return figures + _layer_figures(finished, cells)


def _layer_figures(finished: Mapping[str, list[StudyRun]], cells: Sequence[plots.Cell]) -> list[_Figure]:
    responses = _measured(finished, "response_std", _last)
    gradients = [_measured(finished, "grad_norm", which, "_block") for which in (_at_initialisation, _last)]
    ratio, scale = (_measured(finished, measure, _last) for measure in ("branch_to_skip", "norm_scale"))
    removed, swapped = (_lesions(finished, kind) for kind in ("removed", "swapped"))
    in_order, block = "layer, in the order of the forward pass", "block, in the order of the forward pass"
    figures = (
        (
            "Layer responses",
            "layer_responses.png",
            "Standard deviation of layer responses at the end of training",
            "Standard deviation of each layer's response after normalisation, before the nonlinearity or the addition, "
            "at the last logged step, as in Figure 7 of He et al. 2015; mean over seeds.",
            (
                plots.Panel("In order", in_order, "standard deviation", responses, wide=True),
                plots.Panel(
                    "Sorted",
                    "layer, by magnitude",
                    "standard deviation",
                    {name: -np.sort(-values.mean(axis=0, keepdims=True)) for name, values in responses.items()},
                    wide=True,
                ),
            ),
        ),
        (
            "Gradient norm against depth",
            "gradient_norms.png",
            "Gradient norm of each block at initialisation and at the end of training",
            "L2 norm of the loss's gradient by all weights of a block; mean over seeds.",
            (
                plots.Panel("At initialisation", block, "gradient norm", gradients[0], wide=True),
                plots.Panel("At the last logged step", block, "gradient norm", gradients[1], wide=True),
            ),
        ),
        (
            "Branches",
            "branches.png",
            "Ratio of branch to skip of each block and scale of each norm",
            "At the last logged step; mean over seeds. Ratio: root mean square of what a block's branch adds over that "
            "of what its shortcut adds. Scale: mean absolute scale (gamma) of each norm.",
            (
                plots.Panel("Branch to skip", block, "ratio of root mean squares", ratio, wide=True),
                plots.Panel("Norm scale", in_order, "mean absolute scale", scale, wide=True),
            ),
        ),
        (
            "Lesions",
            "lesions.png",
            "Test accuracy without each block and with neighbours swapped",
            "Test accuracy of the last weights, mean over seeds; 0 is the whole net. Left: without the branch of one "
            "block. Right: two neighbouring blocks of equal shape exchanged.",
            (
                plots.Panel("Without one block", "block removed", "accuracy, %", removed, first=0),
                plots.Panel("Neighbours swapped", "pair swapped", "accuracy, %", swapped, first=0),
            ),
        ),
    )
    return [
        _Figure(
            heading, file, f"{alt}: {', '.join(finished)}", note, functools.partial(plots.plot_layers, cells, drawn)
        )
        for heading, file, alt, note, panels in figures
        if (drawn := [panel for panel in panels if panel.values])
    ]


def _curves(finished: Mapping[str, list[StudyRun]], split: str) -> dict[str, plots.Curve]:
    """Errors on a split at the steps that all runs of a cell have, by cell."""
    curves = {}
    for name, runs in finished.items():
        lines = [[line for line in run.lines if line["split"] == split] for run in runs]
        errors = [{line["step"]: 100 * (1 - line["accuracy"]) for line in seed} for seed in lines]
        if steps := sorted(set.intersection(*map(set, errors))):
            curves[name] = plots.Curve(np.array(steps), np.array([[seed[step] for step in steps] for seed in errors]))
    return curves


def _at_initialisation(lines: Sequence[dict]) -> dict:
    return lines[0] if lines[0]["step"] == 0 else {}


def _last(lines: Sequence[dict]) -> dict:
    return lines[-1]


def _measured(finished, measure, which, part="") -> dict[str, np.ndarray]:
    """A measure, (seeds, layers), by cell, of the line that `which` picks, and the layers with `part` in their name."""
    found = {}
    for name, runs in finished.items():
        lines = [[line for line in run.lines if line["split"] == "layers"] for run in runs]
        values = [which(own).get(measure, {}) for own in lines if own]
        found[name] = _by_position([{key: x for key, x in one.items() if part in key} for one in values])
    return {name: values for name, values in found.items() if values.size}


def _lesions(finished, kind) -> dict[str, np.ndarray]:
    """Accuracy in percent, (seeds, 1 + lesions), of the whole net and after each lesion, by cell."""
    found = {}
    for name, runs in finished.items():
        lesions = [run.result["lesions"] for run in runs if "lesions" in run.result]
        if any(seed[kind] for seed in lesions):
            found[name] = 100 * _by_position([{"": seed["accuracy"], **seed[kind]} for seed in lesions])
    return found


def _by_position(seeds: Sequence[Mapping[str, float]]) -> np.ndarray:
    """(seeds, names), of the names that all have, in order."""
    names = [name for name in (seeds[0] if seeds else ()) if all(name in seed for seed in seeds)]
    return np.array([[seed[name] for name in names] for seed in seeds])


def _batch_statistics(finished: Mapping[str, list[StudyRun]]) -> str:
    rows = []
    for name, runs in finished.items():
        found = [run.result["batch_statistics"] for run in runs if "batch_statistics" in run.result]
        running, precise = ([100 * (1 - seed[kind]["accuracy"]) for seed in found] for kind in ("running", "precise"))
        if found:
            difference = np.subtract(precise, running)
            rows.append([_escape(name), str(len(found)), *map(_mean_and_deviation, (running, precise, difference))])
    if not rows:
        return ""
    header = ["cell", "seeds", "running: test error, %", "precise: test error, %", "precise minus running, points"]
    return (
        "## Batch statistics\n\n"
        + _markdown_table(header, rows)
        + "\n\nThe last weights with the running averages that training leaves, and with exact statistics over an "
        "epoch of training batches; mean ± standard deviation over seeds."
    )


def _table(study: ml_collections.ConfigDict, cells: Mapping[str, list[StudyRun]]) -> str:
    notes = {}  # number of a note by its text
    rows = []
    for cell, (name, runs) in zip(study.cells, cells.items(), strict=True):
        done = [run for run in runs if run.result]
        row = {"cell": _escape(name), "depth": "", "seeds": _state(runs)}
        if done:
            result = done[0].result
            row["depth"] = str(result["depth"])
            row["parameters"] = f"{result['parameters']:,}"
            row["multiply-adds"] = f"{result['multiply_adds']:,}"
            for kind, title in (("training", "training error, %"), ("test", "test error (last), %")):
                row[title] = _mean_and_deviation(_errors_by_seed(done, kind).values())
            if all("validation" in run.result["best"] for run in done):
                row["test error (best), %"] = _mean_and_deviation(_errors_by_seed(done, "best").values())
            seconds = np.mean([run.result["seconds"] for run in done])
            row["time per run"] = str(datetime.timedelta(seconds=round(seconds)))
        if published := published_error(run_config(study, cell, study.seeds[0])):
            protocol = "same protocol"
            if published.differences:
                text = f"{published.source}: " + "; ".join(published.differences)
                protocol = f"another protocol, note {notes.setdefault(text, len(notes) + 1)}"
            row["published test error, %"] = f"{published.value_percent:.2f} ({published.source}; {protocol})"
        rows.append(row)
    columns = [column for column in _COLUMNS if any(column in row for row in rows)]
    table = _markdown_table(columns, [[row.get(column, "") for column in columns] for row in rows])
    differences = [f"Note {number}: what differs from {_escape(text)}." for text, number in notes.items()]
    return "\n\n".join([table, *differences])


_COLUMNS = (
    "cell",
    "depth",
    "seeds",
    "parameters",
    "multiply-adds",
    "training error, %",
    "test error (last), %",
    "test error (best), %",
    "time per run",
    "published test error, %",
)


def _state(runs: Sequence[StudyRun]) -> str:
    done = sum(run.result is not None for run in runs)
    failures = dict.fromkeys(failure for run in runs if not run.result and (failure := _failure(run)))
    return "; ".join([f"{done} of {len(runs)}" if done else "missing", *failures])


def _missing(runs: Sequence[StudyRun]) -> str:
    missing = [run for run in runs if not run.result]
    if not missing:
        return f"None: all {len(runs)} runs are finished."
    lines = [f"{len(missing)} of {len(runs)} runs are not finished, and are in no figure, mean or test:", ""]
    for run in missing:
        reached = f"not finished, last logged at step {run.lines[-1]['step']}" if run.lines else "not begun"
        lines.append(f"- {_escape(run.cell['name'])}, seed {run.seed}: {_failure(run) or reached}")
    return "\n".join(lines)


def _failure(run: StudyRun) -> str:
    path = run.folder / "error.txt"
    return f"failed: {_escape(path.read_text().partition(chr(10))[0])}" if path.exists() else ""


def _foot(study: ml_collections.ConfigDict, workdir: pathlib.Path) -> str:
    path = workdir / "environment.json"
    environment = json.loads(path.read_text()) if path.exists() else {}
    command = shlex.join(["python", "-m", "resnet_jax.ablate", *environment.pop("command", [""])[1:]])
    environment.pop("started", None)  # of the last session: a study that was interrupted makes the same report
    versions = "\n".join(f"{key}: {value}" for key, value in environment.items())
    config = json.dumps(json.loads(study.to_json()), indent=2)
    return (
        f"## How this was made\n\n{_DEFINITIONS}\n\n{_code(command)}\n\n"
        f"Versions (a git revision with + had local changes):\n\n{_code(versions)}\n\n"
        f"The study: the experiment, what its cells change, and the seeds.\n\n{_code(config)}"
    )


def _mean_and_deviation(values) -> str:
    values = list(values)
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, alignment, *rows))


def _code(text: str) -> str:
    return f"```\n{text}\n```"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*|<>\[\]&])", r"\\\1", text)


def _to_html(text: str, title: str, workdir: pathlib.Path) -> str:
    body = MarkdownIt("commonmark").enable("table").render(text)
    for picture in set(re.findall(r'src="(figures/[^"]+)"', body)):
        data = base64.b64encode((workdir / picture).read_bytes()).decode()
        body = body.replace(f'src="{picture}"', f'src="data:image/png;base64,{data}"')
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m resnet_jax.report", description=__doc__.split(":")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument("--output", default="runs.png", help="the picture (default: runs.png)")
    args = parser.parse_args(argv)
    with command_line():
        overlay(args.runs, args.output)
    print(f"picture: {os.path.abspath(args.output)}")


if __name__ == "__main__":
    main()
