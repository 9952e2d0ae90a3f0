"""Reports of studies, and pictures of runs: python -m resnet_jax.report RUN [RUN...] [--output runs.png]"""

import base64
import dataclasses
import datetime
import functools
import html
import json
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from markdown_it import MarkdownIt

from resnet_jax.studies import plots
from resnet_jax.studies.findings import errors_by_seed, findings, series_by_depth
from resnet_jax.studies.published import published_error
from resnet_jax.studies.study import StudyRun, collect
from resnet_jax.workdir import read_environment, write_text

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


def write_report(study: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Write `report.md`, `report.html` and `figures/` from what lies in the folder of a study, finished or not.

    Args:
      study: as from `study.make_study`.
      workdir: of the study.

    Raises:
      UserError: a file of a run is not what a run writes.
    """
    workdir = pathlib.Path(workdir)
    runs = [_with_lines(run) for run in collect(study, workdir)]
    (workdir / "figures").mkdir(exist_ok=True)
    cells = {cell["name"]: [run for run in runs if run.cell["name"] == cell["name"]] for cell in study.cells}
    finished = {name: done for name, own in cells.items() if (done := [run for run in own if run.result])}
    sections = [
        f"# {_escape(study.title)}",
        "## What the data show\n\n" + _sentences(findings(finished)),
        *(figure.section(workdir) for figure in _figures(finished)),
        _batch_statistics(finished),
        "## Results\n\n" + _table(cells),
        "## Missing runs\n\n" + _missing(runs),
        _foot(study, runs),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    write_text(workdir / "report.md", text)
    write_text(workdir / "report.html", _to_html(text, study.title, workdir))


def _with_lines(run: StudyRun) -> StudyRun:
    """The run; as missing if it is finished, but nothing is left of its curves."""
    if run.result and not any(line["split"] == "train" for line in run.lines):
        problem = "finished, but its metrics.jsonl is missing or cannot be read"
        return dataclasses.replace(run, result=None, problem=problem)
    return run


def _sentences(sentences: Sequence[str]) -> str:
    if not sentences:
        return "Nothing can be compared yet: it takes two cells with finished runs."
    note = f"Points are percentage points. P values are not corrected for the number of comparisons, {len(sentences)}."
    return "\n".join(f"- {_escape(sentence)}" for sentence in sentences) + "\n\n" + note


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
    series = series_by_depth(finished)
    if any(len(own) > 1 for own in series.values()):
        joined = [cell for cell in cells if cell.series]
        errors = {
            f"{kind.capitalize()} error": {
                cell.name: np.array(list(errors_by_seed(finished[cell.name], kind).values())) for cell in joined
            }
            for kind in ("training", "test")
        }
        figures.append(
            _Figure(
                "Final error against depth",
                "final_errors.png",
                f"Training and test error of the last weights against depth of {', '.join(series)} nets",
                "Mean over seeds; bars: standard deviation over seeds, cut at 0; dots: seeds.",
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


def _table(cells: Mapping[str, list[StudyRun]]) -> str:
    notes = {}  # number of a note by its text
    rows = []
    for name, runs in cells.items():
        done = [run for run in runs if run.result]
        row = {"cell": _escape(name), "depth": "", "seeds": _state(runs)}
        if done:
            result = done[0].result
            row["depth"] = str(result["depth"])
            row["parameters"] = f"{result['parameters']:,}"
            row["multiply-adds"] = f"{result['multiply_adds']:,}"
            for kind, title in (("training", "training error, %"), ("test", "test error (last), %")):
                row[title] = _mean_and_deviation(errors_by_seed(done, kind).values())
            if all("validation" in run.result["best"] for run in done):
                row["test error (best), %"] = _mean_and_deviation(errors_by_seed(done, "best").values())
            seconds = np.mean([run.result["seconds"] for run in done])
            row["time per run"] = str(datetime.timedelta(seconds=round(seconds)))
        if published := published_error(runs[0].config):
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
    failures = dict.fromkeys(_escape(run.problem) for run in runs if run.problem)
    return "; ".join([f"{done} of {len(runs)}" if done else "missing", *failures])


def _missing(runs: Sequence[StudyRun]) -> str:
    missing = [run for run in runs if not run.result]
    if not missing:
        return f"None: all {len(runs)} runs are finished."
    lines = [f"{len(missing)} of {len(runs)} runs are not finished, and are in no figure, mean or test:", ""]
    for run in missing:
        reached = f"not finished, last logged at step {run.lines[-1]['step']}" if run.lines else "not begun"
        lines.append(f"- {_escape(run.cell['name'])}, seed {run.seed}: {_escape(run.problem) or reached}")
    return "\n".join(lines)


def _foot(study: ml_collections.ConfigDict, runs: Sequence[StudyRun]) -> str:
    environments = [read_environment(run.folder) for run in runs if run.result]
    commands = [
        ["python", "-m", "resnet_jax.ablate", *environment.pop("command", [""])[1:]] for environment in environments
    ]
    for environment in environments:
        environment.pop("started", None)  # a study that was interrupted makes the same report
    command = "\n".join(dict.fromkeys(map(shlex.join, commands)))
    versions = "\n\n".join(
        dict.fromkeys("\n".join(f"{key}: {value}" for key, value in found.items()) for found in environments)
    )
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
