"""Screens, progress bars and lines: a run as people see it."""

import datetime
import importlib.util
import os
import pathlib
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Table

from resnet_jax.commands import titled_table
from resnet_jax.progress import watch
from resnet_jax.workdir import is_url, shown


def start_screen(rows: Mapping[str, str]) -> Table:
    """One screen before training: devices, model, data, length and schedule, and the run directory."""
    return _two_columns("resnet_jax", rows)


def print_end(console: Console, result: dict, workdir: pathlib.Path) -> None:
    """Print best and last scores, time, files, and the next commands, which can be pasted from any terminal."""
    rate = result["images_per_second"]
    name = shown(workdir)
    folder = name if is_url(name) else min(os.path.relpath(workdir), name, key=len)
    rows = {
        "time": f"{datetime.timedelta(seconds=round(result['seconds']))}"
        + (f", training at {rate:,.0f} images/s" if rate else ""),
        "curves": os.path.join(folder, "curves.png"),
        "metrics": os.path.join(folder, "metrics.jsonl"),
        "checkpoints": os.path.join(folder, "checkpoints"),
    }
    console.print(Group(_scores(result), _two_columns(None, rows), "try next:"))
    install = "" if importlib.util.find_spec("tensorboard") else "pip install tensorboard && "
    for command in (
        f"python -m resnet_jax.evaluate {shlex.quote(folder)}",
        f"{install}tensorboard --logdir {shlex.quote(folder)}",
    ):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _scores(result: dict) -> Table:
    trial = f" (eval.max_examples={result['max_examples']}: a quick look)" if result.get("max_examples") else ""
    title = f"Results on {result['data']}{trial}"
    table = titled_table(title)
    with_top5 = result.get("classes", 1000) > 5  # else it is always 100%
    for column in ("weights", "step", "split", "accuracy", *(["top-5"] if with_top5 else []), "loss"):
        table.add_column(column, justify="left" if column in ("weights", "split") else "right")
    # Without a validation split nothing is chosen: the best weights are the last.
    labels = {"last": "last", "best": "best"} if "validation" in result["best"] else {"last": "last"}
    if len(labels) > 1 and result["best"]["step"] == result["last"]["step"]:
        labels = {"last": "last and best"}
    for weights, label in labels.items():
        for split in ("train", "validation", "test"):
            for prefix, note in (("", ""), ("ema_", ", moving average")):
                values = result[weights].get(split) or {}
                if f"{prefix}accuracy" in values:
                    table.add_row(
                        label + note,
                        f"{result[weights]['step']:,}",
                        "train, last log window" if split == "train" else split,
                        f"{values[f'{prefix}accuracy']:.2%}",
                        *([f"{values[f'{prefix}top5']:.2%}"] if with_top5 else []),
                        f"{values[f'{prefix}loss']:.4f}",
                    )
    return table


def _two_columns(title: str | None, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


_COMPILING = "compiling the training step"
_SECONDS_BETWEEN_LINES = 60


class TrainingDisplay:
    """Progress bars on a terminal, plain lines elsewhere. A context manager.

    Args:
      console: console for the lines.
      bars: progress bars, which get those of the run.
      first_step, num_steps: where the run's bar begins and ends.
      num_epochs: length of the run.
    """

    def __init__(self, console: Console, bars: Progress, first_step: int, num_steps: int, num_epochs: float):
        self._console, self._bars = console, bars
        self._first_step, self._num_steps, self._num_epochs = first_step, num_steps, num_epochs
        self._start = time.perf_counter()  # of the steps that the time left is judged by
        self._next_update = 0.0
        self._task = bars.add_task(self._epoch(first_step), total=num_steps, completed=first_step)
        is_first = all(task.description != _COMPILING for task in bars.tasks)  # of replicas, which compile together
        self._compiling = bars.add_task(_COMPILING, total=None) if is_first and first_step < num_steps else None

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(self, *_) -> None:
        for task in {self._task, self._compiling} & set(self._bars.task_ids):
            self._bars.remove_task(task)

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step. Without bars, a line now and then."""
        now = time.perf_counter()
        if now < self._next_update:
            return
        if not self._next_update:  # what was before is compilation
            self._first_step, self._start = step, now
            self._end_compiling()
        elif self._bars.disable:
            self.say(f"step {step}/{self._num_steps}  {self._left(step)}")
        self._bars.update(self._task, description=self._epoch(step), completed=step)
        self._next_update = now + (_SECONDS_BETWEEN_LINES if self._bars.disable else 0.2)

    def watch(self, name: str, items: Iterable, total: int) -> Iterator:
        """The items of a phase of the run, with a bar as long as they are worked through."""
        return watch(self._bars, name, items, total)

    def train(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Show the training metrics of the last window."""
        text = (
            f"loss {values['loss']:.3g} acc {values['accuracy']:.1%} lr {values['learning_rate']:.2g} "
            f"{values['images_per_second']:,.0f} img/s wait {values['input_wait']:.0%}"
        )
        self._bars.update(self._task, description=self._epoch(step), completed=step, values=text)
        if self._bars.disable:
            self.say(f"step {step}/{self._num_steps}  epoch {epoch:.1f}  {text}  {self._left(step)}")
            self._next_update = time.perf_counter() + _SECONDS_BETWEEN_LINES

    def evaluation(self, epoch: float, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show loss and accuracy by split, on one line: two splits have room on 80 columns."""
        shown = (f"{split}: {_in_words(values)}" for split, values in scores.items() if values)
        self.say(f"epoch {epoch:5.1f}  {'  '.join(shown)}")

    def scoring(self, step: int) -> None:
        """Say that the weights of a step are scored at the end: a bar shows it on a terminal, a line elsewhere."""
        if self._bars.disable:
            self.say(f"scoring the weights of step {step}")

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left(self, step: int) -> str:
        if step <= self._first_step:
            return ""
        seconds = (time.perf_counter() - self._start) / (step - self._first_step) * (self._num_steps - step)
        return f"left {datetime.timedelta(seconds=round(seconds))}"

    def _end_compiling(self) -> None:
        if self._compiling in self._bars.task_ids:
            self._bars.remove_task(self._compiling)

    def _epoch(self, step: int) -> str:
        return f"epoch {step / self._num_steps * self._num_epochs:.1f}/{self._num_epochs:.1f}"


_SHOWN = {"loss": ("loss", ".4f"), "accuracy": ("acc", ".2%")}
_SHOWN |= {f"ema_{name}": (f"ema {word}", form) for name, (word, form) in _SHOWN.items()}


def _in_words(values: Mapping[str, float]) -> str:
    return " ".join(f"{word} {values[name]:{form}}" for name, (word, form) in _SHOWN.items() if name in values)
