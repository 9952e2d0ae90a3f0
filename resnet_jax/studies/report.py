"""Reports of studies: the data are gathered here, and laid out by report.md.j2 and report.html.j2."""

import base64
import dataclasses
import datetime
import json
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import jinja2
import ml_collections
import numpy as np
from markdown_it import MarkdownIt

from resnet_jax.studies.factors import varied_values
from resnet_jax.studies.figures import figures
from resnet_jax.studies.findings import errors_by_seed, find
from resnet_jax.studies.published import published_error
from resnet_jax.studies.study import StudyRun, collect
from resnet_jax.workdir import read_environment, storage_errors, write_text


def write_report(study: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Write `report.md`, `report.html` and `figures/` from what lies in the folder of a study, finished or not.

    Args:
      study: study from `make_study`.
      workdir: folder of the study.

    Raises:
      UserError: a file of a run is not what a run writes.
      StorageError: the folder cannot be written.
    """
    with storage_errors(pathlib.Path(workdir)):
        _write_report(study, pathlib.Path(workdir))


def _write_report(study, workdir) -> None:
    runs = [_with_lines(run) for run in collect(study, workdir)]
    cells = {cell["name"]: [run for run in runs if run.cell["name"] == cell["name"]] for cell in study.cells}
    finished = {name: done for name, own in cells.items() if (done := [run for run in own if run.result])}
    shown = figures(finished)
    found = find(finished, study.experiment)
    (workdir / "figures").mkdir(exist_ok=True)
    for figure in shown:
        figure.draw(workdir / "figures" / figure.file)
    rows, notes = _results(cells)
    text = _TEMPLATES.get_template("report.md.j2").render(
        title=study.title,
        basis=found.basis,
        findings=found.sentences,
        few_seeds=found.few_seeds,
        figures=shown,
        batch_statistics=_batch_statistics(finished),
        columns=_columns(rows, cells),
        results=rows,
        notes=notes,
        num_runs=len(runs),
        max_examples=max((run.result.get("max_examples") or 0 for run in runs if run.result), default=0),
        missing=[(run, _problem(run)) for run in runs if not run.result],
        **_origin(runs),
        study=json.dumps(json.loads(study.to_json()), indent=2),
    )
    text = text.encode("utf-8", "replace").decode()  # names may be bytes that are no text
    write_text(workdir / "report.md", text)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for figure in shown:
        body = _with_picture(body, workdir, f"figures/{figure.file}")
    page = _TEMPLATES.get_template("report.html.j2").render(title=study.title, body=body)
    write_text(workdir / "report.html", page)


def _with_lines(run: StudyRun) -> StudyRun:
    """The run; as missing if it is finished, but nothing is left of its curves."""
    if run.result and not any(line["split"] == "train" for line in run.lines):
        problem = "finished, but its metrics.jsonl is missing or cannot be read"
        return dataclasses.replace(run, result=None, problem=problem)
    return run


def _batch_statistics(finished: Mapping[str, list[StudyRun]]) -> list[tuple]:
    """(cell, seeds, test errors with running averages, with precise statistics, differences), where there are any."""
    rows = []
    for name, runs in finished.items():
        found = [run.result["batch_statistics"] for run in runs if "batch_statistics" in run.result]
        running, precise = ([100 * (1 - seed[kind]["accuracy"]) for seed in found] for kind in ("running", "precise"))
        if found:
            rows.append((name, len(found), running, precise, np.subtract(precise, running)))
    return rows


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


def _columns(rows: Sequence[Mapping], cells: Mapping[str, list[StudyRun]]) -> list[str]:
    """Columns of the table: those that a row has, and after the name of the cell what was varied."""
    found = [column for column in _COLUMNS if any(column in row for row in rows)]
    return [found[0], *_shown_keys(cells), *found[1:]]


def _shown_keys(cells) -> dict[str, dict[str, object]]:
    """The varied keys whose value is not just the name of the cell."""
    varied = varied_values(cells)
    return {key: values for key, values in varied.items() if any(str(x) != name for name, x in values.items())}


def _results(cells: Mapping[str, list[StudyRun]]) -> tuple[list[dict[str, str]], list[str]]:
    """(cells of the table by column, a row each; notes on what differs from published protocols)."""
    notes = {}  # number of a note by its text
    rows, varied = [], _shown_keys(cells)
    for name, runs in cells.items():
        done = [run for run in runs if run.result]
        row = {"cell": name, "depth": "", "seeds": _state(runs)} | (_scores(done) if done else {})
        row |= {key: str(by_cell[name]) for key, by_cell in varied.items()}
        if published := published_error(runs[0].config):
            protocol = "same protocol"
            if published.differences:
                text = f"{published.source}: " + "; ".join(published.differences)
                protocol = f"another protocol, note {notes.setdefault(text, len(notes) + 1)}"
            row["published test error, %"] = f"{published.value_percent:.2f} ({published.source}; {protocol})"
        rows.append(row)
    return rows, list(notes)


def _scores(done: Sequence[StudyRun]) -> dict[str, str]:
    """Cells of a row, by column, that need finished runs."""
    result = done[0].result
    row = {
        "depth": str(result["depth"]),
        "parameters": f"{result['parameters']:,}",
        "multiply-adds": f"{result['multiply_adds']:,}",
    }
    for kind, title in (("training", "training error, %"), ("test", "test error (last), %")):
        row[title] = _mean_and_deviation(errors_by_seed(done, kind).values())
    if all("validation" in run.result["best"] for run in done):
        row["test error (best), %"] = _mean_and_deviation(errors_by_seed(done, "best").values())
    seconds = np.mean([run.result["seconds"] for run in done])
    return row | {"time per run": str(datetime.timedelta(seconds=round(seconds)))}


def _state(runs: Sequence[StudyRun]) -> str:
    done = sum(run.result is not None for run in runs)
    failures = dict.fromkeys(run.problem for run in runs if run.problem)
    return "; ".join([f"{done} of {len(runs)}" if done else "missing", *failures])


def _problem(run: StudyRun) -> str:
    reached = f"not finished, last logged at step {run.lines[-1]['step']}" if run.lines else "not begun"
    return run.problem or reached


def _origin(runs: Sequence[StudyRun]) -> dict[str, list]:
    """Commands and environments of the finished runs, each once."""
    environments = [read_environment(run.folder) for run in runs if run.result]
    commands = [
        ["python", "-m", "resnet_jax.ablate", *environment.pop("command", [""])[1:]] for environment in environments
    ]
    for environment in environments:
        environment.pop("started", None)  # a study that was interrupted makes the same report
    distinct = dict.fromkeys("\n".join(f"{key}: {value}" for key, value in found.items()) for found in environments)
    return {"commands": list(dict.fromkeys(map(shlex.join, commands))), "environments": list(distinct)}


# --- the layout ---


def _mean_and_deviation(values: Iterable[float]) -> str:
    values = list(values)
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _escape(text: str) -> str:
    """Text without a meaning in Markdown, on one line."""
    escaped = re.sub(r"([\\`*|<>\[\]&])", r"\\\1", " ".join(text.split()))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)  # those inside a word mean nothing
    return re.sub(r"^(\d+(?=[.)](?:\s|$))|(?=[#+~=-]))", r"\1\\", escaped)  # a heading, a list, a fence


def _code(text: str) -> str:
    """A block of code with a fence that the text cannot close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _with_picture(body: str, workdir: pathlib.Path, picture: str) -> str:
    """The page with this picture inside."""
    data = base64.b64encode((workdir / picture).read_bytes()).decode()
    return body.replace(f'src="{picture}"', f'src="data:image/png;base64,{data}"')


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("resnet_jax.studies", "."),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"markdown": _escape, "code": _code, "mean_and_deviation": _mean_and_deviation}
